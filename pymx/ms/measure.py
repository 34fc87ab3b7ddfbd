"""Sizes and forms of a message: on disk with LF (or any mix), on the wire with CRLF."""

from __future__ import annotations

import os
from collections.abc import Iterator

CHUNK = 262_144


def wire_growth(data: bytes) -> int:
    """How many CRs the wire form has more than `data`."""
    return data.count(b"\n") - data.count(b"\r\n")


def to_wire(data: bytes) -> bytes:
    """A message as read from disk, with CRLF everywhere."""
    if b"\r\n" in data:
        data = data.replace(b"\r\n", b"\n")
    return data.replace(b"\n", b"\r\n")


def wire_size(path: bytes) -> int:
    """Octets of the wire form of the file at `path`."""
    total = 0
    with open(path, "rb") as file:
        last = b""
        while data := file.read(CHUNK):
            total += len(data) + wire_growth(data)
            if last == b"\r" and data.startswith(b"\n"):
                total -= 1
            last = data[-1:]
    return total


def wire_chunks(fd: int) -> Iterator[bytes]:
    """The wire form of an open file, in pieces."""
    carry = b""
    position = 0
    while data := os.pread(fd, CHUNK, position):
        position += len(data)
        data = carry + data
        carry = b""
        if data.endswith(b"\r"):
            data, carry = data[:-1], b"\r"
        if data:
            yield to_wire(data)
    if carry:
        yield carry
