"""What deliveries that never ended left in `tmp/`: removed after 36 hours (Maildir).

Done for all accounts once a day, without opening any: no delivery of anybody takes that long, so no lock is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

TMP_S = 36 * 3600
_MAX_DEPTH = 12


def sweep(root: Path, *, now: float) -> int:
    """Remove old files from every `tmp/` of a mailbox below the mail root; how many. What can't be removed stays."""
    return sum(_sweep_one(path, now - TMP_S) for path in _tmps(os.fsencode(root), _MAX_DEPTH))


def _tmps(directory: bytes, depth: int) -> Iterator[bytes]:
    try:
        with os.scandir(directory) as entries:
            below = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    if b"cur" in below and b"tmp" in below:
        yield os.path.join(directory, b"tmp")
    for name in below:
        if depth and name not in (b"cur", b"new", b"tmp"):
            yield from _tmps(os.path.join(directory, name), depth - 1)


def _sweep_one(directory: bytes, before: float) -> int:
    removed = 0
    try:
        with os.scandir(directory) as entries:
            old = [
                e.path
                for e in entries
                if e.is_file(follow_symlinks=False) and e.stat(follow_symlinks=False).st_mtime < before
            ]
    except OSError:
        return 0
    for path in old:
        try:
            os.unlink(path)
        except OSError:
            continue
        removed += 1
    return removed
