"""Canonical forms of header fields and bodies (RFC 6376 s. 3.4), for signing and verifying alike.

A body is hashed as it passes, in pieces of any size, in time linear in its length: what can't be judged yet (white
space and line ends at the end of a piece) is held back, and only as much of it as its canonical form needs. Input is in
wire form; a body whose last line has no CRLF is hashed as if it had one, as the next SMTP hop will give it one.
"""

from __future__ import annotations

import re
from typing import Protocol

_RUN = re.compile(rb"[ \t]{2,}|\t")
_WSP = re.compile(rb"[ \t]+")
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_HELD_OCTETS = 256  # held-back white space longer than this is brought into its canonical form
_CRLFS = b"\r\n" * 512


class Hash(Protocol):
    """What a body is poured into: a hash object of hashlib."""

    def update(self, data: bytes, /) -> None: ...


def relaxed_field(raw: bytes) -> bytes:
    """A whole header field in relaxed form, without its CRLF (s. 3.4.2)."""
    name, _, value = raw.partition(b":")
    unfolded = value.replace(b"\r\n", b"")
    return name.strip(b" \t").lower() + b":" + _WSP.sub(b" ", unfolded).strip(b" ")


def _relax(data: bytes) -> bytes:
    """Lines in relaxed form; `data` must not begin or end inside a run of white space."""
    if b"\t" in data or b"  " in data:
        data = _RUN.sub(b" ", data)
    return data.replace(b" \r\n", b"\r\n")


def _solid_end(data: bytes, held: bytes) -> int:
    """Where the run of `held` octets at the end of `data` begins in which only whole CRLFs, and a CR at the very end,
    end lines: a bare CR or LF before that is content, and must not make the run grow for ever."""
    end = len(data.rstrip(held))
    if end == len(data):
        return end
    tail = data[end:].replace(b"\r\n", b"  ")
    return end + 1 + max(tail.rfind(b"\n"), tail.rfind(b"\r", 0, len(tail) - 1))


class RelaxedBody:
    """Feeds a body to `digest` in relaxed form (s. 3.4.4)."""

    __slots__ = ("_digest", "_empty_lines", "_held", "_started")

    def __init__(self, digest: Hash) -> None:
        self._digest = digest
        self._held = b""  # white space and line ends that end the body so far
        self._empty_lines = 0  # CRLFs before `_held` that count only if something follows
        self._started = False

    def update(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        end = _solid_end(data, b" \t\r\n")
        if end:
            self._started = True
            _pour_crlfs(self._digest, self._empty_lines)
            self._empty_lines = 0
            self._digest.update(_relax(data[:end]))
        self._held = data[end:]
        if len(self._held) > _HELD_OCTETS:
            relaxed = _relax(self._held)
            lines = _EMPTY_LINES.match(relaxed)
            skip = lines.end() if lines else 0
            self._empty_lines += skip // 2
            self._held = relaxed[skip:]

    def finish(self) -> None:
        """The body is complete: white space at its end goes, and one CRLF ends it unless it is empty."""
        tail = _relax(self._held + b"\r\n").rstrip(b"\r\n")
        if tail:  # a bare CR or LF between blanks: outside the grammar, kept as it is
            _pour_crlfs(self._digest, self._empty_lines)
            self._digest.update(tail)
        if self._started or tail:
            self._digest.update(b"\r\n")


class SimpleBody:
    """Feeds a body to `digest` in simple form (s. 3.4.3): only empty lines at the end are ignored."""

    __slots__ = ("_digest", "_empty_lines", "_held")

    def __init__(self, digest: Hash) -> None:
        self._digest = digest
        self._held = b""
        self._empty_lines = 0

    def update(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        end = _solid_end(data, b"\r\n")
        if end:
            _pour_crlfs(self._digest, self._empty_lines)
            self._empty_lines = 0
            self._digest.update(data[:end])
        self._held = data[end:]
        if len(self._held) > _HELD_OCTETS:
            lines = _EMPTY_LINES.match(self._held)
            skip = lines.end() if lines else 0
            self._empty_lines += skip // 2
            self._held = self._held[skip:]

    def finish(self) -> None:
        """The body is complete: it ends in exactly one CRLF, and an empty one is a CRLF."""
        tail = self._held.rstrip(b"\r\n")
        if tail:
            _pour_crlfs(self._digest, self._empty_lines)
            self._digest.update(tail)
        self._digest.update(b"\r\n")


def _pour_crlfs(digest: Hash, count: int) -> None:
    while count > 0:
        digest.update(_CRLFS[: 2 * min(count, 512)])
        count -= 512
