"""SQLite files that several processes of the server begin at once, at its first start."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

_WAL_TRIES, _WAL_PAUSE_S = 100, 0.05


def make(path: Path, mode: int) -> None:
    """An empty file with that mode, unless there is one.

    That one must not be opened: closing it would take the locks of all this process's connections to it (POSIX), and
    then the next program to end its own connection deletes the journal that we write to.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode))


def to_wal(db: sqlite3.Connection) -> None:
    """SQLite's own patience does not hold for this: another process that makes the same file just now is an error."""
    for left in range(_WAL_TRIES, -1, -1):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as e:
            if not left or e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(_WAL_PAUSE_S)
