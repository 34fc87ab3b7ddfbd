"""Dovecot's lock between threads of one process, which all write the same number into it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock

THREADS, ROUNDS = 6, 1000


def test_only_one_thread_holds_a_lock(tmp_path: Path) -> None:
    """The lock file of one thread is gone when the next one's is there, often with the same inode."""
    disk, target = Disk(), os.fsencode(tmp_path / "target")
    inside: list[int] = []
    met: list[int] = []
    start = threading.Barrier(THREADS)

    def work(number: int) -> None:
        start.wait()
        for _ in range(ROUNDS):
            with DotLock(disk, target):
                inside.append(number)
                os.stat(tmp_path)  # lets other threads run
                met.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(met) == {1}
    assert len(met) == THREADS * ROUNDS
    assert not (tmp_path / "target.lock").exists()
