"""`dovecot-uidvalidity`: the account's last UIDVALIDITY, so that no two mailboxes of one name share one.

The root holds `dovecot-uidvalidity` (8 hex digits) and an empty file `dovecot-uidvalidity.<8 hex>`; the next value is
taken by renaming the latter to value + 1, which only one process can do.
"""

from __future__ import annotations

import os
import time

from pymx.ms.disk import Disk

NAME = b"dovecot-uidvalidity"


def _markers(root: bytes) -> list[int]:
    prefix = NAME + b"."
    out = []
    for name in os.listdir(root):
        digits = name.removeprefix(prefix)
        if len(digits) == 8 and digits != name:
            try:
                out.append(int(digits, 16))
            except ValueError:
                continue
    return out


def _written(root: bytes) -> int:
    try:
        with open(os.path.join(root, NAME), "rb") as file:
            return int(file.read(8), 16)
    except (FileNotFoundError, ValueError):
        return 0


def last(root: bytes) -> int:
    """The last value given, 0 if none is known. A power cut may have left the file behind the marker or before it."""
    return max([_written(root), *_markers(root)])


def next_value(disk: Disk, root: bytes, mode: int = 0o600) -> int:
    """A UIDVALIDITY nobody in this account has had."""
    path = os.path.join(root, NAME)
    while True:
        markers = _markers(root)
        value = max([_written(root), *markers]) + 1
        if value == 1:
            value = int(time.time())
        try:
            if markers:
                disk.rename(path + b".%08x" % max(markers), path + b".%08x" % value)
            else:
                disk.close(disk.create(path + b".%08x" % value, 0o444))
        except (FileNotFoundError, FileExistsError):
            continue  # somebody else took it
        break
    fd = disk.create(path, mode, exclusive=False)
    try:
        disk.write(fd, b"%08x" % value)
    finally:
        disk.close(fd)
    return value
