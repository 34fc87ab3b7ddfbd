"""The power goes off between any two steps: nothing acknowledged is lost, nothing recorded as delivered is sent again.

The queue does its work on a disk that writes down every call. For each point between two calls the worst disk that the
calls so far allow is built: content that was not synced is gone, names whose directory was not synced are as they were
before (or as after: both are tried), commits that were not synced are undone. On that disk a queue is started.
Taking any one of the syncs out makes the same check fail, which is tested too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, addresses, copy, outcomes, want

from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.files import DamagedFile, Disk, Files, only
from pymx.queue.item import Attempt, QueueId
from pymx.queue.queue import Queue
from pymx.queue.state import Finished, Item, State


@dataclass
class Journal:
    """What was done, in order: (what, name or inode, data)."""

    events: list[tuple[str, object, object]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, what: str, about: object = None, data: object = None) -> None:
        with self._lock:
            self.events.append((what, about, data))


class RecordingDisk(Disk):
    def __init__(self, journal: Journal, *, without: str = "") -> None:
        self._journal = journal
        self._without = without
        self._names = itertools.count()
        self._files: dict[int, int] = {}  # inode → our own number, since inodes are used again

    def create(self, directory: Path) -> int:
        fd = super().create(directory)
        self._files[os.fstat(fd).st_ino] = next(self._names)
        return fd

    def _number(self, fd: int) -> int:
        return self._files[os.fstat(fd).st_ino]

    def sync(self, fd: int) -> None:
        if self._without == "mark sync" and not os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)"):
            return
        if self._without != "content sync":
            self._journal.write("content", self._number(fd), os.pread(fd, 1 << 20, 0))

    def link(self, fd: int, directory_fd: int, name: str) -> None:
        super().link(fd, directory_fd, name)
        self._journal.write("link", name, self._number(fd))

    def unlink(self, directory_fd: int, name: str) -> None:
        super().unlink(directory_fd, name)
        self._journal.write("unlink", name)

    def sync_directory(self, directory_fd: int) -> None:
        if self._without != "name sync":
            self._journal.write("names")


class RecordingState(State):
    def __init__(self, path: Path, journal: Journal, *, without: str = "") -> None:
        super().__init__(path)
        self._journal = journal
        self._without = without

    def commit(self) -> None:
        super().commit()
        full = self.db.execute("PRAGMA synchronous").fetchone()[0] == 2 and self._without != "commit sync"
        self._journal.write("commit", full, self.db.serialize())


def build_disk(events: list[tuple[str, object, object]], directory: Path, *, unsynced_names_last: bool) -> None:
    """The worst that a power cut after these events may leave."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "messages").mkdir(parents=True)
    content: dict[object, bytes] = {}
    names: dict[object, object] = {}
    pending: list[tuple[str, object, object]] = []
    database: object = None
    for event in events:
        what, about, data = event
        if what == "content":
            assert isinstance(data, bytes)
            content[about] = data
        elif what in ("link", "unlink"):
            pending.append(event)
        elif what == "names":
            _apply(names, pending)
        elif what == "commit" and (about or database is None):
            database = data
    if unsynced_names_last:
        _apply(names, pending)
    for name, number in names.items():
        (directory / "messages" / str(name)).write_bytes(content.get(number, b""))
    assert isinstance(database, bytes)
    (directory / "state.sqlite").write_bytes(database)


def _apply(names: dict[object, object], pending: list[tuple[str, object, object]]) -> None:
    for what, name, number in pending:
        if what == "link":
            names[name] = number
        else:
            names.pop(name, None)
    pending.clear()


async def work(directory: Path, journal: Journal, *, without: str) -> None:
    """Some messages come in and go out; the journal says what was promised to whom."""
    state = RecordingState(directory / "state.sqlite", journal, without=without)
    queue = Queue(directory, OUTBOUND, disk=RecordingDisk(journal, without=without), state=state)
    queue.wake = lambda: None
    await queue.start()
    try:
        with state.transaction():
            pass  # the first commit on record: the database as it was made
        for message in (copy("a@one.test", "b@two.test", "c@one.test"), copy("d@one.test"), copy("e@two.test")):
            await queue.enqueue([message])
            journal.write("accepted", message.queue_id, tuple(addresses(message.envelope.recipients)))
        pair = [copy("f@three.test"), copy("g@here.test", local=True)]
        await queue.enqueue(pair)
        for message in pair:
            journal.write("accepted", message.queue_id, tuple(addresses(message.envelope.recipients)))
        taken = await queue.take(want())
        for item in taken.items[:3]:
            await _deliver(queue, journal, item)
        late = copy("h@one.test")
        await queue.enqueue([late])
        journal.write("accepted", late.queue_id, ("h@one.test",))
        for item in taken.items[3:]:
            await _deliver(queue, journal, item)
    finally:
        await queue.close()


async def _deliver(queue: Queue, journal: Journal, item: Item) -> None:
    message = await queue.load(item.queue_id)
    attempt = Attempt(
        item.queue_id, item.destination, only(message.envelope, item.numbers), message.content, message.local, 1, 0.0
    )
    whole = len(item.numbers) == len(message.envelope.recipients)
    numbered = list(zip(item.numbers, outcomes(attempt), strict=True))
    recipients = tuple(addresses(attempt.envelope.recipients))
    journal.write("arrived", item.queue_id, recipients)
    await queue.record([Finished(item, 1.0, numbered, 2.0, whole=whole)])
    journal.write("recorded", item.queue_id, recipients)


def promised(events: list[tuple[str, object, object]], what: str) -> set[tuple[object, str]]:
    """The recipients that this was said of."""
    found: set[tuple[object, str]] = set()
    for said, queue_id, recipients in events:
        if said == what:
            assert isinstance(recipients, tuple)
            found.update((queue_id, r) for r in recipients)
    return found


async def waiting_after_start(directory: Path) -> set[tuple[object, str]]:
    queue = Queue(directory, OUTBOUND)
    await queue.start()
    try:
        await queue.recover()
    finally:
        await queue.close()
    state, files = State(directory / "state.sqlite"), Files(directory)
    state.open()
    files.open()
    try:
        found = set()
        for line in browse.lines(state, Selection(everything=True)):
            try:
                files.read(QueueId(line.queue_id))
            except DamagedFile:
                continue  # rows alone are no message
            found.update((line.queue_id, r) for r in line.recipients)
        return found
    finally:
        state.close()
        files.close()


async def problems(directory: Path, journal: Journal) -> list[str]:
    """What is lost or sent again, at the first point where something is; all points are tried."""
    found: list[str] = []
    events = journal.events
    start = next(n for n, event in enumerate(events) if event[0] == "commit") + 1
    for cut in range(start, len(events) + 1):
        done = events[:cut]
        accepted, arrived, recorded = (promised(done, what) for what in ("accepted", "arrived", "recorded"))
        unfinished = {queue_id for queue_id, _ in accepted - arrived}
        for names_last, rebuilt in itertools.product((False, True), (False, True)):
            build_disk(done, directory, unsynced_names_last=names_last)
            if rebuilt:
                (directory / "state.sqlite").unlink()
            waiting = await waiting_after_start(directory)
            where = f"after {cut} {events[cut - 1][:2]} names_last={names_last} rebuilt={rebuilt}"
            found += [f"lost {m} {where}" for m in accepted - arrived - waiting]
            # A file whose removal was not synced yet may come back when the state is lost too; that is the one doubling
            # that is put up with, because a sync for each removal would cost as much as the delivery.
            found += [
                f"again {m} {where}" for m in recorded & waiting if not rebuilt or names_last or m[0] in unfinished
            ]
        if found:
            break
    return found


async def _run(tmp_path: Path, without: str) -> list[str]:
    journal = Journal()
    await work(tmp_path / "queue", journal, without=without)
    return await problems(tmp_path / "cut", journal)


async def test_power_cut_between_any_two_steps_loses_nothing_accepted(tmp_path: Path) -> None:
    """RFC 5321 s. 6.1: once accepted, a message must not be lost for frivolous reasons."""
    assert await _run(tmp_path, "") == []


@pytest.mark.parametrize("without", ["content sync", "name sync", "commit sync", "mark sync"])
async def test_each_sync_is_needed(tmp_path: Path, without: str) -> None:
    """The model sees it when one of them is left out."""
    assert await _run(tmp_path, without) != []
