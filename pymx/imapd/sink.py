"""Where the messages of an APPEND go while they arrive."""

from __future__ import annotations

import errno
from pathlib import Path

from pymx.proto.imap.errors import No
from pymx.spool import Content, HeaderTooLong, SpoolWriter


class AppendSink:
    """A message being collected. What goes wrong is kept, since the rest of the literal still has to be read.

    Several messages may come in one command, so each should hold little memory (`memory_octets`).
    """

    __slots__ = ("_refused", "_writer")

    def __init__(self, directory: Path, *, memory_octets: int, max_header_octets: int) -> None:
        self._writer: SpoolWriter | None = SpoolWriter(
            directory, memory_octets=memory_octets, max_header_octets=max_header_octets
        )
        self._refused: No | None = None

    def feed(self, data: bytes) -> None:
        if self._writer is None:
            return
        try:
            self._writer.feed(data)
        except HeaderTooLong:
            self._refused = No("The message header is too large", code="LIMIT")
            self._writer = None
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._refused = No("No space to store the message", code="OVERQUOTA" if full else "UNAVAILABLE")
            self._writer = None

    def finish(self) -> Content | No:
        """The message, or why there is none."""
        if self._writer is None:
            assert self._refused is not None
            return self._refused
        return self._writer.finish()
