"""The runner's part of pacing: what is put back, told, logged and kept over a restart."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import Remote, copy, outcomes, want
from support.wait import wait_until
from test_queue_manager import EVERYTHING, files_in, opened, running, state

from pymx.config.model import Outbound
from pymx.queue import browse
from pymx.queue.files import Disk
from pymx.queue.item import Attempt, Outcome, Result
from pymx.queue.place import Kind, Limits, Place, Strain
from pymx.queue.queue import Queue
from pymx.queue.state import State

__all__ = ["state"]  # a fixture

DOWN = Strain(Kind.DOWN, "connection refused (connect)")
SLOW = Strain(Kind.SLOW, "421 4.7.28 rate limited", 900.0)


class Straining(Remote):
    """Domains whose hosts are down or say slower."""

    def __init__(self, strains: dict[str, Strain]) -> None:
        super().__init__()
        self.strains = strains

    async def attempt(self, attempt: Attempt) -> list[Outcome]:
        strain = self.strains.get(attempt.destination)
        if strain is None:
            return await super().attempt(attempt)
        self.attempts.append(attempt)
        return [replace(o, strain=strain) for o in outcomes(attempt, Result.DEFERRED, "451 4.4.1 no")]


def grouped(limits: Limits, **sites: str) -> Callable[[str], object]:
    async def find_place(destination: str) -> Place:
        await asyncio.sleep(0)
        site = sites.get(destination.partition(".")[0], destination)
        return Place(site, site, limits, direct=True)

    return find_place


async def test_a_dead_destination_is_not_tried_by_every_message(tmp_path: Path, state: Callable[[], State]) -> None:
    """Some find out; the others wait, and say why. Two domains with the same mail servers share that."""
    remote = Straining({"a.test": DOWN, "b.test": DOWN})
    places = grouped(Limits(5, 100), a="mx.hoster.test", b="mx.hoster.test")
    async with opened(tmp_path / "queue") as queue, running(queue, remote, find_place=places):
        await queue.enqueue([copy(f"x{n}@{'ab'[n % 2]}.test") for n in range(40)] + [copy("y@fine.test")])
        await wait_until(lambda: {x.state for x in browse.lines(state(), EVERYTHING)} == {"deferred"})
        lines = browse.lines(state(), EVERYTHING)
        assert len(lines) == 40
        assert len(remote.attempts) - len(remote.served[-1:]) <= 10
        put_back = [x for x in lines if x.attempts == 0]
        assert len(put_back) >= 30
        assert {x.reason for x in put_back} == {f"not tried before its time: {DOWN.reason}"}
        assert all(290 < x.next_s - time.time() < 310 for x in put_back)
        assert "y@fine.test" in remote.served


async def test_pymxctl_retry_tries_dead_destinations_at_once(tmp_path: Path, state: Callable[[], State]) -> None:
    """The administrator has mended something."""
    remote = Straining({"a.test": DOWN})
    async with opened(tmp_path / "queue") as queue, running(queue, remote) as manager:
        await queue.enqueue([copy("x@a.test") for _ in range(10)])
        await wait_until(lambda: {x.state for x in browse.lines(state(), EVERYTHING)} == {"deferred"})
        remote.strains.clear()
        browse.retry(state(), EVERYTHING, time.time(), release=False)
        manager.changed()
        await wait_until(lambda: not files_in(tmp_path))


async def test_pauses_survive_a_restart(tmp_path: Path, state: Callable[[], State]) -> None:
    """A provider that said slower is left alone by the next runner, too."""
    remote = Straining({"a.test": SLOW})
    places = grouped(Limits(5, 100), a="big", b="big")
    async with opened(tmp_path / "queue") as queue:
        async with running(queue, remote, find_place=places):
            await queue.enqueue([copy("x@a.test")])
            await wait_until(lambda: {x.state for x in browse.lines(state(), EVERYTHING)} == {"deferred"})
        assert json.loads((tmp_path / "queue" / "pace.json").read_bytes())["big"]["reason"] == SLOW.reason
        async with running(queue, remote, find_place=places):
            await queue.enqueue([copy("x@b.test"), copy("y@fine.test")])
            await wait_until(lambda: [x.state for x in browse.lines(state(), EVERYTHING)] == ["deferred"] * 2)
        assert remote.served[1:] == ["y@fine.test"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"big": 7}', b"\xff", b'{"big": {"paused_until": "x"}}'])
async def test_a_damaged_pace_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """Nothing hangs on it."""
    remote = Remote()
    async with opened(tmp_path / "queue") as queue:
        (tmp_path / "queue" / "pace.json").write_bytes(content)
        async with running(queue, remote, find_place=grouped(Limits(5, 100), a="big")):
            await queue.enqueue([copy("x@a.test")])
            await wait_until(lambda: not files_in(tmp_path))


async def test_paces_that_cannot_be_saved_are_no_error_at_the_end(tmp_path: Path) -> None:
    """A full disk, for one."""
    async with opened(tmp_path / "queue") as queue:
        (tmp_path / "queue" / "pace.json.new").mkdir()
        async with running(queue, Remote()):
            pass


async def test_a_look_for_new_mail_does_not_go_over_all_deferred_mail_again(tmp_path: Path) -> None:
    """Where reading stopped is the end, also when nothing new was there: 100,000 deferred rows take time."""
    async with opened(tmp_path / "queue") as queue:
        await queue.enqueue([copy(f"x{n}@a.test") for n in range(3)])
        later = want(after_id=1)
        assert [item.delivery for item in (await queue.take(later)).items] == [2, 3]
        again = await queue.take(want(after_id=0))
        assert [item.delivery for item in again.items] == [1]
        assert again.after_id == 3


async def test_what_is_over_the_rate_is_put_back_in_order(tmp_path: Path, state: Callable[[], State]) -> None:
    """Each with the time at which the rate will let it through."""
    remote = Remote()
    places = grouped(Limits(5, 100, per_hour=6), a="big")
    async with opened(tmp_path / "queue") as queue, running(queue, remote, find_place=places):
        for n in range(4):
            await queue.enqueue([copy(f"x{n}@a.test")])
        await wait_until(lambda: [x.state for x in browse.lines(state(), EVERYTHING)] == ["deferred"] * 3)
        gaps = [round(x.next_s - time.time(), -1) for x in browse.lines(state(), EVERYTHING)]
        assert gaps == [600, 1200, 1800]
    assert remote.served == ["x0@a.test"]


async def test_a_warm_up_holds_back_direct_mail_only(tmp_path: Path, state: Callable[[], State]) -> None:
    """[outbound] warm_up_since; what goes elsewhere goes on."""
    remote = Remote()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    outbound = Outbound(warm_up_since=today, warm_up_first=3)
    places = grouped(Limits(5, 100), a="big", b="big")
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote, find_place=places):
        await queue.enqueue([copy(f"x{n}@{'ab'[n % 2]}.test") for n in range(8)] + [copy("y@c.test")])
        await wait_until(lambda: [x.state for x in browse.lines(state(), EVERYTHING)] == ["deferred"] * 5)
        assert all("warm-up: 3 messages a day" in x.reason for x in browse.lines(state(), EVERYTHING))
        assert all(x.next_s % 86_400 == 0 for x in browse.lines(state(), EVERYTHING))
    assert len(remote.served) == 4


async def test_what_waits_for_a_dead_destination_is_told_of_and_given_up_in_time(tmp_path: Path) -> None:
    """Without an attempt of its own: the lifetime of a message does not stop."""
    remote = Straining({"a.test": DOWN})
    outbound = Outbound(retry_first_s=1, retry_max_s=3600, lifetime_s=2, delay_notice_s=1)
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        await queue.enqueue([copy(f"x{n}@a.test") for n in range(120)])
        await wait_until(lambda: not files_in(tmp_path))
    assert sum(len(report.outcomes) for report in remote.reports) == 120
    assert {o.status for report in remote.reports for o in report.outcomes} == {"5.4.7"}
    assert len(remote.attempts) <= 10
    assert len(remote.late) <= 120


async def test_a_place_that_can_not_be_found_out_is_the_destination_itself(tmp_path: Path) -> None:
    """A bug there must not keep mail back."""

    async def broken(destination: str) -> Place:
        raise ZeroDivisionError(destination)

    remote = Remote()
    async with opened(tmp_path / "queue") as queue, running(queue, remote, find_place=broken):
        await queue.enqueue([copy("x@a.test")])
        await wait_until(lambda: not files_in(tmp_path))


async def test_slow_look_ups_keep_nobody_waiting(tmp_path: Path) -> None:
    """Twenty at a time; those that are known go on."""
    gate = asyncio.Event()

    async def find_place(destination: str) -> Place:
        if destination.startswith("slow"):
            await gate.wait()
        return Place(destination, destination, Limits(5, 100))

    remote = Remote()
    async with opened(tmp_path / "queue") as queue, running(queue, remote, find_place=find_place):
        await queue.enqueue([copy("x@known.test")])
        await wait_until(lambda: not files_in(tmp_path))
        await queue.enqueue([copy(f"x@slow{n}.test") for n in range(50)])
        await queue.enqueue([copy("y@known.test")])
        await wait_until(lambda: "y@known.test" in remote.served)
        gate.set()
        await wait_until(lambda: not files_in(tmp_path))
    assert len(remote.served) == 52


class UnmarkableDisk(Disk):
    """One file can't be written to."""

    inode = 0

    def overwrite(self, fd: int, data: bytes, offset: int) -> None:
        if os.fstat(fd).st_ino == self.inode:
            raise OSError(errno.EIO, "Input/output error")
        super().overwrite(fd, data, offset)


async def test_a_file_that_can_not_be_marked_does_not_hold_up_the_others(
    tmp_path: Path, state: Callable[[], State]
) -> None:
    """Its result is recorded all the same, with those that ended together with it."""
    remote = Remote({"late.test": Result.DEFERRED})
    disk = UnmarkableDisk()
    queue = Queue(tmp_path / "queue", Outbound(), disk=disk)
    await queue.start()
    try:
        bad = copy("a@one.test", "b@late.test")
        await queue.enqueue([bad])
        disk.inode = (tmp_path / "queue" / "messages" / bad.queue_id).stat().st_ino
        await queue.enqueue([copy("a@one.test", "b@late.test") for _ in range(10)])
        async with running(queue, remote):
            await wait_until(lambda: [x.state for x in browse.lines(state(), EVERYTHING)] == ["deferred"] * 11)
            assert {x.recipients for x in browse.lines(state(), EVERYTHING)} == {("b@late.test",)}
        assert remote.served.count("a@one.test") == 11
    finally:
        await queue.close()
