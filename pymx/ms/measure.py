"""Sizes and forms of a message: on disk with LF (or any mix), on the wire with CRLF."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pymx.ms import packed

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
    """Octets of the wire form of the message at `path`."""
    return sizes(path)[1]


def sizes(path: bytes) -> tuple[int, int]:
    """Octets of the message at `path`, unpacked, with the line ends that it has, and of its wire form."""
    total = wire = 0
    with open(packed.open_plain(path, flags=0), "rb", buffering=0) as file:
        last = b""
        while data := file.read(CHUNK):
            total += len(data)
            wire += len(data) + wire_growth(data) - (last == b"\r" and data.startswith(b"\n"))
            last = data[-1:]
    return total, wire


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
