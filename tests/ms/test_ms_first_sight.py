"""A large mailbox seen for the first time: SELECT answers before its rows are written, a thousand a hold.

Between any two holds somebody else may come, or nobody ever again (STORE.md s. 3, 5.7, 10).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from ms_scenarios import account, content
from ms_sight import INBOX, MESSAGES, TEXT, Opened, base, between, counted, expected, fill, found, name
from ms_support import OWNER, deliver, maildir, new_store, row_of
from support.wait import wait_until

from pymx.mail.flags import FLAGGED, SEEN
from pymx.ms import delivering, firstsight, flagging, letters, removing, rows, uidlist
from pymx.ms.box import Box, Hold
from pymx.ms.disk import Disk
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.row import FILLING


def test_select_is_answered_before_rows_are_written(directory: Path, opened: Opened) -> None:
    """STORE.md s. 5.7; all that SELECT tells is what the rows say later."""
    box = opened(directory)
    begun = delivering.opened(box, flagging.claim_new)
    assert begun.early is not None
    assert found(box) == {}
    assert begun.uids == array("I", range(1, MESSAGES + 1))
    assert (begun.row.uidvalidity, begun.row.uidnext) == (1700000000, MESSAGES + 1)
    assert (begun.early.first_unseen, begun.keywords, begun.first_recent) == (7, ["$Word"], MESSAGES + 1)
    told = begun.row.highestmodseq
    firstsight.complete(box)
    assert found(box) == expected()
    counted(box)
    row = row_of(box)
    assert box.current(row)
    assert row.highestmodseq == told
    with box.home.index.read() as db:
        assert db.execute("SELECT min(modseq), max(modseq) FROM message").fetchone() == (told, told)
        assert rows.first_unseen(db, row.low, begun.uids) == 7
    again = delivering.opened(box, flagging.claim_new)
    assert again.early is None
    assert (again.uids, again.keywords, again.first_recent) == (begun.uids, begun.keywords, begun.first_recent)
    assert row_of(box).highestmodseq == told


def test_no_hold_writes_more_than_a_thousand_rows(directory: Path, opened: Opened) -> None:
    """STORE.md s. 3."""
    box, sizes = opened(directory), [0]

    def look() -> bool:
        sizes.append(len(found(box)))
        return False

    assert firstsight.begin(box) is not None
    firstsight.complete(box, look)
    sizes.append(len(found(box)))
    assert max(after - before for before, after in itertools.pairwise(sizes)) == HOLD_MESSAGES


@pytest.mark.parametrize("boot", ["one", "two"], ids=["killed", "power cut"])
@pytest.mark.parametrize("holds", [0, 1, 2, 3])
def test_stopped_after_any_hold_nothing_told_changes(directory: Path, opened: Opened, holds: int, boot: str) -> None:
    """UIDs told are those of the same messages; what the session before was told does not hide a later change."""
    (directory / "pymx-keywords").write_text("5 late\n")
    box, turns = opened(directory), 0
    begun = firstsight.begin(box)
    assert begun is not None
    told = begun.row

    def stopped() -> bool:
        nonlocal turns
        turns += 1
        return turns > holds

    firstsight.complete(box, stopped)
    (directory / "cur" / name(3)).rename(directory / "cur" / f"{base(3)}:2,FS")
    (directory / "cur" / name(4)).unlink()
    after = opened(directory, boot)
    row = delivering.told_row(after)
    assert (row.uidvalidity, row.uidnext, row.guid) == (told.uidvalidity, told.uidnext, told.guid)
    wanted = expected()
    del wanted[4]
    wanted[3] = (wanted[3][0], SEEN | FLAGGED, *wanted[3][2:])
    wanted[5] = (*wanted[5][:2], 1 << 26, wanted[5][3])
    assert found(after) == wanted
    counted(after)
    assert after.current(row_of(after))
    with after.home.index.read() as db:
        changed = db.execute("SELECT modseq > ? FROM message WHERE id & 4294967295 = 3", (told.highestmodseq,))
        assert changed.fetchone() == (1,)
        assert letters.keyword_names(db, row)[26] == "late"
        hidden = db.execute(
            "SELECT 1 FROM change WHERE modseq>? AND kind=2 AND first<=4 AND last>=4", (told.highestmodseq,)
        ).fetchone()
    assert hidden or row.expunge_floor > told.highestmodseq  # who knows of UID 4 learns that it is gone


def test_a_delivery_goes_on_in_between(directory: Path, opened: Opened) -> None:
    """It waits for a short hold only, in this process and in another; its UID is above all that were told."""
    box, other = opened(directory), opened(directory)
    begun = firstsight.begin(box)
    assert begun is not None
    uids: list[int] = []

    def arrive() -> None:
        for there in (box, other):
            uids.append(delivering.deliver(there, content("new"), 0, None).uid)
            assert row_of(there).dirty_since == FILLING  # it did not do the work of the others

    between(box, arrive)
    assert uids == [MESSAGES + 1, MESSAGES + 2]
    assert row_of(box).dirty_since != FILLING
    box.refresh()
    there = found(box)
    assert there.keys() == set(range(1, MESSAGES + 3))
    counted(box)
    assert uidlist.parse((directory / "dovecot-uidlist").read_bytes()).clean


def test_lines_of_another_server_in_between_are_respected(directory: Path, opened: Opened) -> None:
    """Dovecot delivers while rows are written: its UID is not given again."""
    box = opened(directory)
    assert firstsight.begin(box) is not None

    def dovecot() -> None:
        with open(directory / "dovecot-uidlist", "a") as file:
            file.write(f"{MESSAGES + 1} :1700000009.M1P1.dovecot\n")
        (directory / "new" / "1700000009.M1P1.dovecot").write_bytes(TEXT)
        assert delivering.deliver(box, content("ours"), 0, None).uid == MESSAGES + 2

    between(box, dovecot)
    box.refresh()
    assert found(box)[MESSAGES + 1][0] == b"1700000009.M1P1.dovecot"
    assert found(box).keys() == set(range(1, MESSAGES + 3))
    counted(box)


@pytest.mark.parametrize("hold", [0, 1, 2])
def test_what_foreign_programs_do_in_between_is_found(directory: Path, opened: Opened, hold: int) -> None:
    """Renamed or removed before its row is written or after it: the next look takes it in."""
    box = opened(directory)
    begun = firstsight.begin(box)
    assert begun is not None

    def foreign() -> None:
        for uid in (1, MESSAGES):
            (directory / "cur" / name(uid)).unlink()
        for uid in (2, MESSAGES - 1):
            (directory / "cur" / name(uid)).rename(directory / "cur" / f"{base(uid)}:2,FS")

    between(box, foreign, hold=hold)
    box.refresh()
    wanted = expected(2, MESSAGES - 1)
    for uid in (2, MESSAGES - 1):
        wanted[uid] = (wanted[uid][0], SEEN | FLAGGED, *wanted[uid][2:])
    assert found(box) == wanted
    counted(box)


def test_a_message_without_size_that_is_renamed_or_goes(tmp_path: Path, opened: Opened) -> None:
    """Its row needs its file; a told UID never becomes a ghost."""
    directory = fill(tmp_path / "alice", without=MESSAGES)
    old = directory / "cur" / name(MESSAGES).replace(",W=20", "")
    box = opened(directory)
    begun = firstsight.begin(box)
    assert begun is not None
    assert len(begun.uids) == MESSAGES
    between(box, lambda: old.unlink())
    box.refresh()
    assert MESSAGES not in found(box)
    row = row_of(box)
    assert begun.row.highestmodseq < row.expunge_floor <= row.highestmodseq  # views are compared with the rows
    counted(box)


def test_others_who_need_all_rows_take_them_in_themselves(directory: Path, opened: Opened) -> None:
    """A STORE by another process in between is kept."""
    box, other = opened(directory), opened(directory)
    assert firstsight.begin(box) is not None

    def store() -> None:
        flagging.store(other, [1, MESSAGES], flagging.Change("add", FLAGGED, ()))
        (directory / "cur" / name(8)).unlink()
        with Hold(other):
            pass
        removing.expunge(other, [10], only_deleted=False)

    between(box, store)
    wanted = expected()
    del wanted[8], wanted[10]
    for uid in (1, MESSAGES):
        wanted[uid] = (wanted[uid][0], SEEN | FLAGGED, *wanted[uid][2:])
    box.refresh()
    assert found(box) == wanted
    counted(box)


@pytest.mark.parametrize("lines", [0, MESSAGES - 40])
def test_messages_without_a_line_get_one_before_they_are_told(tmp_path: Path, opened: Opened, lines: int) -> None:
    """In the order of arrival, as ever (STORE.md s. 5.3)."""
    directory = fill(tmp_path / "alice", lines=lines)
    box = opened(directory)
    begun = delivering.opened(box, None)
    assert begun.early is not None
    assert begun.uids == array("I", range(1, MESSAGES + 1))
    written = uidlist.parse((directory / "dovecot-uidlist").read_bytes())
    assert written.clean
    assert [(uid, b) for uid, _, b in written.records] == [(u, base(u).encode()) for u in range(1, MESSAGES + 1)]
    assert begun.row.uidnext == written.next_uid
    firstsight.complete(box)
    assert found(box) == expected()


def test_new_messages_are_moved_and_recent_once(directory: Path, opened: Opened) -> None:
    """STORE.md s. 4.10: at SELECT, not at EXAMINE."""
    late = [MESSAGES - 1, MESSAGES]
    for uid in late:
        (directory / "cur" / name(uid)).rename(directory / "new" / base(uid))
    looked = delivering.opened(opened(directory), None)
    assert looked.early is not None
    assert looked.first_recent == MESSAGES - 1
    assert len(list((directory / "new").iterdir())) == 2
    for path in directory.glob("pymx.index*"):
        path.unlink()
    box = opened(directory)
    begun = delivering.opened(box, flagging.claim_new)
    assert begun.early is not None
    assert begun.first_recent == MESSAGES - 1
    assert list((directory / "new").iterdir()) == []
    firstsight.complete(box)
    box.refresh()
    assert delivering.opened(box, flagging.claim_new).first_recent == MESSAGES + 1
    assert {uid: found(box)[uid] for uid in late} == {uid: (base(uid).encode(), 0, 0, len(TEXT) + 3) for uid in late}
    counted(box)


def test_many_new_messages_are_moved_a_thousand_a_hold(directory: Path, opened: Opened) -> None:
    """All are this session's \\Recent from the first hold on."""
    for uid in range(1, MESSAGES + 1):
        (directory / "cur" / name(uid)).rename(directory / "new" / base(uid))
    box, other = opened(directory), opened(directory)
    box.refresh()
    assert delivering.opened(box, flagging.claim_new).first_recent == 1
    assert list((directory / "new").iterdir()) == []
    box.refresh()
    counted(box)
    assert delivering.opened(other, flagging.claim_new).first_recent == MESSAGES + 1
    with box.home.index.read() as db:
        assert db.execute("SELECT count(*) FROM message WHERE in_new").fetchone() == (0,)


@pytest.mark.parametrize("claim", [None, flagging.claim_new], ids=["EXAMINE", "SELECT"])
def test_keywords_that_only_rows_can_tell_are_waited_for(
    directory: Path, opened: Opened, claim: Callable[[Box], int] | None
) -> None:
    """Those beyond the letters are in a file of their own, by UID."""
    (directory / "pymx-keywords").write_text("5 late\n")
    state = delivering.opened(opened(directory), claim)
    assert state.early is None
    assert state.keywords[26] == "late"


def test_what_is_not_plain_is_left_to_one_hold(directory: Path, opened: Opened) -> None:
    """A base twice: the usual way finds out what it is."""
    (directory / "new" / base(3)).write_bytes(b"Subject: other\n\n")
    box = opened(directory)
    assert firstsight.begin(box) is None
    state = delivering.opened(box, None)
    assert state.early is None
    box.refresh()
    assert len(found(box)) == MESSAGES + 1


def test_what_comes_after_the_listing_is_found_by_the_next(tmp_path: Path, opened: Opened) -> None:
    """Within the same hold: the directory's time is that of before it was listed."""
    box = opened(tmp_path / "alice")
    delivering.deliver(box, content("first"), 0, None)
    box.refresh()
    (tmp_path / "alice" / "new" / "1700000000.M1P1.other").write_bytes(TEXT)
    with Hold(box):
        (tmp_path / "alice" / "new" / "1700000000.M2P1.other").write_bytes(TEXT)
    box.refresh()
    assert len(found(box)) == 3


async def test_a_session_goes_on_while_rows_are_written(tmp_path: Path) -> None:
    """Whatever needs rows waits for them; changes since SELECT are told as ever."""
    directory = fill(maildir(tmp_path))
    store = new_store(tmp_path)
    await store.start()
    asked: list[str] = []
    store.wants_rendering = lambda email, guid: asked.append(guid)
    first = await store.open(OWNER, "INBOX", read_only=False)
    second = await store.open(OWNER, "INBOX", read_only=False)
    (directory / "cur" / name(2)).unlink()
    (uid,) = await deliver(store, "late")
    assert await first.first_unseen() == await second.first_unseen() == 7
    assert list(first.uids) == list(second.uids)[: len(first.uids)]
    assert sum([len(batch) async for batch in first.rows(first.uids)]) in (MESSAGES, MESSAGES - 1)
    changes = await first.refresh()
    assert changes.expunged == [2]
    assert first.uids[-1] == uid
    await second.refresh()
    assert first.uids == second.uids
    assert (await store.status(OWNER, "INBOX")).messages == MESSAGES
    await wait_until(lambda: asked[:1] == ["ab" * 16], what="a process is asked to render the messages")
    first.close()
    second.close()
    await store.close()


_OPENER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from ms_support import OWNER, new_store

async def main():
    store = new_store(Path({top!r}))
    await store.start()
    print("ready", flush=True)
    sys.stdin.readline()
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    print(mailbox.uidvalidity, mailbox.uidnext, len(mailbox.uids), mailbox.uids[0], mailbox.uids[-1], flush=True)
    sys.stdin.readline()
    count = 0
    async for batch in mailbox.rows(mailbox.uids):
        count += len(batch)
    print(count, flush=True)
    mailbox.close()
    await store.close()

asyncio.run(main())
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    script = _OPENER.format(here=str(Path(__file__).parent), top=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    return [int(word) for word in process.stdout.readline().split()]


async def test_two_processes_begin_at_once_and_one_is_killed(tmp_path: Path) -> None:
    """Both tell the same; what is left is taken in by who comes next."""
    fill(maildir(tmp_path))
    wanted = [1700000000, MESSAGES + 1, MESSAGES, 1, MESSAGES]
    processes = [start(tmp_path), start(tmp_path)]
    for process in processes:
        say(process)
    assert [hear(process) for process in processes] == [wanted, wanted]
    processes[0].kill()
    processes[0].communicate()
    say(processes[1])
    assert hear(processes[1]) == [MESSAGES]
    assert processes[1].wait(60) == 0
    processes[1].communicate()
    process = start(tmp_path)
    say(process)
    assert hear(process) == wanted
    process.kill()
    process.communicate()
    box = account(os.fsencode(maildir(tmp_path)), Disk(), "").box(INBOX)
    box.refresh()
    assert found(box) == expected()
    counted(box)
    box.home.index.close()
