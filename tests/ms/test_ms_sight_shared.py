"""A large mailbox at its first sight: what others are told while its rows are written, and what a kill leaves of them.

STORE.md s. 3, 5.7.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from ms_scenarios import content
from ms_sight import MESSAGES, TEXT, Opened, base, between, counted, expected, fill, found, name
from ms_support import OWNER, deliver, maildir, new_store, row_of
from support.wait import wait_until

from pymx.mail.flags import DELETED, FLAGGED, SEEN
from pymx.ms import delivering, firstsight, flagging, reconcile
from pymx.ms.box import Box
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.index import Connection
from pymx.ms.row import FILLING

T = TypeVar("T")


def at_once(work: Callable[[], T]) -> T:
    """What another thread of the process gets, while this one is in the middle of something."""
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(20)
    assert done, "it waits"
    return done[0]


def in_holds(box: Box) -> list[bool]:
    """What will be listed and compared in holds of this mailbox."""
    listed: list[bool] = []
    before = box.reconcile
    box.reconcile = lambda hold, full: (listed.append(full), before(hold, full))[1]
    return listed


@pytest.mark.parametrize("claim", [None, flagging.claim_new], ids=["EXAMINE", "SELECT"])
def test_another_session_is_told_the_same_at_once(
    directory: Path, opened: Opened, claim: Callable[[Box], int] | None
) -> None:
    """Between two holds of the one that writes the rows."""
    box = opened(directory)
    first = delivering.opened(box, claim)
    told: list[delivering.Opened] = []
    between(box, lambda: told.append(at_once(lambda: delivering.opened(box, claim))))
    (second,) = told
    assert first.early is not None
    assert second.early is not None
    assert second.uids is first.uids
    assert (second.early.first_unseen, second.keywords, second.first_recent) == (7, ["$Word"], MESSAGES + 1)
    assert second.row.highestmodseq == first.row.highestmodseq
    assert (second.row.uidvalidity, second.row.uidnext) == (first.row.uidvalidity, first.row.uidnext)
    assert found(box) == expected()


@pytest.mark.parametrize("late", [0, 2])
def test_status_counts_what_is_there_and_what_came_since(directory: Path, opened: Opened, late: int) -> None:
    """The numbers are those of the rows when all of them are written."""
    for uid in (11, 12):
        (directory / "cur" / name(uid)).rename(directory / "cur" / f"{base(uid)}:2,T")
    box, other = opened(directory), opened(directory)
    assert firstsight.begin(box) is not None
    told: list[firstsight.Counted] = []
    views: list[delivering.Opened] = []

    def others() -> None:
        for number in range(late):
            delivering.deliver(other, content(f"late{number}"), DELETED if number else 0, None)
        told.append(at_once(lambda: delivering.counted(box)))
        views.append(at_once(lambda: delivering.opened(box, None)))

    between(box, others)
    assert row_of(box).messages == MESSAGES + late
    after = delivering.counted(box)
    (before,) = told
    assert (before.recent, before.deleted_octets) == (after.recent, after.deleted_octets)
    for item in ("messages", "unseen", "deleted", "octets", "uidnext", "uidvalidity", "guid"):
        assert getattr(before.row, item) == getattr(after.row, item), item
    assert before.row.deleted == 2 + (late > 1)
    assert views[0].early is not None
    assert views[0].uids == array("I", range(1, MESSAGES + late + 1))


@pytest.mark.parametrize("change", ["gone", "flags", "line"])
def test_what_another_program_does_meanwhile_is_told(directory: Path, opened: Opened, change: str) -> None:
    """The sight is no longer all there is to tell: then the rows are waited for."""
    box = opened(directory)
    assert firstsight.begin(box) is not None
    if change == "gone":
        (directory / "cur" / name(9)).unlink()
    elif change == "flags":
        (directory / "cur" / name(7)).rename(directory / "cur" / f"{base(7)}:2,FS")
    else:
        with (directory / "dovecot-uidlist").open("a") as lines:
            lines.write(f"{MESSAGES + 1} :1700000009.M1P1.dovecot\n")
        (directory / "new" / "1700000009.M1P1.dovecot").write_bytes(TEXT)
    told = delivering.counted(box).row
    state = delivering.opened(box, None)
    assert state.early is None
    assert told.messages == len(state.uids) == MESSAGES + {"gone": -1, "flags": 0, "line": 1}[change]
    assert told.unseen == {"gone": 1, "flags": 0, "line": 2}[change]
    assert found(box).get(7, (b"", 0))[1] == (FLAGGED | SEEN if change == "flags" else 0)


def test_a_message_of_another_program_before_one_of_ours_is_told(directory: Path, opened: Opened) -> None:
    """Its line was taken in by our delivery, so UIDNEXT is above it: a view without it would never get it."""
    box, other = opened(directory), opened(directory)
    assert firstsight.begin(box) is not None
    with (directory / "dovecot-uidlist").open("a") as lines:
        lines.write(f"{MESSAGES + 1} :1700000009.M1P1.dovecot\n")
    (directory / "new" / "1700000009.M1P1.dovecot").write_bytes(TEXT)
    assert delivering.deliver(other, content("late"), 0, None).uid == MESSAGES + 2
    assert row_of(box).dirty_since == FILLING
    assert delivering.counted(box).row.messages == MESSAGES + 2
    state = delivering.opened(box, None)
    assert state.row.uidnext == MESSAGES + 3
    assert state.uids == array("I", range(1, MESSAGES + 3))


def test_select_after_examine_has_the_new_messages_as_its_own(directory: Path, opened: Opened) -> None:
    """STORE.md s. 4.10: EXAMINE left them where they were."""
    (directory / "cur" / name(MESSAGES)).rename(directory / "new" / base(MESSAGES))
    box = opened(directory)
    assert delivering.opened(box, None).early is not None
    assert delivering.counted(box).recent == 1
    state = delivering.opened(box, flagging.claim_new)
    assert state.first_recent == MESSAGES
    assert list((directory / "new").iterdir()) == []
    assert delivering.opened(box, flagging.claim_new).first_recent == MESSAGES + 1
    counted(box)


def killed(box: Box, holds: int = 1) -> None:
    """Begun, and some of the rows written."""
    turns = iter(range(holds + 1))
    assert firstsight.begin(box) is not None
    firstsight.complete(box, lambda: next(turns) == holds)
    assert row_of(box).dirty_since == FILLING


@pytest.mark.parametrize("holds", [0, 1, 2])
def test_rows_a_killed_process_left_unwritten_are_added_without_listing_in_a_hold(
    directory: Path, opened: Opened, holds: int
) -> None:
    """A thousand a hold, names that changed meanwhile too; STATUS tells right numbers."""
    killed(opened(directory), holds)
    for uid in (2, MESSAGES - 1):
        (directory / "cur" / name(uid)).rename(directory / "cur" / f"{base(uid)}:2,FS")
    box = opened(directory)
    listed, sizes = in_holds(box), [len(found(box))]

    def look() -> bool:
        sizes.append(len(found(box)))
        return False

    firstsight.complete(box, look)
    row = delivering.counted(box).row
    assert listed == []
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= HOLD_MESSAGES
    wanted = expected()
    for uid in (2, MESSAGES - 1):
        wanted[uid] = (wanted[uid][0], SEEN | FLAGGED, *wanted[uid][2:])
    assert found(box) == wanted
    assert row.messages == MESSAGES
    counted(box)


def test_a_process_that_was_only_slow_adds_no_row_twice(directory: Path, opened: Opened) -> None:
    """It finds that somebody else went on, whenever it wakes up."""
    slow, other = opened(directory), opened(directory)
    assert firstsight.begin(slow) is not None
    between(slow, lambda: firstsight.complete(other))
    slow.refresh()
    assert found(slow) == expected()
    counted(slow)
    assert slow.sight is other.sight is None


async def test_a_delivery_has_the_rows_written_that_a_killed_process_left(tmp_path: Path, opened: Opened) -> None:
    """And it does not wait for them."""
    directory = fill(maildir(tmp_path))
    killed(opened(directory))
    store = new_store(tmp_path, boot="one")
    await store.start()
    (uid,) = await deliver(store, "late")
    box = opened(directory)
    await wait_until(lambda: row_of(box).dirty_since != FILLING, what="all rows are written")
    await store.close()
    box.refresh()
    assert found(box).keys() == {*range(1, MESSAGES + 1), uid}
    counted(box)


@pytest.mark.parametrize("by", ["another process", "a killed process"])
def test_the_use_of_an_account_has_what_is_not_written_yet(directory: Path, opened: Opened, by: str) -> None:
    """Else a full account would take more mail, and be warned twice."""
    box = opened(directory)
    if by == "a killed process":
        killed(box)
        box = opened(directory)
    else:
        assert firstsight.begin(box) is not None
    assert opened.accounts[-1].usage() == (MESSAGES * (len(TEXT) + 3), MESSAGES)


class Between:
    """A connection; `work` is done once, just before it asks which mailboxes lack rows."""

    def __init__(self, db: Connection, work: list[Callable[[], None]]) -> None:
        self._db = db
        self._work = work

    def execute(self, statement: str, *values: object) -> object:
        if self._work and statement.startswith("SELECT name FROM mailbox WHERE dirty_since"):
            self._work.pop()()
        return self._db.execute(statement, *values)


def test_the_use_of_an_account_has_a_mailbox_that_is_finished_just_then(
    directory: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is among those that are whole, or those that are not; never among neither."""
    box = opened(directory)
    assert firstsight.begin(box) is not None
    there, work = opened.accounts[-1], [lambda: firstsight.complete(box)]
    for way in ("read", "snapshot"):
        real: Callable[[], AbstractContextManager[Connection]] = getattr(there.home.index, way)

        @contextmanager
        def between_statements(
            real: Callable[[], AbstractContextManager[Connection]] = real,
        ) -> Iterator[Between]:
            with real() as db:
                yield Between(db, work)

        monkeypatch.setattr(there.home.index, way, between_statements)
    assert there.usage() == (MESSAGES * (len(TEXT) + 3), MESSAGES)
    assert not work


def test_who_waits_for_another_process_holds_no_lock(directory: Path, opened: Opened) -> None:
    """Others of its process may want to begin, write or tell meanwhile."""
    writer, box = opened(directory), opened(directory)
    assert firstsight.begin(writer) is not None
    free: list[bool] = []

    def waiting() -> bool:
        free.append(at_once(lambda: box.filling.acquire(blocking=False) and box.beginning.acquire(blocking=False)))
        return True

    firstsight.complete(box, waiting)
    assert free == [True]


class Renamed:
    """A mailbox that was in the index as Old, and is New now."""

    def __init__(self, root: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        for part in ("cur", "new", "tmp"):
            (root / part).mkdir(parents=True)
        fill(root / ".Old")
        opened(root)
        self.account = opened.accounts[-1]
        self.account.box(("Old",)).refresh()
        self.before = row_of(self.account.box(("Old",)))
        os.rename(root / ".Old", root / ".New")
        self.cur = root / ".New" / "cur"
        self.listings = 0
        listing = reconcile.listing

        def counting(path: bytes) -> set[bytes]:
            self.listings += path.endswith(b"/cur")
            return listing(path)

        monkeypatch.setattr(reconcile, "listing", counting)

    def select(self) -> delivering.Opened:
        self.listings = 0
        state = delivering.opened(self.account.box(("New",)), None)
        assert (state.row.id, state.row.name) == (self.before.id, "New")
        assert (state.row.guid, state.row.uidvalidity) == (self.before.guid, self.before.uidvalidity)
        assert state.row.uidnext == MESSAGES + 1
        return state


def test_a_mailbox_another_program_renamed_is_not_listed(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its GUID, and the times of its files are those it had."""
    renamed = Renamed(tmp_path / "alice", opened, monkeypatch)
    assert list(renamed.select().uids) == list(range(1, MESSAGES + 1))
    assert renamed.listings == 0


def test_a_mailbox_another_program_renamed_and_changed_is_compared_once(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one took four comparisons, three of them thrown away."""
    renamed = Renamed(tmp_path / "alice", opened, monkeypatch)
    (renamed.cur / name(5)).rename(renamed.cur / f"{base(5)}:2,FS")
    assert len(renamed.select().uids) == MESSAGES
    assert renamed.listings == 1
    assert found(renamed.account.box(("New",)))[5][1] == FLAGGED | SEEN


async def test_a_second_select_of_a_store_is_answered_early(tmp_path: Path) -> None:
    """Both sessions go on as ever when the rows are there."""
    fill(maildir(tmp_path))
    store = new_store(tmp_path)
    await store.start()
    mailboxes = await asyncio.gather(*(store.open(OWNER, "INBOX", read_only=False) for _ in range(3)))
    assert {len(mailbox.uids) for mailbox in mailboxes} == {MESSAGES}
    status = await store.status(OWNER, "INBOX")
    assert (status.messages, status.unseen, status.recent) == (MESSAGES, 1, 0)
    for mailbox in mailboxes:
        changes = await mailbox.refresh()
        assert (changes.expunged, changes.arrived) == ([], 0)
        assert await mailbox.first_unseen() == 7
        assert sum([len(batch) async for batch in mailbox.rows(mailbox.uids)]) == MESSAGES
        mailbox.close()
    await store.close()
