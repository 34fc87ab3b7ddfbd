"""`dovecot-uidvalidity`: the account's last UIDVALIDITY, so that no two mailboxes of one name share one.

The root holds `dovecot-uidvalidity` (8 hex digits) and an empty file `dovecot-uidvalidity.<8 hex>`; the next value is
taken by renaming the latter to value + 1, which only one process can do.
"""

from __future__ import annotations

import os
import time

from pymx.ms.disk import Disk

NAME = b"dovecot-uidvalidity"


def _recorded(root: bytes) -> int:
    try:
        with open(os.path.join(root, NAME), "rb") as file:
            value = int(file.read(8), 16)
    except (FileNotFoundError, ValueError):
        value = 0
    prefix = NAME + b"."
    for name in os.listdir(root):
        if name.startswith(prefix) and len(name) == len(prefix) + 8:
            try:
                value = max(value, int(name[len(prefix) :], 16))
            except ValueError:
                continue
    return value


def next_value(disk: Disk, root: bytes, mode: int = 0o600) -> int:
    """A UIDVALIDITY nobody in this account has had."""
    value = _recorded(root)
    path = os.path.join(root, NAME)
    if value:
        while True:
            try:
                disk.rename(path + b".%08x" % value, path + b".%08x" % (value + 1))
            except FileNotFoundError:
                if not os.path.exists(path + b".%08x" % (value + 1)) and not _marker_exists(root):
                    disk.close(disk.create(path + b".%08x" % (value + 1), 0o444))
                    break
                value += 1
                continue
            break
        value += 1
    else:
        value = int(time.time())
        while True:
            try:
                disk.close(disk.create(path + b".%08x" % value, 0o444))
                break
            except FileExistsError:
                value += 1
    fd = disk.create(path, mode, exclusive=False)
    try:
        disk.write(fd, b"%08x" % value)
    finally:
        disk.close(fd)
    return value


def _marker_exists(root: bytes) -> bool:
    prefix = NAME + b"."
    return any(name.startswith(prefix) for name in os.listdir(root))
