"""The first sight of a large mailbox: its UIDs at once, its rows behind, a thousand a hold.

What takes long is done without any lock: reading the uidlist, listing the directories, comparing both. Then

1. `begin`, one short hold: if the uidlist is still the one that was read, the mailbox's row is written and marked
   FILLING, and files without a line get theirs. From then on a session can be told all there is to a SELECT.
2. `complete`, one hold per thousand rows. All of them have the modseq of the first hold, which is what was told.
3. A last hold takes the mark away. The row then has the directories' times from before they were listed, so what
   anybody did to the files meanwhile is found by the next look, as ever.

Nothing depends on it being finished. A Hold takes in everything itself unless it asks for less, and then the mailbox
is FILLING no more, which ends the filling here. So do all holds of another process, or of this one after a kill: names
that rows were given before may have changed, and only a listing compared with the rows tells. After a power cut the
mailbox counts as never seen. Only a delivery goes on in between: all it needs is the next UID, and the uidlist is
looked at in every hold.

A mailbox that is small, or not plain (a damaged uidlist, a base twice, Dovecot's index ahead of its uidlist), is left
to `pymx.ms.reconcile`, and so is one whose uidlist changes all the time.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from pymx.mail.flags import SEEN
from pymx.ms import arrive, dovecotindex, letters, morekeywords, names, reconcile, renames, repair, uidlist
from pymx.ms.box import FILLING, Box, Hold, Row, Stamp, runs
from pymx.ms.flagging import HOLD_MESSAGES, move_to_cur
from pymx.ms.index import ARRIVED
from pymx.ms.uidlist import Record

LEAST = 2000  # messages; fewer are two holds' work
_TRIES = 3
_TICK_NS = 20_000_000  # changes of a directory closer than this may have the same time
_STEP_S = 0.1  # in which another process that fills should get on
_PATIENCE = 100

Placed = tuple[int, bytes, int, bytes]  # UID, name, in_new, keys of the line


class _Changed(Exception):
    """Not what was looked at any more."""


@dataclass(slots=True)
class Sight:
    """What there is, and how far the index has it."""

    stamp: Stamp  # from before anything was read
    found: uidlist.UidList | None  # None: there is no uidlist
    placed: list[Placed]  # ascending
    unplaced: list[tuple[int, int, bytes, bytes, int]]  # time, base, name, in_new; in the order they get UIDs
    new: int  # how many are in `new/`, which SELECT empties at once
    recent: bool  # something changed just before, so a change may be hidden
    mailbox: int = 0
    guid: str = ""
    modseq: int = 0
    done: int = 0  # of `placed`
    unread: bool = False  # a file could not be looked at

    def goes_on(self, hold: Hold) -> bool:
        row = hold.row
        return (row.id, row.guid, row.expunge_floor, row.dirty_since) == (
            self.mailbox,
            self.guid,
            self.modseq,
            FILLING,
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """All that SELECT tells."""

    row: Row
    uids: array[int]
    first_recent: int
    first_unseen: int | None
    keywords: list[str]


def begin(box: Box, *, claim: bool = False, tells: bool = False) -> Begun | None:
    """Begin with a mailbox never seen; None if it is left to others. `claim`: new messages are the caller's.

    `tells`: the caller is a SELECT, which needs to know all keywords.
    """
    with box.filling:
        if _seen(box) or (tells and os.path.exists(os.path.join(box.path, morekeywords.NAME))):
            return None
        for _ in range(_TRIES):
            sight = _look(box)
            if sight is None or (claim and sight.new > HOLD_MESSAGES):
                return None
            try:
                return _establish(box, sight, claim=claim)
            except _Changed:
                if _seen(box):
                    return None
    return None


def complete(box: Box, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write the rows that are missing, if that was begun here; begin with a large mailbox that was never seen."""
    begin(box)
    with box.filling:
        sight, box.sight = box.sight, None
        if sight is None:
            _wait_for_others(box)
            return
        while sight.done < len(sight.placed):
            if stopped() or not _fill(box, sight):
                return
        _finish(box, sight)


def prepare(box: Box, row: Row | None) -> None:
    """Before a hold that takes in everything: do without it what takes long."""
    if row is None or not row.guid or row.dirty_since == FILLING:
        complete(box)
    else:
        renames.take_in(box, row)


def _seen(box: Box) -> bool:
    with box.home.index.read() as db:
        row = box.row(db)
    return row is not None and bool(row.guid)


def _wait_for_others(box: Box) -> None:
    """While another process gets on with it, let it: its holds are short, and ours would be long."""
    before = -1
    for _ in range(_PATIENCE):
        with box.home.index.read() as db:
            row = box.row(db)
        if row is None or row.dirty_since != FILLING or row.messages == before:
            return
        before = row.messages
        time.sleep(_STEP_S)


def _look(box: Box) -> Sight | None:
    """Read and compare, without a lock."""
    taken, stamp = time.time_ns(), box.stamp()
    cur, new = reconcile.listing(box.cur), reconcile.listing(box.new)
    if len(cur) + len(new) < LEAST or not (reconcile.usable(cur) and reconcile.usable(new)):
        return None
    here = {name.partition(b":")[0]: name for name in cur}
    fresh = {name.partition(b":")[0]: name for name in new}
    if len(here) != len(cur) or len(fresh) != len(new) or b"" in here or b"" in fresh or here.keys() & fresh.keys():
        return None
    try:
        with open(box.uidlist, "rb") as file:
            found = uidlist.parse(file.read())
    except FileNotFoundError:
        found = None
    except uidlist.Damaged:
        return None
    if found is not None and (not found.clean or _behind_dovecot(box, found)):
        return None
    placed: list[Placed] = []
    for uid, keys, base in found.records if found is not None else ():
        name = here.pop(base, None)
        if name is not None:
            placed.append((uid, name, 0, keys))
        elif (name := fresh.pop(base, None)) is not None:
            placed.append((uid, name, 1, keys))
    placed = [message for message in placed if b",W=" in message[1] or b" W" in message[3] or _is_file(box, message)]
    unplaced = [
        (*names.arrival(base), base, name, in_new)
        for in_new, left in ((0, here), (1, fresh))
        for base, name in left.items()
        if b",W=" in name or _is_file(box, (0, name, in_new, b""))
    ]
    unplaced.sort()
    return Sight(stamp, found, placed, unplaced, len(new), max(stamp[3:]) > taken - _TICK_NS)


def _behind_dovecot(box: Box, found: uidlist.UidList) -> bool:
    index = dovecotindex.read(box.path)
    return index is not None and index.uidvalidity == found.header.uidvalidity and index.next_uid > found.next_uid


def _path(box: Box, message: Placed) -> bytes:
    return os.path.join(box.new if message[2] else box.cur, message[1])


def _is_file(box: Box, message: Placed) -> bool:
    try:
        return stat.S_ISREG(os.stat(_path(box, message), follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _establish(box: Box, sight: Sight, *, claim: bool) -> Begun:
    """The hold of `begin`. Raises _Changed."""
    next_uid = sight.found.next_uid if sight.found is not None else 1
    if next_uid + len(sight.unplaced) > uidlist.MAX_UID:
        raise OverflowError("mailbox is out of UIDs")
    records: list[Record] = [(uid, b"", found[2]) for uid, found in enumerate(sight.unplaced, next_uid)]
    lines = uidlist.lines(records)
    placed = sight.placed + [(uid, f[3], f[4], b"") for uid, f in enumerate(sight.unplaced, next_uid)]
    placed.sort()
    first_new = next((message[0] for message in placed if message[2]), 0)
    with Hold(box, rows="none") as hold:
        row, stamp = hold.row, box.stamp()
        rows_there = hold.db.execute(
            "SELECT EXISTS(SELECT 1 FROM message WHERE id BETWEEN ? AND ?)", (row.low, row.high)
        ).fetchone()[0]
        if row.guid or rows_there or row.uidnext > next_uid or stamp[:3] != sight.stamp[:3]:
            raise _Changed
        if sight.found is None:
            repair.make_uidlist(hold)
        else:
            row.uidvalidity, row.guid = sight.found.header.uidvalidity, sight.found.header.guid
            row.uidnext = next_uid
        if records:
            hold.append_lines(records, lines)
        reconcile.take_keywords(hold)
        recent = row.first_recent = first_new or row.uidnext
        if claim and first_new:
            placed = _claim(hold, sight, placed, untouched=stamp[3:] == sight.stamp[3:])
        if claim:
            row.first_recent = row.uidnext
        sight.mailbox, sight.guid, sight.modseq = row.id, row.guid, hold.next_modseq()
        row.expunge_floor = sight.modseq  # what was expunged before is not known
        row.dirty_since = FILLING
        known = letters.keyword_names(hold.db, row)
    box.last_listing = time.time()
    sight.placed, sight.found, sight.unplaced = placed, None, []
    box.sight = sight
    unseen = next((message[0] for message in placed if not names.flags_of(message[1])[0] & SEEN), None)
    return Begun(row, array("I", [message[0] for message in placed]), recent, unseen, known)


def _claim(hold: Hold, sight: Sight, placed: list[Placed], *, untouched: bool) -> list[Placed]:
    """Move what is in `new/` to `cur/`."""
    out = []
    for message in placed:
        uid, name, in_new, keys = message
        moved = move_to_cur(hold, name) if in_new else None
        out.append(message if moved is None else (uid, moved, 0, keys))
    if untouched:
        sight.stamp = hold.box.stamp()  # our own doing, and perhaps somebody else's hidden behind it
        sight.recent = True
    return out


def _fill(box: Box, sight: Sight) -> bool:
    """One portion; False if somebody else did the rest."""
    rows: list[tuple[object, ...]] = []
    uids: list[int] = []
    now, low = int(time.time()), Row(sight.mailbox, "").low
    portion = sight.placed[sight.done : sight.done + HOLD_MESSAGES]
    for message in portion:
        uid, name, in_new, keys = message
        octets = names.wire_octets(name)
        if octets is None:
            octets = reconcile.octets_of(keys, _path(box, message))
        if octets is None:
            sight.unread = True
            continue
        flags, bits = names.flags_of(name)
        uids.append(uid)
        rows.append((low | uid, sight.modseq, flags, bits, octets, None, now, in_new, name, reconcile.guid_of(keys)))
    with Hold(box, rows="some") as hold:
        if not sight.goes_on(hold):
            return False
        hold.db.executemany("INSERT INTO message VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        hold.db.executemany(
            "INSERT OR REPLACE INTO change VALUES(?, ?, ?, ?, ?)",
            [(sight.mailbox, sight.modseq, first, last, ARRIVED) for first, last in runs(uids)],
        )
        arrive.count(hold, rows)
        hold.saved()
    sight.done += len(portion)
    return True


def _finish(box: Box, sight: Sight) -> None:
    """All rows are there."""
    if sight.unread:
        with Hold(box):  # there under another name, or gone: the directories are listed once more
            return
    with Hold(box, rows="some") as hold:
        if sight.goes_on(hold):
            morekeywords.restore(hold)
            hold.row.dirty_since = time.time() if sight.recent else 0.0
            hold.listed = sight.stamp[3:]
            hold.saved()
