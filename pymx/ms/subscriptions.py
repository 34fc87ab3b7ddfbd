"""`subscriptions`: which folders a user has subscribed to.

Version 2 begins with `V<TAB>2` and an empty line, then one storage name a line, levels joined by TAB, with Dovecot's
`\\001` escapes. A file without that header is version 1 (levels joined by the storage separator) and stays so.
"""

from __future__ import annotations

import os

from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.layout import Levels

NAME = b"subscriptions"
_HEADER = b"V\t2\n\n"
_ESCAPES = {"\0": "\0010", "\001": "\0011", "\t": "\001t", "\r": "\001r", "\n": "\001n"}
_UNESCAPES = {"0": "\0", "1": "\001", "t": "\t", "r": "\r", "n": "\n"}


def _escape(level: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in level)


def _unescape(level: str) -> str:
    head, *pieces = level.split("\001")
    out = [head]
    skip = False
    for piece in pieces:
        if skip:
            out.append(piece)
            skip = False
        elif piece[:1] in _UNESCAPES and piece:
            out.append(_UNESCAPES[piece[0]] + piece[1:])
        elif not piece:
            skip = True
        else:
            out.append(piece)
    return "".join(out)


def parse(data: bytes, separator: str) -> tuple[int, list[Levels]]:
    """Version and names in file order, each once."""
    version = 1
    if data.startswith(_HEADER):
        version, data = 2, data[len(_HEADER) :]
    seen: dict[Levels, None] = {}
    for raw in data.decode("utf-8", "replace").split("\n"):
        if not raw:
            continue
        parts = [_unescape(p) for p in raw.split("\t")] if version == 2 else raw.rstrip("\r").split(separator)
        levels = tuple(parts)
        if all(levels):
            if levels[0].upper() == "INBOX":
                levels = ("INBOX", *levels[1:])
            seen[levels] = None
    return version, list(seen)


def to_bytes(version: int, names: list[Levels], separator: str) -> bytes:
    if version == 2:
        return _HEADER + b"".join("\t".join(_escape(p) for p in levels).encode() + b"\n" for levels in names)
    return b"".join(separator.join(levels).encode() + b"\n" for levels in names)


def read(root: bytes, separator: str) -> tuple[int, list[Levels]]:
    try:
        with open(os.path.join(root, NAME), "rb") as file:
            return parse(file.read(), separator)
    except FileNotFoundError:
        return 2, []


def change(disk: Disk, root: bytes, separator: str, name: Levels, *, subscribe: bool, mode: int) -> None:
    """Add or remove one name; durable when this returns."""
    path = os.path.join(root, NAME)
    with DotLock(disk, path):
        version, names = read(root, separator)
        if (name in names) == subscribe:
            return
        if subscribe:
            names.append(name)
        else:
            names.remove(name)
        disk.replace_file(path, path + b".tmp", to_bytes(version, names, separator), mode)
    disk.sync_directory(root)
