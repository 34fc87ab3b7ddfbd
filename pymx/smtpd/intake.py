"""A message coming in by DATA or BDAT: newline check, size limits, spool.

The first thing wrong with a message is remembered and said only after its end, because the peer goes on sending:
its octets are then read and dropped, up to a bound, and the session stays in step. Past the bound it is closed.

Failures: over size, header or fields 552 5.3.4, bare CR or LF 554 5.5.2, no room 452 4.3.1, other trouble with the
spool 451 4.3.0.
"""

from __future__ import annotations

import errno
from pathlib import Path

from pymx import log
from pymx.config.model import Smtp
from pymx.proto.smtp import reply
from pymx.proto.smtp.newlines import Newlines
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content, HeaderTooLong, SpoolWriter, Tap

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_log = log.get("smtpd")


class Intake:
    """Collects one message. `failure` is what its sender will hear."""

    __slots__ = ("_last", "_max", "_max_fields", "_newlines", "_size", "_writer", "failure")

    def __init__(
        self, smtp: Smtp, spool_dir: Path, max_message_octets: int, *, repair_newlines: bool, tap: Tap | None = None
    ) -> None:
        self._writer: SpoolWriter | None = SpoolWriter(
            spool_dir, memory_octets=smtp.memory_octets, max_header_octets=smtp.max_header_octets, tap=tap
        )
        self._newlines = Newlines(repair=repair_newlines)
        self._max = max_message_octets
        self._max_fields = smtp.max_header_fields
        self._size = 0
        self._last = b"\r\n"
        self.failure: SmtpError | None = None

    @property
    def too_much(self) -> bool:
        """More was dropped than we are willing to read: the session has to be closed."""
        return self._size > 2 * self._max

    def feed(self, data: bytes) -> None:
        """Message octets, dots unstuffed."""
        self._size += len(data)
        if self._writer is None:
            return
        if self._size > self._max:
            self.fail(SmtpError(reply.MESSAGE_TOO_BIG, "message longer than max_message_octets"))
            return
        self._keep(self._newlines.feed(data))

    def finish(self, *, complete_line: bool) -> Content:
        """The message, or raise what is wrong with it. `complete_line` adds a CRLF that is missing at its end."""
        if self._writer is not None:
            self._keep(self._newlines.finish())
            if complete_line and self._last != b"\r\n":
                self._keep(b"\r\n")
        if self.failure is not None:
            raise self.failure
        assert self._writer is not None
        writer, self._writer = self._writer, None
        content = writer.finish()
        if _fields(content.head) > self._max_fields:
            raise SmtpError(reply.TOO_MANY_FIELDS, "more fields than max_header_fields")
        return content

    def fail(self, failure: SmtpError) -> None:
        """Remember the first thing wrong and let go of what was collected."""
        if self.failure is None:
            self.failure = failure
        self._writer = None

    def _keep(self, data: bytes) -> None:
        if not data or self._writer is None:
            return
        if self._newlines.bare and not self._newlines.repair:
            self.fail(SmtpError(reply.BARE_NEWLINE, "bare CR or LF in message data"))
            return
        self._last = (self._last + data[-2:])[-2:]
        try:
            self._writer.feed(data)
        except HeaderTooLong:
            self.fail(SmtpError(reply.HEADER_TOO_BIG, "header longer than max_header_octets"))
        except OSError as e:
            _log.error("spool_failed", error=str(e))
            answer = reply.STORAGE_FULL if e.errno in _NO_ROOM else reply.TEMPORARY_FAILURE
            self.fail(SmtpError(answer, f"spool: {e.strerror}"))


def _fields(head: bytes) -> int:
    """How many fields a header block has, folded lines not counted."""
    return head.count(b"\n") - head.count(b"\n ") - head.count(b"\n\t")
