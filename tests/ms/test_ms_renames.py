"""Another program changes the flags of a large mailbox: taken in a thousand a hold, and without a listing in a hold.

Between any two holds somebody else may come, or nobody ever again (STORE.md s. 3, 5, 10).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ms_scenarios import LAYOUT, OWNER, content
from ms_support import row_of

from pymx.mail.flags import ANSWERED, DELETED, FLAGGED, SEEN
from pymx.ms import delivering, flagging, letters, names, renames, uidlist, view
from pymx.ms.account import Account
from pymx.ms.box import Box, Hold
from pymx.ms.disk import Disk
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.index import FLAGGED as FLAGS_CHANGED
from pymx.ms.row import Row

MESSAGES = 2 * HOLD_MESSAGES + 500
TEXT = b"Subject: x\n\nbody\n"


class Killed(BaseException):
    """Nothing after this happens."""


class Rig:
    """A mailbox of a process, `after` being called after each of its commits; and another process's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.after: Callable[[], None] = lambda: None
        self.accounts: list[Account] = []
        self.box = self.open(lambda *_: self.after())
        self.other = self.open()

    def open(self, changed: Callable[[str, str, int], None] = lambda *_: None) -> Box:
        root = os.fsencode(self.directory)
        there = Account(OWNER, root, root + b"/pymx.index", LAYOUT, disk=Disk(), host=b"mx", changed=changed, boot="1")
        self.accounts.append(there)
        return there.box(("INBOX",))

    def files(self) -> dict[int, Path]:
        """UIDs to files."""
        lines = uidlist.parse((self.directory / "dovecot-uidlist").read_bytes())
        assert lines.clean
        uid_of = {base: uid for uid, _, base in lines.records}
        paths = [*(self.directory / "cur").iterdir(), *(self.directory / "new").iterdir()]
        return {uid_of[names.base_of(os.fsencode(path.name))]: path for path in paths}

    def mark(self, uids: range, flags: str = "FS") -> None:
        """What another program does."""
        for uid, path in self.files().items():
            if uid in uids:
                path.rename(self.directory / "cur" / f"{path.name.partition(':')[0]}:2,{flags}")

    def agrees(self, box: Box) -> None:
        """Index and files say the same, and the row counts the rows."""
        with box.home.index.read() as db:
            row = box.row(db)
            there = dict(db.execute("SELECT id & 4294967295, name FROM message").fetchall())
            flags = dict(db.execute("SELECT id & 4294967295, flags FROM message").fetchall())
        assert row is not None
        files = self.files()
        assert there == {uid: os.fsencode(path.name) for uid, path in files.items()}
        assert flags == {uid: names.flags_of(name)[0] for uid, name in there.items()}
        assert row.messages == len(there)
        assert row.unseen == sum(not flag & SEEN for flag in flags.values())
        assert row.deleted == sum(bool(flag & DELETED) for flag in flags.values())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    directory = tmp_path / "alice"
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    first = directory / "tmp" / "text"
    first.write_bytes(TEXT)
    for uid in range(1, MESSAGES + 1):
        os.link(first, directory / "cur" / f"1700000000.M{uid:06d}P1.mx,S=17,W=20:2,")
    rig = Rig(directory)
    rig.box.refresh()
    rig.agrees(rig.box)
    yield rig
    for there in rig.accounts:
        there.close()


def flagged(box: Box, since: int) -> list[tuple[int, int, int]]:
    """(modseq, first, last) of flag changes since."""
    with box.home.index.read() as db:
        return db.execute(
            "SELECT modseq, first, last FROM change WHERE modseq>? AND kind=? ORDER BY modseq, first",
            (since, FLAGS_CHANGED),
        ).fetchall()


def test_all_flags_changed_are_taken_in_a_thousand_a_hold(rig: Rig) -> None:
    """Each hold with a modseq of its own, and all of them told."""
    before = row_of(rig.box)
    rig.mark(range(1, MESSAGES + 1), "DFST")
    rig.box.refresh()
    rig.agrees(rig.box)
    told = flagged(rig.box, before.highestmodseq)
    assert [(first, last) for _, first, last in told] == [(1, 1000), (1001, 2000), (2001, MESSAGES)]
    assert len({modseq for modseq, _, _ in told}) == 3
    row = row_of(rig.box)
    assert row.highestmodseq == told[-1][0]
    assert row.stamp == rig.box.stamp()
    with rig.box.home.index.read() as db:
        assert view.expunged_since(db, row, view.load(db, row), before.highestmodseq) == []


def test_one_flag_changed_needs_no_listing_in_a_hold(rig: Rig) -> None:
    """What has to be listed was listed before."""
    before = row_of(rig.box)
    rig.mark(range(5, 6))
    listed: list[bool] = []
    reconcile = rig.box.reconcile
    rig.box.reconcile = lambda hold, full: (listed.append(full), reconcile(hold, full))[1]
    rig.box.refresh()
    assert not listed
    rig.agrees(rig.box)
    assert [(first, last) for _, first, last in flagged(rig.box, before.highestmodseq)] == [(5, 5)]
    assert row_of(rig.box).stamp == rig.box.stamp()


def test_a_name_without_other_flags_has_no_new_modseq(rig: Rig) -> None:
    """A letter nobody knows is no change."""
    before = row_of(rig.box)
    rig.mark(range(1, 1200), "X")
    rig.box.refresh()
    rig.agrees(rig.box)
    assert row_of(rig.box).highestmodseq == before.highestmodseq
    assert row_of(rig.box).stamp == rig.box.stamp()


def test_new_letters_have_their_names(rig: Rig) -> None:
    """dovecot-keywords is read in the same hold."""
    (rig.directory / "dovecot-keywords").write_text("0 $Word\n")
    rig.mark(range(1, 1200), "a")
    rig.box.refresh()
    with rig.box.home.index.read() as db:
        assert letters.keyword_names(db, row_of(rig.box))[0] == "$Word"
        assert db.execute("SELECT count(*) FROM message WHERE keywords = 1").fetchone() == (1199,)


def store(rig: Rig) -> None:
    flagging.store(rig.other, [1, MESSAGES], flagging.Change("add", ANSWERED, ()))


def rename_back(rig: Rig) -> None:
    rig.mark(range(1, MESSAGES + 1, 7), "")


def remove(rig: Rig) -> None:
    for uid in (2, MESSAGES - 1):
        rig.files()[uid].unlink()


def arrive(rig: Rig) -> None:
    delivering.deliver(rig.other, content("late"), 0, None)


def come_back(rig: Rig) -> None:
    """A file not in `cur/` any more but in `new/`."""
    path = rig.files()[3]
    path.rename(rig.directory / "new" / path.name.partition(":")[0])


WORK = [store, rename_back, remove, arrive, come_back]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("hold", [1, 2, 3])
def test_whatever_is_done_in_between_is_right_in_the_end(rig: Rig, work: Callable[[Rig], None], hold: int) -> None:
    """By another process, or by a program that takes no lock."""
    rig.mark(range(1, MESSAGES + 1))
    commits = 0

    def after() -> None:
        nonlocal commits
        commits += 1
        if commits == hold:
            work(rig)

    rig.after = after
    rig.box.refresh()
    assert commits >= hold
    rig.box.refresh()
    rig.agrees(rig.box)
    rig.other.refresh()
    rig.agrees(rig.other)


@pytest.mark.parametrize("work", WORK)
def test_what_was_looked_at_before_somebody_else_came_is_not_used(rig: Rig, work: Callable[[Rig], None]) -> None:
    """The row is another one by then."""
    before = row_of(rig.box)
    rig.mark(range(1, MESSAGES + 1))
    work(rig)
    renames.take_in(rig.box, before)
    rig.box.refresh()
    rig.agrees(rig.box)


@pytest.mark.parametrize("hold", [1, 2, 3])
def test_killed_after_any_hold_the_rest_is_taken_in_by_who_comes_next(rig: Rig, hold: int) -> None:
    """What was told has its modseq, and what was not has a later one."""
    before = row_of(rig.box)
    rig.mark(range(1, MESSAGES + 1))
    commits = 0

    def after() -> None:
        nonlocal commits
        commits += 1
        if commits == hold:
            raise Killed

    rig.after = after
    with pytest.raises(Killed):
        rig.box.refresh()
    told = flagged(rig.other, before.highestmodseq)
    assert len(told) == hold
    rig.other.refresh()
    rig.agrees(rig.other)
    later = flagged(rig.other, before.highestmodseq)[hold:]
    assert all(modseq > told[-1][0] for modseq, _, _ in later)
    assert sum(last - first + 1 for _, first, last in told + later) == MESSAGES


def test_messages_that_go_and_come_among_many_flags(rig: Rig) -> None:
    """The flags before, the rest in a hold that looks again."""
    for uid in (1, 1500):
        rig.files()[uid].unlink()
    rig.mark(range(2, MESSAGES + 1))
    (rig.directory / "new" / "1700000001.M1P1.other,S=17,W=20").write_bytes(TEXT)
    rig.box.refresh()
    rig.agrees(rig.box)
    assert rig.files().keys() == set(range(2, MESSAGES + 2)) - {1500}


def test_a_hold_that_brings_nothing_nearer_records_nothing(rig: Rig) -> None:
    """A change of others is still seen after it."""
    rig.mark(range(9, 10))
    with Hold(rig.box, rows="stale") as hold:
        hold.saved()
    rig.box.refresh()
    rig.agrees(rig.box)
    with rig.box.home.index.read() as db:
        assert db.execute("SELECT flags FROM message WHERE id & 4294967295 = 9").fetchone() == (FLAGGED | SEEN,)


def test_a_change_of_ours_in_between_is_never_undone(rig: Rig) -> None:
    """Not even until the next look: it was told."""
    rig.mark(range(1, MESSAGES + 1))

    def after() -> None:
        rig.after = lambda: None
        store(rig)

    rig.after = after
    renames.take_in(rig.box, row_of(rig.box))
    rig.agrees(rig.other)


@pytest.mark.parametrize("when", ["before the first hold", "between two holds"])
def test_a_uid_another_program_gave_meanwhile_is_not_given_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The line of its new message is read, though it came after the files were looked at."""
    base = f"1700000001.M{MESSAGES + 1:06d}P1.mx,S=17,W=20"
    given = MESSAGES + 1
    compare = renames._compare

    def deliver() -> None:
        rig.after = lambda: None
        with (rig.directory / "dovecot-uidlist").open("ab") as lines:
            lines.write(b"%d :%s\n" % (given, base.encode()))
        os.link(next(iter((rig.directory / "cur").iterdir())), rig.directory / "new" / base)

    def compared(box: Box, row: Row) -> object:
        found = compare(box, row)
        if when == "before the first hold":
            deliver()
        else:
            rig.after = deliver
        return found

    rig.mark(range(1, MESSAGES + 1))
    monkeypatch.setattr(renames, "_compare", compared)
    rig.box.refresh()
    monkeypatch.setattr(renames, "_compare", compare)
    assert delivering.deliver(rig.box, content("next"), 0, None).uid == given + 1
    rig.box.refresh()
    rig.agrees(rig.box)
    assert set(rig.files()) == set(range(1, given + 2))
