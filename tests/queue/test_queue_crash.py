"""kill -9 at random moments: every accepted message arrives, few arrive twice, and a damaged state is made anew."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, Remote, copy, want
from support.wait import wait_for, wait_until
from test_queue_manager import running

from pymx.queue.queue import Queue
from pymx.queue.state import State

_PROGRAM = Path(__file__).with_name("crashing_queue.py")
_ROUNDS = 6


def start(directory: Path, prefix: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, _PROGRAM, directory, prefix], stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kill it; what it said it had accepted."""
    process.kill()
    said = process.communicate()[0].splitlines()
    return [line.split()[1] for line in said if line.count(" ") == 1 and line.startswith("accepted ")]


@pytest.mark.parametrize("lose_state", [False, True])
def test_killed_at_any_moment_no_accepted_message_is_lost(tmp_path: Path, lose_state: bool) -> None:
    """250 means durable. With `lose_state` the database is damaged by each crash, too."""
    accepted: list[str] = []
    for n in range(_ROUNDS):
        process = start(tmp_path, f"r{n}")
        assert process.stdout is not None
        first = process.stdout.readline()  # it is at work
        accepted.append(first.split()[1])
        time.sleep(random.uniform(0.01, 0.3))  # the moment of the crash is the one thing here that is left to chance
        accepted += kill(process)
        if lose_state:
            (tmp_path / "queue" / "state.sqlite").write_bytes(b"not a database")
            for suffix in ("-wal", "-shm"):
                (tmp_path / "queue" / f"state.sqlite{suffix}").unlink(missing_ok=True)
    process = start(tmp_path, "")
    try:
        wait_for(lambda: not list((tmp_path / "queue" / "messages").iterdir()), timeout_s=30, what="drained")
    finally:
        kill(process)
    counts = Counter((tmp_path / "delivered").read_text().split())
    assert len(accepted) > _ROUNDS
    assert [name for name in accepted if counts[name] < 2] == []
    doubled = sum(count > 2 for count in counts.values())
    print(f"{len(accepted)} accepted, {doubled} doubled in {_ROUNDS} crashes")
    # only what was being recorded when the process was killed may come again
    assert doubled <= _ROUNDS * 60


async def test_a_state_that_is_damaged_at_start_is_rebuilt_from_the_files(tmp_path: Path) -> None:
    """Moved aside, not deleted; half-done messages go on with the recipients that wait."""
    directory = tmp_path / "queue"
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    remote = Remote()
    await queue.enqueue([copy("a@one.test", "b@two.test")])
    taken = await queue.take(want())
    from test_queue_power_cut import Journal, _deliver

    await _deliver(queue, Journal(), next(i for i in taken.items if i.destination == "one.test"))
    await queue.close()
    (directory / "state.sqlite").write_bytes(b"\0" * 8192)
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    async with running(queue, remote):
        await wait_until(lambda: not list((directory / "messages").iterdir()))
    await queue.close()
    assert remote.served == ["b@two.test"]
    assert [p.name.partition("-")[0] for p in directory.glob("state.sqlite.damaged*")] == ["state.sqlite.damaged"]


async def test_a_state_damaged_under_a_running_queue_is_rebuilt(tmp_path: Path) -> None:
    """Two processes have it open; both go on with the new one, and nothing is lost."""
    directory = tmp_path / "queue"
    one, two = Queue(directory, OUTBOUND), Queue(directory, OUTBOUND)
    await one.start()
    await two.start()
    try:
        await one.enqueue([copy("a@one.test")])
        for suffix in ("", "-wal", "-shm"):
            (directory / f"state.sqlite{suffix}").unlink(missing_ok=True)
        await one.enqueue([copy("b@one.test")])
        await two.enqueue([copy("c@one.test")])
        remote = Remote()
        async with running(two, remote):
            await wait_until(lambda: len(remote.served) == 3)
    finally:
        await one.close()
        await two.close()
    assert sorted(remote.served) == ["a@one.test", "b@one.test", "c@one.test"]


async def test_pages_overwritten_under_a_running_queue_are_noticed(tmp_path: Path) -> None:
    """The runner checks the whole database when it starts."""
    directory = tmp_path / "queue"
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    await queue.enqueue([copy(f"a{n}@one.test") for n in range(200)])
    await queue.close()
    data = bytearray((directory / "state.sqlite").read_bytes())
    data[4096:] = b"\xaa" * (len(data) - 4096)
    (directory / "state.sqlite").write_bytes(data)
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    remote = Remote()
    async with running(queue, remote):
        await wait_until(lambda: len(remote.served) == 200)
    await queue.close()


async def test_a_damaged_message_file_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    """A person can look at it; nothing waits for it for ever."""
    directory = tmp_path / "queue"
    queue = Queue(directory, OUTBOUND)
    queue.wake = lambda: None  # nothing kept in memory for the runner: it must read the files
    await queue.start()
    remote = Remote()
    message = copy("a@one.test")
    await queue.enqueue([message, copy("b@one.test")])
    await queue.close()
    (directory / "messages" / message.queue_id).write_bytes(b"pymx-queue-1 what")
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    async with running(queue, remote):
        await wait_until(lambda: not list((directory / "messages").iterdir()))
    await queue.close()
    assert remote.served == ["b@one.test"]
    assert [p.name for p in (directory / "damaged").iterdir()] == [message.queue_id]


def test_a_commit_is_synced(tmp_path: Path) -> None:
    """The setting that the power-cut model relies on: WAL with synchronous FULL."""
    state = State(tmp_path / "state.sqlite")
    state.open(create=True)
    try:
        with state.transaction():
            assert state.db.execute("PRAGMA synchronous").fetchone()[0] == 2
        with state.transaction(durable=False):
            assert state.db.execute("PRAGMA synchronous").fetchone()[0] == 1
        with state.transaction():
            assert state.db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert state.db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    finally:
        state.close()
