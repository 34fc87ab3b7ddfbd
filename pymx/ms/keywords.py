"""`dovecot-keywords`: the names of the keyword letters `a`–`z` of one mailbox.

    <0–25> <name>

Names are caseless. The file is written under the uidlist lock and `dovecot-keywords.lock`, synced, renamed, and its
mtime grows in whole seconds, or Dovecot does not look again.
"""

from __future__ import annotations

import os
import time

from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.names import LETTERS

NAME = b"dovecot-keywords"


def parse(data: bytes) -> list[str]:
    """Names by letter number, "" where there is none; lines that say nothing are skipped."""
    names = [""] * LETTERS
    for line in data.split(b"\n"):
        number, space, name = line.partition(b" ")
        if space and number.isdigit() and len(number) <= 2 and int(number) < LETTERS and name:
            names[int(number)] = name.decode("utf-8", "replace")
    return names


def to_bytes(names: list[str]) -> bytes:
    return b"".join(b"%d %s\n" % (n, name.encode()) for n, name in enumerate(names[:LETTERS]) if name)


def read(directory: bytes) -> list[str]:
    """The names of the mailbox in `directory`; none if there is no file."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return parse(file.read())
    except FileNotFoundError:
        return [""] * LETTERS


def write(disk: Disk, directory: bytes, names: list[str], mode: int) -> None:
    """Replace the file; the names are durable when this returns. The caller holds the uidlist lock."""
    path = os.path.join(directory, NAME)
    # Dovecot renames its lock file into place. Ours keeps the owner's name in it, so that a kill is seen at once.
    with DotLock(disk, path):
        try:
            old = int(os.stat(path).st_mtime)
        except FileNotFoundError:
            old = 0
        disk.replace_file(path, path + b".tmp", to_bytes(names), mode, mtime_s=max(int(time.time()), old + 1))
    disk.sync_directory(directory)
