"""STORE and the move of new messages to `cur/`: renames under the lock, one modseq and one commit per hold.

Nothing is synced: flags may lose the last moments in a power cut, never in a kill.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence

from pymx.mail.flags import DELETED, PASSED, SEEN
from pymx.ms import letters, names
from pymx.ms.box import Box, Hold
from pymx.ms.index import FLAGGED
from pymx.ms.rows import MessageRow, select

HOLD_MESSAGES = 1000


def store(
    box: Box, uids: Sequence[int], mode: str, flags: int, keywords: Sequence[str], unchanged_since: int | None
) -> tuple[list[MessageRow], list[int], set[int]]:
    """Change flags; the rows as they are now, UIDs left alone by `unchanged_since`, and the modseqs given."""
    rows: list[MessageRow] = []
    modified: list[int] = []
    given: set[int] = set()
    for start in range(0, len(uids), HOLD_MESSAGES):
        part = uids[start : start + HOLD_MESSAGES]
        missed = False
        for full in (False, True):
            with Hold(box, full=full) as hold:
                if mode == "remove":
                    bits = letters.known_bits(hold.db, hold.row, keywords)
                else:
                    bits = letters.bits(hold, keywords)
                refused, missed = _store_part(hold, part, mode, flags, bits, unchanged_since)
                found = select(hold.db, hold.row.low, part)
                if hold.modseq:
                    given.add(hold.modseq)
            if not missed:
                break
        modified += refused
        rows += found
    if modified:
        left = set(modified)
        rows = [row for row in rows if row[0] not in left]
    return rows, modified, given


def _store_part(
    hold: Hold, uids: Sequence[int], mode: str, flags: int, bits: int, unchanged_since: int | None
) -> tuple[list[int], bool]:
    row, missed = hold.row, False
    updates: list[tuple[int, int, int, bytes, int]] = []
    modified: list[int] = []
    for uid, modseq, old_flags, old_bits, in_new, name in select(
        hold.db, row.low, uids, columns="id & 4294967295, modseq, flags, keywords, in_new, name"
    ):
        if unchanged_since is not None and modseq > unchanged_since:
            modified.append(uid)
            continue
        if mode == "add":
            new_flags, new_bits = old_flags | flags, old_bits | bits
        elif mode == "remove":
            new_flags, new_bits = old_flags & ~flags, old_bits & ~bits
        else:
            new_flags, new_bits = flags | (old_flags & PASSED), bits
        if (new_flags, new_bits) == (old_flags, old_bits):
            continue
        fresh = names.with_flags(name, new_flags, new_bits)
        if _rename(hold, name, in_new, fresh):
            updates.append((new_flags, new_bits, uid, fresh, old_flags))
        else:
            missed = True
    if updates:
        _write(hold, updates)
    return modified, missed


def _rename(hold: Hold, name: bytes, in_new: int, fresh: bytes) -> bool:
    """False if the file is not where the row says: a foreign program moved it this very moment."""
    box = hold.box
    source = os.path.join(box.new if in_new else box.cur, name)
    target = os.path.join(box.cur, fresh)
    if source == target:
        return True
    try:
        hold.disk.rename(source, target)
    except FileNotFoundError:
        return False
    hold.touched()
    return True


def _write(hold: Hold, updates: list[tuple[int, int, int, bytes, int]]) -> None:
    row, modseq = hold.row, hold.next_modseq()
    hold.db.executemany(
        "UPDATE message SET modseq=?, flags=?, keywords=?, in_new=0, name=? WHERE id=?",
        [(modseq, flags, bits, name, row.low | uid) for flags, bits, uid, name, _ in updates],
    )
    for flags, _, _, _, old in updates:
        row.unseen += (not flags & SEEN) - (not old & SEEN)
        row.deleted += bool(flags & DELETED) - bool(old & DELETED)
    hold.record_change([u[2] for u in updates], FLAGGED)


def claim_new(box: Box) -> int:
    """SELECT: move what is in `new/` to `cur/`, make those messages nobody else's \\Recent; the first recent UID."""
    with Hold(box) as hold:
        row = hold.row
        first = row.first_recent
        if first < row.uidnext:
            found = hold.db.execute(
                "SELECT id, name FROM message WHERE id BETWEEN ? AND ? AND in_new", (row.low | first, row.high)
            ).fetchall()
            moved = []
            for message, name in found:
                fresh = names.with_flags(name, *names.flags_of(name))
                if _rename(hold, name, 1, fresh):
                    moved.append((fresh, message))
            hold.db.executemany("UPDATE message SET name=?, in_new=0 WHERE id=?", moved)
            row.first_recent = row.uidnext
            hold.saved()
        return first


def positions(uids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where `wanted` UIDs stand in an ascending view; those not in it left out."""
    out = []
    for uid in wanted:
        at = bisect_left(uids, uid)
        if at < len(uids) and uids[at] == uid:
            out.append(at)
    return out
