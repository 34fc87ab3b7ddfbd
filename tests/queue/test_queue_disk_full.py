"""A disk that is full or fails: refused, nothing half-done visible, and well again when the disk is."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, Remote, copy, want
from support.wait import wait_until
from test_queue_manager import running

from pymx.queue.files import Disk
from pymx.queue.queue import Queue
from pymx.queue.state import State


class FullDisk(Disk):
    """Fails in one call, for as long as `failing` names it."""

    failing = ""
    only_large = False

    def _fail(self, call: str) -> None:
        if self.failing == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, directory: Path) -> int:
        self._fail("create")
        return super().create(directory)

    def write(self, fd: int, pieces: list[bytes]) -> None:
        if not self.only_large or sum(map(len, pieces)) > 10_000:
            self._fail("write")
        super().write(fd, pieces)

    def sync(self, fd: int) -> None:
        self._fail("sync")
        super().sync(fd)

    def link(self, fd: int, directory_fd: int, name: str) -> None:
        self._fail("link")
        super().link(fd, directory_fd, name)

    def sync_directory(self, directory_fd: int) -> None:
        self._fail("sync_directory")
        super().sync_directory(directory_fd)


@pytest.mark.parametrize("call", ["create", "write", "sync", "link", "sync_directory"])
async def test_a_failing_disk_refuses_and_leaves_nothing(tmp_path: Path, call: str) -> None:
    """452 to the client, who tries again; no file without rows, no rows without a file."""
    disk = FullDisk()
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=disk)
    await queue.start()
    queue.wake = lambda: None
    try:
        disk.failing = call
        with pytest.raises(OSError, match="No space"):
            await queue.enqueue([copy("a@one.test"), copy("b@two.test")])
        assert list((tmp_path / "queue" / "messages").iterdir()) == []
        assert (await queue.take(want())).items == []
        disk.failing = ""
        await queue.enqueue([copy("a@one.test")])
        assert len((await queue.take(want())).items) == 1
    finally:
        await queue.close()


async def test_one_message_that_does_not_fit_leaves_the_others_alone(tmp_path: Path) -> None:
    """They share a commit, not a fate."""
    disk = FullDisk()
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=disk)
    await queue.start()
    queue.wake = lambda: None
    try:
        disk.failing, disk.only_large = "write", True
        messages = [copy("a@one.test"), copy("b@one.test", text="x" * 20_000), copy("c@one.test")]
        results = await asyncio.gather(*(queue.enqueue([m]) for m in messages), return_exceptions=True)
        assert [isinstance(r, OSError) for r in results] == [False, True, False]
        assert len((await queue.take(want())).items) == 2
    finally:
        await queue.close()


async def test_results_that_can_not_be_recorded_are_kept_until_they_can(tmp_path: Path) -> None:
    """The runner goes on when the disk does; nothing is sent a second time meanwhile."""
    disk = FullDisk()
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=disk)
    await queue.start()
    remote = Remote()
    try:
        async with running(queue, remote):
            await queue.enqueue([copy("a@one.test", "b@two.test")])
            disk.failing = "sync"  # the marks of the half-done message
            await wait_until(lambda: len(remote.attempts) == 2)
            disk.failing = ""
            await wait_until(lambda: not list((tmp_path / "queue" / "messages").iterdir()))
    finally:
        await queue.close()
    assert len(remote.attempts) == 2


class FussyDisk(Disk):
    """Linking leaves a file descriptor whose close fails, as it may on a network file system."""

    def link(self, fd: int, directory_fd: int, name: str) -> None:
        super().link(fd, directory_fd, name)
        os.close(fd)


async def test_a_close_that_fails_neither_undoes_nor_stops_anything(tmp_path: Path) -> None:
    """What was synced is on disk; the thread that commits must outlive everything."""
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=FussyDisk())
    await queue.start()
    queue.wake = lambda: None
    try:
        for _ in range(2):
            async with asyncio.timeout(5):
                await queue.enqueue([copy("a@b.test")])
    finally:
        await queue.close()


class StickyDisk(Disk):
    """Files can't be unlinked."""

    def unlink(self, directory_fd: int, name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_a_file_that_cannot_be_removed_refuses_nobody(tmp_path: Path) -> None:
    """Its message is done with, in a commit that others share; the next runner removes it."""
    remote = Remote()
    queue = Queue(tmp_path / "queue", OUTBOUND, disk=StickyDisk())
    await queue.start()
    try:
        async with running(queue, remote):
            await queue.enqueue([copy("a@b.test")])
            await wait_until(lambda: len(remote.attempts) == 1)
            await wait_until(lambda: _count(queue))
            await queue.enqueue([copy("c@b.test")])
            await wait_until(lambda: _count(queue))
        assert remote.served == ["a@b.test", "c@b.test"]
    finally:
        await queue.close()


async def _count(queue: Queue) -> bool:
    return await queue._call(State.count) == 0
