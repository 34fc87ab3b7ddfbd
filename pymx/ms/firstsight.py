"""The first sight of a large mailbox: its UIDs at once, its rows behind, a thousand a hold.

What takes long is done without any lock: reading the uidlist, listing the directories, comparing both. Then

1. `begin`, one short hold: if the uidlist is still the one that was read, the mailbox's row is written and marked
   FILLING, and files without a line get theirs. From then on a session can be told all there is to a SELECT.
2. `complete`, one hold per thousand rows. All of them have the modseq of the first hold, which is what was told.
3. A last hold takes the mark away. The row then has the directories' times from before they were listed, so what
   anybody did to the files meanwhile is found by the next look, as ever.

Meanwhile other sessions of this process are told the same, with what was delivered since, and so is STATUS: as long
as the times of the files say that nobody else changed anything.

Nothing depends on it being finished. A Hold takes in everything itself unless it asks for less, and then the mailbox
is FILLING no more, which ends the filling here. After a power cut the mailbox counts as never seen. Only a delivery
goes on in between: all it needs is the next UID, and the uidlist is looked at in every hold.

Another process waits while rows are added. Where nobody adds any, they were left by one that was killed: `_take_over`
looks once more and goes on with the rows that are missing. Names that rows were given before may have changed by then,
so the directories' times are left open at the end, and the next look compares them (`pymx.ms.renames`).

A mailbox that is small, or not plain (a damaged uidlist, a base twice, Dovecot's index ahead of its uidlist), is left
to `pymx.ms.reconcile`, and so is one whose uidlist changes all the time.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from pymx.mail.flags import DELETED, SEEN
from pymx.ms import arrive, dovecotindex, letters, morekeywords, names, reconcile, renames, repair, uidlist
from pymx.ms.box import Box, Hold, runs
from pymx.ms.flagging import HOLD_MESSAGES, move_to_cur
from pymx.ms.index import ARRIVED
from pymx.ms.row import FILLING, Row, Stamp
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
    rest: bool = False  # what somebody else left: not all of the mailbox
    uids: array[int] = field(default_factory=lambda: array("I"))  # of `placed`
    uidnext: int = 0  # above all lines there were
    unseen: int | None = None  # the first one
    totals: tuple[int, int, int, int] | None = None  # unseen, deleted, octets, octets deleted; once they were asked for

    def goes_on(self, row: Row) -> bool:
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


@dataclass(frozen=True, slots=True)
class Counted:
    """What STATUS tells."""

    row: Row
    recent: int
    deleted_octets: int


def begin(box: Box, *, claim: bool = False, tells: bool = False) -> Begun | None:
    """Begin with a mailbox never seen; None if it is left to others. `claim`: new messages are the caller's.

    `tells`: the caller is a SELECT, which needs to know all keywords. It is also told what another began with.
    """
    with box.beginning:
        if _seen(box):
            return _again(box, claim) if tells else None
        if tells and _more_keywords(box):
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
    """Write the rows that are missing; begin with a large mailbox that was never seen."""
    begin(box)
    before = -1
    for _ in range(_PATIENCE):
        if _write(box, stopped) or stopped():
            return
        with box.home.index.read() as db:
            row = box.row(db)
        if row is None or row.dirty_since != FILLING:
            return
        if row.messages == before:
            break
        # While another process gets on with it, let it: its holds are short, and ours would be long.
        before = row.messages
        time.sleep(_STEP_S)
    with box.beginning:
        if box.sight is None:
            _take_over(box)
    _write(box, stopped)


def prepare(box: Box, row: Row | None) -> None:
    """Before a hold that takes in everything: do without it what takes long."""
    if row is None or not row.guid or row.dirty_since == FILLING:
        complete(box)
        with box.home.index.read() as db:
            row = box.row(db)
        if row is None or box.current(row):
            return
    renames.take_in(box, row)


def counted(box: Box) -> Counted | None:
    """What STATUS tells of a mailbox whose rows are being written here; None if the rows have to say it."""
    since = _since(box)
    if since is None:
        return None
    sight, row, arrived = since
    if sight.totals is None:
        sight.totals = _totals(sight)
    if sight.totals is None:
        return None
    row.messages = len(sight.uids) + len(arrived)
    row.unseen, row.deleted, row.octets, freed = sight.totals
    for _, flags, octets in arrived:
        row.unseen += not flags & SEEN
        row.octets += octets
        if flags & DELETED:
            row.deleted += 1
            freed += octets
    recent = sum(uid >= row.first_recent for uid, _, _ in arrived)
    return Counted(row, recent + len(sight.uids) - bisect_left(sight.uids, row.first_recent), freed)


def _seen(box: Box) -> bool:
    with box.home.index.read() as db:
        row = box.row(db)
    if row is None:
        with box.home.index.write() as db:
            row = box.row(db) or box.renamed(db)
    return row is not None and bool(row.guid)


def _more_keywords(box: Box) -> bool:
    return os.path.exists(os.path.join(box.path, morekeywords.NAME))


def _again(box: Box, claim: bool) -> Begun | None:
    """What is told to others while rows are written; None if there is more to it."""
    since = _since(box)
    if since is None or _more_keywords(box):
        return None
    sight, row, arrived = since
    if claim and row.first_recent < row.uidnext:
        return None
    with box.home.index.read() as db:
        known = letters.keyword_names(db, row)
    unseen = sight.unseen or next((uid for uid, flags, _ in arrived if not flags & SEEN), None)
    uids = sight.uids + array("I", [uid for uid, _, _ in arrived]) if arrived else sight.uids
    return Begun(row, uids, row.first_recent, unseen, known)


def _since(box: Box) -> tuple[Sight, Row, list[tuple[int, int, int]]] | None:
    """The sight, the row, and UID, flags and octets of what was delivered since; None if that is not all there is."""
    sight = box.sight
    if sight is None or sight.rest or not sight.uids:
        return None
    stamp = box.stamp()
    with box.home.index.snapshot() as db:
        row = box.row(db)
        if row is None or not sight.goes_on(row):
            return None
        arrived = db.execute(
            "SELECT id & 4294967295, flags, octets FROM message WHERE id BETWEEN ? AND ?",
            (row.low | (sight.uids[-1] + 1), row.high),
        ).fetchall()
    if stamp[:3] != row.stamp[:3] or (stamp[3:] != sight.stamp[3:] and not arrived):
        return None
    if len(arrived) != row.uidnext - sight.uidnext:
        return None  # a line without a row: another program's message, which UIDNEXT would say is no new one
    return sight, row, arrived


def _totals(sight: Sight) -> tuple[int, int, int, int] | None:
    """Unseen and deleted messages, octets, octets of deleted ones; None if a name does not tell its size."""
    unseen = deleted = octets = freed = 0
    for _, name, _, _ in sight.placed:
        size, flags = names.wire_octets(name), names.flags_of(name)[0]
        if size is None:
            return None
        octets += size
        unseen += not flags & SEEN
        if flags & DELETED:
            deleted += 1
            freed += size
    return unseen, deleted, octets, freed


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
    sight.uids = array("I", [message[0] for message in placed])
    sight.uidnext = row.uidnext
    sight.unseen = next((message[0] for message in placed if not names.flags_of(message[1])[0] & SEEN), None)
    box.sight = sight
    return Begun(row, sight.uids, recent, sight.unseen, known)


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


def _take_over(box: Box) -> None:
    """Begin with the rows that somebody left unwritten, if they can be told without a lock."""
    for _ in range(_TRIES):
        with box.home.index.snapshot() as db:
            row = box.row(db)
            if row is None or row.dirty_since != FILLING:
                return
            statement = "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ?"
            written = {uid for (uid,) in db.execute(statement, (row.low, row.high))}
        sight = _look(box)
        if sight is None or sight.found is None:
            return
        sight.placed = [message for message in sight.placed if message[0] not in written]
        with Hold(box, rows="some") as hold:
            if _left_as(row, hold.row) and box.stamp()[:3] == sight.stamp[:3]:
                reconcile.take_keywords(hold)
                sight.mailbox, sight.guid, sight.modseq = row.id, row.guid, hold.next_modseq()
                hold.row.expunge_floor = sight.modseq  # what is gone by now was told, perhaps
                sight.found, sight.unplaced, sight.rest = None, [], True
                box.sight = sight
                return


def _left_as(before: Row, now: Row) -> bool:
    """Whether it is still FILLING and nobody added a row."""
    return (now.id, now.guid, now.uidvalidity, now.expunge_floor, now.messages, now.dirty_since) == (
        before.id,
        before.guid,
        before.uidvalidity,
        before.expunge_floor,
        before.messages,
        FILLING,
    )


def _write(box: Box, stopped: Callable[[], bool]) -> bool:
    """Write the rows of what was begun here; False if nothing was, or somebody else does the rest."""
    with box.filling:
        sight = box.sight
        if sight is None:
            return False
        there = True
        while there and sight.done < len(sight.placed):
            if stopped():
                return True
            there = _fill(box, sight)
        if there:
            _finish(box, sight)
        if box.sight is sight:
            box.sight = None
        return there


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
        if not sight.goes_on(hold.row):
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
        if sight.goes_on(hold.row):
            morekeywords.restore(hold)
            hold.row.dirty_since = time.time() if sight.recent else 0.0
            hold.listed = (0, 0) if sight.rest else sight.stamp[3:]
            hold.saved()
