"""The small databases that all processes of a server share: begun by several of them at once, at its first start."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import first_start_process
import pytest
from first_start_process import OPEN

from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.config.model import Limits

PROCESSES = 3
ROUNDS = 6
_PATIENCE_S = 30
_HOLD = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE');"
    "print('held', flush=True); sys.stdin.read(); db.execute('COMMIT'); db.close()"
)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process
        finally:
            process.stdin.close()
            process.wait(_PATIENCE_S)


# the queue's is made under a lock of its own, that of reports begins with a statement that waits
@pytest.mark.parametrize("name", sorted(OPEN.keys() - {"queue", "reports"}))
def test_a_database_that_another_process_makes_just_now_is_waited_for(name: str, tmp_path: Path) -> None:
    """SQLite itself does not wait in the switch to WAL, whatever its timeout is: "database is locked"."""
    file, open_it = OPEN[name]
    with ThreadPoolExecutor(1) as thread:
        with running("-c", _HOLD, str(tmp_path / file)):
            opened = thread.submit(open_it, tmp_path)
            with contextlib.suppress(TimeoutError):
                opened.result(0.3)
        opened.result(_PATIENCE_S)
    db = sqlite3.connect(tmp_path / file)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


@pytest.mark.parametrize("name", sorted(OPEN))
def test_several_processes_begin_a_database_at_once(name: str, tmp_path: Path) -> None:
    """One makes the tables, the others find them, and nobody is told anything but that it is open."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(first_start_process.__file__, name)) for _ in range(PROCESSES)]
        for number in range(ROUNDS):
            directory = tmp_path / str(number)
            directory.mkdir()
            for process in processes:
                print(directory, file=process.stdin, flush=True)
            assert [process.stdout.readline() for process in processes] == ["open\n"] * PROCESSES  # type: ignore[union-attr]
            assert not [path for path in directory.rglob("*") if "damaged" in path.name]


def test_a_second_look_at_the_limits_leaves_the_locks_of_the_first(tmp_path: Path) -> None:
    """The gauges open the file again in the process that counts. Were its locks gone with that (POSIX takes all of a
    process with the first file that it closes), the next pymxctl would delete the journal that it writes to."""
    path, rules = tmp_path / FILE_NAME, Rules.of(Limits())
    state = LimitState(path, rules)
    LimitState(path, rules).close()
    subprocess.run(
        [sys.executable, first_start_process.__file__, "limits"],
        input=f"{tmp_path}\n", stdout=subprocess.DEVNULL, text=True, check=True, timeout=_PATIENCE_S,
    )  # fmt: skip
    journal = path.with_name(path.name + "-wal")
    assert journal.exists()
    assert os.stat(journal).st_nlink == 1
    state.close()
