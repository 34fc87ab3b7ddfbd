"""Reading the uidlist into a Hold, and putting it right: missing, torn, damaged, older than the index, foreign.

Afterwards the file on disk is one that Dovecot reads without complaint, every row has its line, and `row.uidnext` is
above all UIDs ever given.
"""

from __future__ import annotations

import os
import re
import secrets

from pymx import log
from pymx.ms import dovecotindex, names, uidlist, uidvalidity
from pymx.ms.box import Hold
from pymx.ms.row import Stamp
from pymx.ms.uidlist import Record, UidList

_FEW = 30
_log = log.get("ms")


def read_lines(hold: Hold, stamp: Stamp, *, whole: bool = False) -> list[Record]:
    """The lines that have no row. What can't be read is mended first. `whole`: don't trust what was read before."""
    row = hold.row
    ino, size, _ = stamp[:3]
    if not whole and row.guid and ino and ino == row.uidlist_ino and size > row.uidlist_size > 0:
        tail = _tail(hold, row.uidlist_size)
        if tail is not None:
            return tail
    if not ino:
        _missing(hold)
        return []
    with open(hold.box.uidlist, "rb") as file:
        data = file.read()
    try:
        found = uidlist.parse(data)
    except uidlist.Damaged as error:
        _log.error("uidlist_damaged", mailbox=hold.box.name, path=os.fsdecode(hold.box.uidlist), error=str(error))
        _missing(hold)
        return []
    return _whole(hold, found)


def _tail(hold: Hold, start: int) -> list[Record] | None:
    with open(hold.box.uidlist, "rb") as file:
        file.seek(start)
        data = file.read()
    records, clean = uidlist.parse_records(data)
    if not clean or (records and records[0][0] < hold.row.uidnext):
        return None
    if records:
        hold.row.uidnext = records[-1][0] + 1
    hold.saved()
    return records


def _missing(hold: Hold) -> None:
    """No uidlist: made from the rows, or a new one."""
    row = hold.row
    if row.guid and row.uidvalidity:
        _log.error("uidlist_rebuilt", mailbox=hold.box.name, path=os.fsdecode(hold.box.uidlist), count=row.messages)
        hold.rewrite(_row_records(hold))
        return
    make_uidlist(hold)


def make_uidlist(hold: Hold) -> None:
    """An empty one for a mailbox that never had one."""
    row = hold.row
    row.uidvalidity = uidvalidity.next_value(hold.disk, hold.box.home.place.account_files, hold.box.home.mode)
    row.guid = secrets.token_hex(16)
    hold.rewrite([])


def _whole(hold: Hold, found: UidList) -> list[Record]:
    row, header = hold.row, found.header
    if row.guid and (
        header.uidvalidity != row.uidvalidity or (header.guid and header.guid.lower() != row.guid.lower())
    ):
        _log.warning("mailbox_replaced", mailbox=hold.box.name, reason="another UIDVALIDITY or GUID in the uidlist")
        forget_rows(hold)
        row.guid, row.uidnext, row.first_recent = "", 1, 1
    row.uidvalidity = header.uidvalidity
    if not row.guid:
        _take_dovecots_next(hold, found)
    row.guid = header.guid or row.guid or secrets.token_hex(16)
    row.uidnext = max(row.uidnext, found.next_uid)
    hold.saved()
    lines = {uid: base for uid, _, base in found.records}
    rows = {uid: names.base_of(name) for uid, name in _rows(hold)}
    if any(lines.get(uid, base) != base for uid, base in rows.items()):
        return _renumber(hold)
    lost = rows.keys() - lines.keys()
    if lost or not found.clean:
        if lost:
            _log.error("uidlist_lines_lost", mailbox=hold.box.name, count=len(lost))
        merged = found.records + [record for record in _row_records(hold) if record[0] in lost]
        merged.sort()
        kept = _once(merged, {base: uid for uid, base in rows.items()})
        hold.rewrite(kept, extra=header.extra)
        return [record for record in kept if record[0] not in rows]
    if len(found.records) - len(rows) > 1000 and (len(found.records) - len(rows)) * 4 > len(found.records):
        pass  # many dead lines: `compact` is for a quiet moment, files without rows may still be listed
    return [record for record in found.records if record[0] not in rows]


def _take_dovecots_next(hold: Hold, found: UidList) -> None:
    """At first sight: Dovecot may have told of a UIDNEXT that its uidlist does not show (restored, or cut by hand)."""
    index = dovecotindex.read(hold.box.path)
    if index is not None and index.uidvalidity == found.header.uidvalidity and index.next_uid > found.next_uid:
        hold.row.uidnext = index.next_uid
        found.clean = False  # the new uidlist says so too


def _once(records: list[Record], uid_of: dict[bytes, int]) -> list[Record]:
    """Each base once, with the UID that was told: a second line of one base breaks Dovecot's reading."""
    seen: set[bytes] = set()
    kept = []
    for record in records:
        if record[2] not in seen and uid_of.get(record[2], record[0]) == record[0]:
            seen.add(record[2])
            kept.append(record)
    return kept


def _rows(hold: Hold) -> list[tuple[int, bytes]]:
    return hold.db.execute(
        "SELECT id & 4294967295, name FROM message WHERE id BETWEEN ? AND ?", (hold.row.low, hold.row.high)
    ).fetchall()


def _row_records(hold: Hold) -> list[Record]:
    found = hold.db.execute(
        "SELECT id & 4294967295, guid, name FROM message WHERE id BETWEEN ? AND ?", (hold.row.low, hold.row.high)
    )
    return [(uid, b" G" + guid.encode() if guid else b"", names.base_of(name)) for uid, guid, name in found]


def forget_rows(hold: Hold) -> None:
    """The mailbox is another one: nothing in the index about it holds any more."""
    row = hold.row
    for table in ("message", "rendered", "keys"):
        hold.db.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (row.low, row.high))  # noqa: S608
    hold.db.execute("DELETE FROM change WHERE mailbox=?", (row.id,))
    hold.db.execute("DELETE FROM keyword WHERE mailbox=?", (row.id,))
    row.messages = row.unseen = row.deleted = row.octets = 0
    row.expunge_floor = hold.next_modseq()
    row.cur_mtime = row.new_mtime = 0


def _renumber(hold: Hold) -> list[Record]:
    """Uidlist and index say one UID is two messages: nobody can know, so all get new ones."""
    row = hold.row
    old = row.uidvalidity
    forget_rows(hold)
    row.uidvalidity = uidvalidity.next_value(hold.disk, hold.box.home.place.account_files, hold.box.home.mode)
    row.uidnext = row.first_recent = 1
    hold.rewrite([])
    _log.error("uidvalidity_changed", mailbox=hold.box.name, reason=f"one UID, two messages; was {old}")
    return []


def find_lines(hold: Hold, bases: list[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """The lines of these bases, if they have any: a search for a few, one parse for many."""
    with open(hold.box.uidlist, "rb") as file:
        data = file.read()
    if len(bases) > _FEW:
        wanted = set(bases)
        return {base: (uid, keys) for uid, keys, base in uidlist.parse(data).records if base in wanted}
    out = {}
    for base in bases:
        if uidlist.has_base(data, base):
            line = re.search(rb"^(\d+)((?: [A-Z][^ \n]*)*) :" + re.escape(base) + rb"[:\n]", data, re.MULTILINE)
            if line:
                out[base] = (int(line[1]), line[2])
    return out


def rewrite_without(hold: Hold, dropped: set[int]) -> None:
    """Rewrite the uidlist without some lines."""
    with open(hold.box.uidlist, "rb") as file:
        found = uidlist.parse(file.read())
    hold.rewrite([r for r in found.records if r[0] not in dropped], extra=found.header.extra)


def compact(hold: Hold) -> None:
    """Rewrite the uidlist if more than a quarter (and more than 1,000) of its lines are of expunged messages."""
    row = hold.row
    with open(hold.box.uidlist, "rb") as file:
        sample = file.read(16384)
        lines = sample.count(b"\n") * row.uidlist_size // max(1, len(sample))
        if (lines - row.messages) * 5 < lines or lines - row.messages < 800:
            return  # by the length of its first lines
        file.seek(0)
        found = uidlist.parse(file.read())
    alive = {uid for uid, _ in _rows(hold)}
    dead = len(found.records) - len(alive)
    if dead > 1000 and dead * 4 > len(found.records):
        hold.rewrite([r for r in found.records if r[0] in alive], extra=found.header.extra)
