"""The lock on `<directory>/lock` as pymxctl takes it, for one step at a time; the committer holds the file open.

Shared while files and rows are changed together, exclusive while the state is made anew or compared with the files.
Whoever waited for it must look whether the state was replaced meanwhile (`State.was_replaced`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "lock"


@contextmanager
def shared(directory: Path) -> Iterator[None]:
    """No rebuild goes on. Without the file no process has had this queue open, and there is nobody to wait for."""
    try:
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    with _held(fd, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """No process is between a file and its rows."""
    with _held(os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX):
        yield


@contextmanager
def _held(fd: int, mode: int) -> Iterator[None]:
    try:
        fcntl.flock(fd, mode)
        yield
    finally:
        os.close(fd)
