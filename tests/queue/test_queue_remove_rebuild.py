"""`pymxctl queue remove` and the like beside a rebuild: each step of one is before the other or after it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, copy

from pymx.queue import browse, lock
from pymx.queue.browse import Selection
from pymx.queue.files import Disk, Files
from pymx.queue.item import Copy
from pymx.queue.queue import Queue
from pymx.queue.rebuild import rebuild
from pymx.queue.state import State

EVERYTHING = Selection(everything=True)


async def fill(directory: Path, *messages: Copy) -> None:
    queue = Queue(directory, OUTBOUND)
    queue.wake = lambda: None
    await queue.start()
    for message in messages:
        await queue.enqueue([message])
    await queue.close()


@contextmanager
def opened(directory: Path, disk: Disk | None = None) -> Iterator[tuple[State, Files]]:
    state, files = State(directory / "state.sqlite"), Files(directory, disk)
    state.open()
    files.open()
    try:
        yield state, files
    finally:
        state.close()
        files.close()


def rebuild_now(directory: Path) -> int:
    """As `pymxctl queue rebuild` does it once it has the lock."""
    state, files = State(directory / "state.sqlite"), Files(directory)
    files.open()
    try:
        return rebuild(state, files, [])
    finally:
        state.close()
        files.close()


class Eager(Disk):
    """Another process that wants to rebuild, and gets to it before each step on a file if nothing forbids it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.wanted = 0

    def _step(self) -> None:
        self.wanted += 1
        fd = os.open(self._directory / "lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rebuild_now(self._directory)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)

    def overwrite(self, fd: int, data: bytes, offset: int) -> None:
        self._step()
        super().overwrite(fd, data, offset)

    def unlink(self, directory_fd: int, name: str) -> None:
        self._step()
        super().unlink(directory_fd, name)


def waiting(directory: Path) -> dict[str, list[str]]:
    """Recipients by message, as the state has them; each with its file."""
    with opened(directory) as (state, files):
        found: dict[str, list[str]] = {}
        for line in browse.lines(state, Selection()):
            found.setdefault(line.queue_id, []).extend(line.recipients)
        assert sorted(found) == files.names()
        return found


async def test_remove_finds_the_state_that_a_rebuild_put_in_place(tmp_path: Path) -> None:
    """Opened before the rebuild: what it removes in the old state would have come back as a row without a file."""
    first, second = copy("a@one.test"), copy("b@two.test")
    await fill(tmp_path, first, second)
    with opened(tmp_path) as (state, files):
        assert rebuild_now(tmp_path) == 2
        assert browse.remove(state, files, Selection([first.queue_id])) == 1
    assert waiting(tmp_path) == {second.queue_id: ["b@two.test"]}


async def test_hold_and_release_find_the_state_that_a_rebuild_put_in_place(tmp_path: Path) -> None:
    """A hold in the old state would have been none."""
    await fill(tmp_path, copy("a@one.test"))
    with opened(tmp_path) as (state, _):
        rebuild_now(tmp_path)
        assert browse.hold(state, EVERYTHING) == 1
        with opened(tmp_path) as (fresh, _):
            assert [line.state for line in browse.lines(fresh, EVERYTHING)] == ["held"]
        rebuild_now(tmp_path)
        assert browse.hold(state, EVERYTHING) == 1
        assert browse.retry(state, EVERYTHING, time.time(), release=True) == 1
    with opened(tmp_path) as (fresh, _):
        assert [line.state for line in browse.lines(fresh, EVERYTHING)] == ["deferred"]


@pytest.mark.parametrize(
    ("selection", "left"),
    [(EVERYTHING, []), (Selection(domain="two.test"), [["a@one.test"], ["d@three.test"]])],
    ids=["whole messages", "recipients of a domain"],
)
async def test_a_rebuild_sees_no_half_of_a_removal(tmp_path: Path, selection: Selection, left: list[list[str]]) -> None:
    """Between the commit and the end of a file, or a mark and its commit, it would bring back what is removed."""
    await fill(tmp_path, copy("a@one.test", "b@two.test"), copy("c@two.test"), copy("d@three.test"))
    eager = Eager(tmp_path)
    with opened(tmp_path, eager) as (state, files):
        assert browse.remove(state, files, selection) == (2 if left else 3)
    assert eager.wanted
    assert sorted(waiting(tmp_path).values()) == left
    rebuild_now(tmp_path)
    assert sorted(waiting(tmp_path).values()) == left


async def test_what_came_after_the_command_is_not_removed_after_a_rebuild_either(tmp_path: Path) -> None:
    """The rebuilt state has new numbers for all of it; the time of arrival tells."""
    old, new = copy("a@one.test"), copy("b@two.test")
    await fill(tmp_path, old)
    with opened(tmp_path) as (state, files):
        fd = files.write(new, time.time() + 60)
        files.link(fd, new.queue_id)
        os.close(fd)
        rebuild_now(tmp_path)
        assert browse.remove(state, files, EVERYTHING) == 1
    assert list(waiting(tmp_path)) == [new.queue_id]


async def test_a_long_queue_is_removed_while_it_is_rebuilt_and_mail_is_taken(tmp_path: Path) -> None:
    """Nothing that was removed comes back, and nothing that was accepted is lost."""
    queue = Queue(tmp_path, OUTBOUND)
    queue.wake = lambda: None
    await queue.start()
    for n in range(300):
        await queue.enqueue([copy(f"x{n}@d.test", f"y{n}@e.test")])

    def rebuild_again() -> None:
        with lock.exclusive(tmp_path):
            rebuild_now(tmp_path)

    taken: list[str] = []
    try:
        with opened(tmp_path) as (state, files):
            removing = asyncio.create_task(asyncio.to_thread(browse.remove, state, files, EVERYTHING))
            while not removing.done():
                await asyncio.to_thread(rebuild_again)
                taken += await queue.enqueue([copy("new@a.test")])
            assert await removing >= 300
        taken += await queue.enqueue([copy("new@a.test")])
    finally:
        await queue.close()
    assert set(waiting(tmp_path)) <= set(taken)
    assert taken[-1] in waiting(tmp_path)
