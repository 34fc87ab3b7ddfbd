"""Message content in wire form: memory below a limit, an unnamed file above.

A `Content` is a header block in memory plus a body (the empty line and what follows) that is either bytes or a
region of a spool file. Prepending trace fields copies nothing but the head. A spool file has no name (O_TMPFILE), so
a killed process leaves nothing behind; it is closed when the last Content on it goes.

Errors: OSError from the file system (ENOSPC, EDQUOT, EIO) passes through to the caller, who answers 452 or 451.
`HeaderTooLong` when no empty line came within the header limit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK = 65536
Tap = Callable[[bytes], Callable[[bytes], None] | None]
"""Called with the header block when it is complete; gives who wants the body's pieces too, or None."""
_SMALL = 512


class HeaderTooLong(Exception):
    """The header block is longer than the configured limit."""


class SpoolFile:
    """An open unnamed file; closed when nobody refers to it any more."""

    __slots__ = ("fd",)

    def __init__(self, directory: Path) -> None:
        self.fd = -1
        self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

    @classmethod
    def adopt(cls, fd: int) -> SpoolFile:
        """An open file that is to be closed with its last Content."""
        file = cls.__new__(cls)
        file.fd = fd
        return file

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def __del__(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Content:
    """A message: `head` (header block, CRLF line ends, no empty line) and a body that starts with the empty line."""

    __slots__ = ("_body", "_file", "_length", "_offset", "head")

    def __init__(
        self, head: bytes, body: bytes = b"", *, file: SpoolFile | None = None, offset: int = 0, length: int = 0
    ) -> None:
        self.head = head
        self._body = body
        self._file = file
        self._offset = offset
        self._length = length if file else len(body)

    @classmethod
    def from_bytes(cls, message: bytes) -> Content:
        """A whole message in wire form (CRLF line ends)."""
        if message.startswith(b"\r\n"):
            return cls(b"", message)
        end = message.find(b"\r\n\r\n")
        return cls(message[: end + 2], message[end + 2 :]) if end >= 0 else cls(message)

    @property
    def size_octets(self) -> int:
        return len(self.head) + self._length

    @property
    def body_octets(self) -> int:
        return self._length

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def same_as(self, other: Content) -> bool:
        """Octet for octet the same message, as far as can be told without reading it."""
        if self.head != other.head or self._length != other._length:
            return False
        if self._file is not None:
            return self._file is other._file and self._offset == other._offset
        return other._file is None and (self._body is other._body or self._body == other._body)

    def with_head(self, head: bytes) -> Content:
        """The same body under another header block."""
        return Content(head, self._body, file=self._file, offset=self._offset, length=self._length)

    def prepended(self, fields: bytes) -> Content:
        """The message with whole fields (each with its CRLF) in front."""
        return self.with_head(fields + self.head)

    def body_chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most 64 KB."""
        if self._file is None:
            if len(self._body) <= CHUNK:
                if self._body:
                    yield self._body
                return
            for start in range(0, len(self._body), CHUNK):
                yield self._body[start : start + CHUNK]
            return
        position, left = self._offset, self._length
        while left:
            piece = os.pread(self._file.fd, min(CHUNK, left), position)
            if not piece:
                raise OSError("spool file is shorter than it was when written")
            position += len(piece)
            left -= len(piece)
            yield piece

    def chunks(self) -> Iterator[bytes]:
        """The whole message in wire form: the head, then the body in pieces."""
        if self.head:
            yield self.head
        yield from self.body_chunks()

    def disk_chunks(self) -> Iterator[bytes]:
        """The message as it lies in a Maildir: every CRLF as LF, other octets as they are."""
        carry = b""
        for piece in self.chunks():
            data = carry + piece if carry else piece
            carry = b""
            if data.endswith(b"\r"):
                data, carry = data[:-1], b"\r"
            yield data.replace(b"\r\n", b"\n")
        if carry:
            yield carry

    def read(self) -> bytes:
        """The whole message as bytes; for small messages and tests."""
        return b"".join(self.chunks())


class SpoolWriter:
    """Collects a message as it arrives; `finish()` gives the Content.

    Memory holds the header block (at most `max_header_octets`) and up to `memory_octets` of body; more goes to an
    unnamed file in `directory`. Whom `tap` gives sees the body's octets as they come, beginning with the empty line.
    """

    __slots__ = (
        "_directory",
        "_file",
        "_head",
        "_length",
        "_max_header",
        "_memory",
        "_parts",
        "_pending",
        "_tap",
        "_to_body",
        "size_octets",
    )

    def __init__(
        self,
        directory: Path,
        *,
        memory_octets: int = 262144,
        max_header_octets: int = 1048576,
        tap: Tap | None = None,
    ) -> None:
        self._tap = tap
        self._to_body: Callable[[bytes], None] | None = None
        self._directory = directory
        self._memory = memory_octets
        self._max_header = max_header_octets
        self._head: bytes | None = None
        self._pending = bytearray()  # header octets until the empty line is seen
        self._parts: list[bytes] = []
        self._file: SpoolFile | None = None
        self._length = 0
        self.size_octets = 0

    def feed(self, data: bytes) -> None:
        """Take the next octets. Raises HeaderTooLong, or OSError from the spool file."""
        self.size_octets += len(data)
        if self._head is not None:
            self._add(data)
            return
        searched = max(0, len(self._pending) - 3)
        self._pending += data
        if self._pending.startswith(b"\r\n"):
            end = -2  # no header block at all: the message starts with its empty line
        else:
            end = self._pending.find(b"\r\n\r\n", searched)
            if end < 0:
                if len(self._pending) > self._max_header:
                    raise HeaderTooLong
                return
        if end + 2 > self._max_header:
            raise HeaderTooLong
        self._head = bytes(self._pending[: end + 2])
        rest = bytes(self._pending[end + 2 :])
        self._pending = bytearray()
        if self._tap is not None:
            self._to_body = self._tap(self._head)
        self._add(rest)

    def _add(self, data: bytes) -> None:
        self._length += len(data)
        if self._to_body is not None:
            self._to_body(data)
        if self._file is not None:
            self._file.write(data)
            return
        if self._parts and len(data) < _SMALL and len(self._parts[-1]) < CHUNK // 16:
            self._parts[-1] += data  # an object for each octet that drips in would cost forty times the octets
        else:
            self._parts.append(data)
        if self._length > self._memory:
            self._file = SpoolFile(self._directory)
            self._file.write(b"".join(self._parts))
            self._parts = []

    def finish(self) -> Content:
        """The message so far; the writer is used up."""
        if self._head is None:
            self._head = bytes(self._pending)
        if self._file is not None:
            return Content(self._head, file=self._file, length=self._length)
        return Content(self._head, b"".join(self._parts))
