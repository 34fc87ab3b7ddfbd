"""The header of a `dovecot.index`: what Dovecot knows of a mailbox that its other files don't say.

Read only, never written, and only as far as the next UID and the keyword names. Dovecot writes the file now and then
and its log in between, so what is here may be behind; the file may be missing altogether.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

NAME = b"dovecot.index"
_MAJOR = 7
_HEADER = struct.Struct("<BBHII4xIIIII")  # version, base size, header size, record size; id, flags, uidvalidity, …
_EXTENSION = struct.Struct("<IIHHHH")  # header size, reset id, record offset, size, alignment, name size
_MAX_OCTETS = 1 << 20  # of the header


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """`keywords` are all names the mailbox ever had, in the order of Dovecot's bits."""

    uidvalidity: int
    next_uid: int
    messages: int
    keywords: list[str]


def parse(data: bytes) -> IndexHeader | None:
    """None for what is no index of a version we know (2.0 to 2.4, little-endian)."""
    if len(data) < _HEADER.size or data[0] != _MAJOR:
        return None
    _, _, base_size, header_size, _, _, _, uidvalidity, next_uid, messages = _HEADER.unpack_from(data)
    if not _HEADER.size <= base_size <= header_size <= len(data) or not uidvalidity:
        return None
    return IndexHeader(uidvalidity, next_uid, messages, _keywords(data[:header_size], base_size))


def _keywords(header: bytes, position: int) -> list[str]:
    position = _aligned(position)
    while position + _EXTENSION.size <= len(header):
        size, _, _, _, _, name_size = _EXTENSION.unpack_from(header, position)
        position += _EXTENSION.size
        name = header[position : position + name_size]
        position = _aligned(position + name_size)
        if name == b"keywords":
            return _names(header[position : position + size])
        position = _aligned(position + size)
    return []


def _names(data: bytes) -> list[str]:
    """A count, for each keyword an unused number and its name's offset, the names with NULs behind them."""
    if len(data) < 4:
        return []
    count = struct.unpack_from("<I", data)[0]
    start = 4 + 8 * count
    if start > len(data):
        return []
    out: list[str] = []
    for number in range(count):
        offset = struct.unpack_from("<4xI", data, 4 + 8 * number)[0]
        end = data.find(b"\0", start + offset)
        if end < 0:
            return out
        out.append(data[start + offset : end].decode("utf-8", "replace"))
    return out


def _aligned(position: int) -> int:
    return (position + 7) & ~7


def read(directory: bytes) -> IndexHeader | None:
    """Of the mailbox whose index is in `directory`; None if there is none that can be read."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return parse(file.read(_MAX_OCTETS))
    except OSError:
        return None
