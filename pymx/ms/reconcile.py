"""Bring index and uidlist in line with the files: foreign deliveries, moves, flag changes, expunges, lost files.

Runs inside a Hold, so only programs that take no lock (mutt, procmail, Dovecot's flag changes) move files meanwhile: a
message that seems gone is looked for a second time before it is expunged. Files are the truth for messages and flags,
the uidlist is for UIDs; the rest comes from the index, and starts anew where it is lost.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from itertools import repeat

from pymx import log
from pymx.mail.flags import DELETED, SEEN
from pymx.ms import keywords, morekeywords, names, repair, uidlist
from pymx.ms.box import Hold
from pymx.ms.index import ARRIVED, EXPUNGED
from pymx.ms.measure import sizes, wire_size
from pymx.ms.row import FILLING, POWER_CUT
from pymx.ms.uidlist import Record

_DUPLICATE_S = 30
_log = log.get("ms")


@dataclass(slots=True)
class _Seen:
    """What a listing found against the rows."""

    fresh: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)  # base: name, in_new
    gone: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # base: UID, name
    doubled: list[tuple[bytes, int]] = field(default_factory=list)  # more names of one base


def reconcile(hold: Hold, full: bool = False) -> None:
    """Compare everything that changed since the row's stamp, or all of it with `full`."""
    row, box = hold.row, hold.box
    power_cut = row.dirty_since == POWER_CUT
    born = not row.guid
    filling = row.dirty_since == FILLING  # by somebody who was killed, or is slower
    stamp = box.stamp()
    dirty = row.dirty_since > 0 and row.stamp == stamp
    lines: list[Record] = []
    if stamp[:3] != row.stamp[:3] or not row.guid or full or power_cut:
        lines = repair.read_lines(hold, stamp, whole=full)
    take_keywords(hold)
    every = full or born or power_cut or dirty or bool(lines)
    list_cur = every or stamp[3] != row.cur_mtime
    list_new = every or stamp[4] != row.new_mtime
    if list_cur or list_new:
        _take_listing(hold, lines, list_cur=list_cur, list_new=list_new, born=born)
        box.last_listing = time.time() if list_cur and list_new else box.last_listing
    if born or filling:
        morekeywords.restore(hold)
        row.expunge_floor = hold.next_modseq()  # what was expunged before is not known, though it may have been told
    row.dirty_since = 0.0
    hold.listed = stamp[3:]
    hold.saved()
    if power_cut:
        # A change told at the end may have been lost with the index: every client looks again.
        modseq = hold.next_modseq()
        hold.db.execute("UPDATE message SET modseq=? WHERE id BETWEEN ? AND ?", (modseq, row.low, row.high))
        hold.db.execute("DELETE FROM change WHERE mailbox=?", (row.id,))
        row.expunge_floor = modseq


def take_keywords(hold: Hold) -> None:
    """Copy the letters' names into the index where they differ."""
    known = dict(
        hold.db.execute("SELECT bit, name FROM keyword WHERE mailbox=? AND bit<?", (hold.row.id, names.LETTERS))
    )
    found = {bit: name for bit, name in enumerate(keywords.read(hold.box.control)) if name}
    if found != known:
        hold.db.execute("DELETE FROM keyword WHERE mailbox=? AND bit<?", (hold.row.id, names.LETTERS))
        hold.db.executemany("INSERT INTO keyword VALUES(?, ?, ?)", [(hold.row.id, b, n) for b, n in found.items()])
        hold.next_modseq()


def _take_listing(hold: Hold, lines: list[Record], *, list_cur: bool, list_new: bool, born: bool) -> None:
    seen = _compare(hold, list_cur=list_cur, list_new=list_new)
    if seen.gone and (set(seen.gone) - set(seen.fresh)):
        # A name can slip through a listing while it is renamed, and it may be in the other directory.
        list_cur = list_new = True
        seen = _compare(hold, list_cur=True, list_new=True)
    renamed = [(uid, *seen.fresh.pop(base)) for base, (uid, _) in list(seen.gone.items()) if base in seen.fresh]
    kept = {names.base_of(name) for _, name, _ in renamed}
    gone = [(uid, name) for base, (uid, name) in seen.gone.items() if base not in kept]
    if renamed:
        take_renamed(hold, renamed)
    if gone:
        expunge_rows(hold, sorted(uid for uid, _ in gone))
    if seen.fresh:
        _take_fresh(hold, seen, lines)
    for name, in_new in seen.doubled:
        if _undouble(hold, name, in_new):
            # It has a name of its own now: the listing of that one finds it.
            _take_listing(hold, [], list_cur=False, list_new=True, born=False)
    if born:
        recent = hold.db.execute(
            "SELECT min(id) FROM message WHERE id BETWEEN ? AND ? AND in_new", (hold.row.low, hold.row.high)
        ).fetchone()[0]
        hold.row.first_recent = recent & uidlist.MAX_UID if recent else hold.row.uidnext
    if renamed or gone or seen.fresh:
        hold.recount()


def listing(directory: bytes) -> set[bytes]:
    return {name for name in os.listdir(directory) if not name.startswith(b".")}


def _compare(hold: Hold, *, list_cur: bool, list_new: bool) -> _Seen:
    """Names on disk against names in rows, as sets; only differences are looked at one by one."""
    row, seen = hold.row, _Seen()
    statement = "SELECT name, id & 4294967295 FROM message WHERE id BETWEEN ? AND ? AND in_new=?"
    for in_new, directory in ((0, hold.box.cur), (1, hold.box.new)):
        if not (list_new if in_new else list_cur):
            continue
        there = listing(directory)
        known = dict(hold.db.execute(statement, (row.low, row.high, in_new)))
        for name in known.keys() - there:
            seen.gone[names.base_of(name)] = (known[name], name)
        fresh = there - known.keys()
        bases = [name.partition(b":")[0] for name in fresh]
        if not seen.fresh and len(set(bases)) == len(bases) and b"" not in bases and usable(fresh):
            seen.fresh = dict(zip(bases, zip(fresh, repeat(in_new)), strict=False))
            continue
        for name in fresh:
            if b"\n" in name or b"\r" in name or not names.base_of(name):
                _log.warning("file_name_unusable", mailbox=hold.box.name, path=repr(name))
                continue
            base = names.base_of(name)
            if base in seen.fresh:
                seen.doubled.append((name, in_new))
            else:
                seen.fresh[base] = (name, in_new)
    return seen


def usable(names_there: set[bytes]) -> bool:
    """No line ends in any of them."""
    joined = b"/".join(names_there)
    return b"\n" not in joined and b"\r" not in joined


def take_renamed(hold: Hold, renamed: list[tuple[int, bytes, int]]) -> None:
    """New names of messages, with the flags they show; counters too."""
    row, low, flagged, updates = hold.row, hold.row.low, [], []
    for uid, name, in_new in renamed:
        flags, letters = names.flags_of(name)
        old = hold.db.execute("SELECT flags, keywords FROM message WHERE id=?", (low | uid,)).fetchone()
        bits = letters | (old[1] & ~names.LETTER_MASK)
        updates.append((name, in_new, flags, bits, low | uid))
        if (flags, bits) != old:
            flagged.append(uid)
            row.unseen += (not flags & SEEN) - (not old[0] & SEEN)
            row.deleted += bool(flags & DELETED) - bool(old[0] & DELETED)
    hold.db.executemany("UPDATE message SET name=?, in_new=?, flags=?, keywords=? WHERE id=?", updates)
    if flagged:
        hold.set_modseq(sorted(flagged))
    hold.saved()


def expunge_rows(hold: Hold, uids: list[int]) -> None:
    """Take messages out of the index; their files are gone. Counters are the caller's to recount."""
    ids = [(hold.row.low | uid,) for uid in uids]
    hold.db.executemany("DELETE FROM message WHERE id=?", ids)
    hold.db.executemany("DELETE FROM rendered WHERE id=?", ids)
    hold.db.executemany("DELETE FROM keys WHERE id=?", ids)
    hold.record_change(uids, EXPUNGED)


def _take_fresh(hold: Hold, seen: _Seen, lines: list[Record]) -> None:
    """Rows for files that have none: by their line, or with a new UID."""
    row = hold.row
    by_base = {base: (uid, keys) for uid, keys, base in lines}
    unknown = [base for base in seen.fresh if base not in by_base]
    if unknown:
        by_base.update(repair.find_lines(hold, unknown))
    placed: list[tuple[int, bytes, int, bytes]] = []
    unplaced: list[tuple[int, int, bytes, bytes, int]] = []
    dropped: set[int] = set()
    # at first sight there is nothing that a line could be told to have been before
    known = (
        by_base
        and hold.db.execute(
            "SELECT EXISTS(SELECT 1 FROM message WHERE id BETWEEN ? AND ?)"
            " OR EXISTS(SELECT 1 FROM change WHERE mailbox=? AND kind=?)",
            (row.low, row.high, row.id, EXPUNGED),
        ).fetchone()[0]
    )
    for base, (name, in_new) in seen.fresh.items():
        line = by_base.get(base)
        if line is None:
            unplaced.append((*names.arrival(base), base, name, in_new))
            continue
        uid, keys = line
        if not known:
            placed.append((uid, name, in_new, keys))
        elif hold.db.execute("SELECT 1 FROM message WHERE id=?", (row.low | uid,)).fetchone():
            seen.doubled.append((name, in_new))
        elif hold.db.execute(
            "SELECT 1 FROM change WHERE mailbox=? AND kind=? AND first<=? AND last>=?", (row.id, EXPUNGED, uid, uid)
        ).fetchone():
            dropped.add(uid)  # told as expunged: back again, it is another message
            unplaced.append((*names.arrival(base), base, name, in_new))
        else:
            placed.append((uid, name, in_new, keys))
    if dropped:
        repair.rewrite_without(hold, dropped)
    unplaced.sort()
    first = row.uidnext
    if unplaced:
        if first + len(unplaced) > uidlist.MAX_UID:
            raise OverflowError("mailbox is out of UIDs")
        records: list[Record] = [(uid, b"", found[2]) for uid, found in enumerate(unplaced, first)]
        hold.append_lines(records)
        placed += [(uid, name, in_new, b"") for uid, (_, _, _, name, in_new) in enumerate(unplaced, first)]
    if placed:
        placed.sort()
        _insert(hold, placed)


def _insert(hold: Hold, placed: list[tuple[int, bytes, int, bytes]]) -> None:
    modseq, low, now = hold.next_modseq(), hold.row.low, int(time.time())
    rows = []
    for uid, name, in_new, keys in placed:
        flags, letters = names.flags_of(name)
        octets = names.wire_octets(name)
        if octets is None:
            octets = octets_of(keys, os.path.join(hold.box.new if in_new else hold.box.cur, name))
            if octets is None:
                continue
        rows.append((low | uid, flags, letters, octets, in_new, name, guid_of(keys)))
    # what is the same in all rows is not bound again and again: there may be 200,000
    statement = f"INSERT OR IGNORE INTO message VALUES(?, {modseq:d}, ?, ?, ?, NULL, {now:d}, ?, ?, ?)"
    hold.db.executemany(statement, rows)
    hold.record_change([r[0] & uidlist.MAX_UID for r in rows], ARRIVED)


def guid_of(keys: bytes) -> str | None:
    """The GUID in a line, if it is not the base."""
    if not keys:
        return None
    return next((key[1:].decode("ascii", "replace") for key in keys.split() if key[:1] == b"G"), None)


def octets_of(keys: bytes, path: bytes) -> int | None:
    """The wire size, from the line or the file; None if it is no message after all."""
    if b" W" in keys:
        value = next((key[1:] for key in keys.split() if key[:1] == b"W"), b"")
        if value.isdigit():
            return int(value)
    try:
        if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
            _log.warning("not_a_message_file", path=os.fsdecode(path))
            return None
        return wire_size(path)
    except FileNotFoundError:
        return None


def _undouble(hold: Hold, name: bytes, in_new: int) -> bool:
    """One base under two names: the same file is unlinked once old enough, another gets a base of its own (True)."""
    base = names.base_of(name)
    path = os.path.join(hold.box.new if in_new else hold.box.cur, name)
    twin = None
    for directory in (hold.box.cur, hold.box.new):
        for other in os.listdir(directory):
            other_path = os.path.join(directory, other)
            if other_path != path and names.base_of(other) == base:
                twin = other_path
    try:
        here = os.stat(path)
        if twin is None:
            return False
        if os.stat(twin).st_ino == here.st_ino:
            if time.time() - here.st_ctime > _DUPLICATE_S:
                hold.disk.unlink(path)
                hold.touched()
        else:
            fresh = names.new_base(hold.box.home.host, *sizes(path))
            hold.disk.rename(path, os.path.join(hold.box.new, fresh))
            _log.warning("base_twice", mailbox=hold.box.name, path=os.fsdecode(path))
            hold.touched()
            return True
    except FileNotFoundError:
        pass  # somebody tidied up meanwhile
    return False
