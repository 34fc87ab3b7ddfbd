"""A queue of which only a part is in memory: it starts at once, new mail goes out, a page of it comes quickly.

The long form (-m soak) has 100,000 messages.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from pathlib import Path

import pytest
from queue_samples import Remote, copy
from support.wait import wait_until

from pymx.config.model import Outbound
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.files import Disk
from pymx.queue.item import Attempt, Outcome
from pymx.queue.manager import Manager
from pymx.queue.queue import Queue
from pymx.queue.state import State
from pymx.queue.window import PAGE, WINDOW

DESTINATIONS = 200


class UnsyncedDisk(Disk):
    """For filling a queue quickly."""

    def sync(self, fd: int) -> None:
        pass

    def sync_directory(self, directory_fd: int) -> None:
        pass


class Stuck(Remote):
    """Nobody answers but new.test."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def attempt(self, attempt: Attempt) -> list[Outcome]:
        outcomes = await super().attempt(attempt)
        if attempt.destination != "new.test":
            await self.over.wait()
        return outcomes


async def fill(directory: Path, messages: int) -> None:
    """All were tried before, and are due again."""
    queue = Queue(directory, Outbound(max_queue_messages=messages + 10), disk=UnsyncedDisk())
    queue.wake = lambda: None
    await queue.start()
    try:
        for start in range(0, messages, 1000):
            end = min(start + 1000, messages)
            await queue.enqueue([copy(f"x{n}@d{n % DESTINATIONS}.test") for n in range(start, end)])
    finally:
        await queue.close()
    state = State(directory / "state.sqlite")
    state.open()
    try:
        with state.transaction():
            state.db.execute("UPDATE delivery SET fresh = 0, attempts = 1, next_s = 1")
    finally:
        state.close()


def memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.mark.parametrize(
    "messages", [10_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
async def test_a_long_queue_starts_at_once_and_takes_little_memory(tmp_path: Path, messages: int) -> None:
    """[outbound] max_queue_messages may be any number: what is in memory is a window."""
    directory = tmp_path / "queue"
    await fill(directory, messages)
    remote, turns = Stuck(), itertools.count()
    before_mb, started = memory_mb(), time.monotonic()
    queue = Queue(directory, Outbound(max_queue_messages=messages + 10))
    await queue.start()
    state = State(directory / "state.sqlite")
    state.open()
    try:
        manager = Manager(queue, remote.attempt, remote.gave_up, remote.delayed)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await wait_until(lambda: len(remote.attempts) > 0)
            assert time.monotonic() - started < 5
            await queue.enqueue([copy("eve@new.test")])
            await wait_until(lambda: "eve@new.test" in remote.served)

            def leased() -> int:
                (count,) = state.db.execute("SELECT count(*) FROM delivery WHERE lease != 0").fetchone()
                return int(count)

            await wait_until(lambda: leased() >= WINDOW - PAGE)
            await wait_until(lambda: next(turns) > 50)
            assert leased() <= WINDOW + Outbound().max_deliveries < messages
            assert memory_mb() - before_mb < 60
            asked = time.monotonic()
            assert len(browse.lines(state, Selection(), limit=1000, offset=messages // 2)) == 1000
            assert time.monotonic() - asked < 0.2
            manager.stop()
            remote.over.set()
    finally:
        state.close()
        await queue.close()
