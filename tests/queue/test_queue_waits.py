"""Who waits for whose disk writes: nobody for another's file, no new message for the removal of an old one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, copy, want
from support.wait import wait_until

from pymx.queue.files import Disk
from pymx.queue.item import Outcome, Result
from pymx.queue.queue import Queue
from pymx.queue.state import Finished

LARGE = 300_000


class GatedDisk(Disk):
    """Large files are synced, directories synced and files unlinked when a gate is open."""

    def __init__(self) -> None:
        self.gates = {call: threading.Event() for call in ("sync", "sync_directory", "unlink")}
        self.waiting: list[str] = []
        for gate in self.gates.values():
            gate.set()

    def _wait(self, call: str) -> None:
        self.waiting.append(call)
        self.gates[call].wait(60)
        self.waiting.remove(call)

    def write(self, fd: int, pieces: list[bytes]) -> None:
        super().write(fd, pieces)
        if sum(map(len, pieces)) > LARGE:
            self._wait("sync")

    def sync_directory(self, directory_fd: int) -> None:
        self._wait("sync_directory")
        super().sync_directory(directory_fd)

    def unlink(self, directory_fd: int, name: str) -> None:
        self._wait("unlink")
        super().unlink(directory_fd, name)


@pytest.fixture
def disk() -> GatedDisk:
    return GatedDisk()


@pytest.fixture
async def queue(tmp_path: Path, disk: GatedDisk) -> AsyncIterator[Queue]:
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=disk)
    await queue.start()
    queue.wake = lambda: None
    yield queue
    for gate in disk.gates.values():
        gate.set()
    await queue.close()


async def test_a_small_message_does_not_wait_for_the_file_of_a_large_one(queue: Queue, disk: GatedDisk) -> None:
    """A hundred megabytes may take a slow disk half a minute."""
    disk.gates["sync"].clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        large = group.create_task(queue.enqueue([copy("a@b.test", text="x" * LARGE)]))
        await wait_until(lambda: disk.waiting == ["sync"])
        await queue.enqueue([copy("c@d.test")])
        assert not large.done()
        disk.gates["sync"].set()


async def test_a_new_message_does_not_wait_for_the_removal_of_one_that_has_arrived(
    queue: Queue, disk: GatedDisk
) -> None:
    """They share a commit, behind which nothing of the new one is left to be done."""
    await queue.enqueue([copy("a@b.test")])
    (item,) = (await queue.take(want())).items
    recipient = copy("a@b.test").envelope.recipients[0]
    arrived = Finished(item, 1.0, [(0, Outcome(recipient, Result.DELIVERED, "2.0.0", "250 ok"))], 0.0, whole=True)
    disk.gates["sync_directory"].clear()
    disk.gates["unlink"].clear()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(queue.enqueue([copy("c@d.test")]))
        await wait_until(lambda: disk.waiting == ["sync_directory"])
        recorded = group.create_task(queue.record([arrived]))
        accepted = group.create_task(queue.enqueue([copy("e@f.test")]))
        # both wait for the commit that is held up, and will share the next one
        await wait_until(lambda: queue._committer._jobs.qsize() == 2)
        disk.gates["sync_directory"].set()
        await accepted
        await wait_until(lambda: disk.waiting == ["unlink"])
        assert not recorded.done()
        disk.gates["unlink"].set()
