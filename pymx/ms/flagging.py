"""STORE and the move of new messages to `cur/`: renames under the lock, one modseq and one commit per hold.

Nothing is synced: flags may lose the last moments in a power cut, never in a kill.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from pymx.mail.flags import DELETED, PASSED, SEEN
from pymx.ms import letters, names
from pymx.ms.box import Box, Hold
from pymx.ms.index import FLAGGED
from pymx.ms.rows import COLUMNS, MessageRow, select

HOLD_MESSAGES = 1000
_UPDATE = (
    "UPDATE message SET modseq=?, flags=?, keywords=?, in_new=0,"
    " name=CAST(substr(name, 1, length(name) - ?) || ? AS BLOB) WHERE id IN (SELECT value FROM json_each(?))"
)
MAX_MODSEQ = 0x7FFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Change:
    """What STORE asks for; `mode` is set, add or remove. `known`: the session has been told all up to this modseq."""

    mode: str
    flags: int
    keywords: Sequence[str]
    unchanged_since: int | None = None
    known: int = MAX_MODSEQ


@dataclass(slots=True)
class Done:
    """What STORE did: the rows as they are now, and UIDs left alone by `unchanged_since`."""

    rows: list[MessageRow] = field(default_factory=list)
    modified: list[int] = field(default_factory=list)
    given: set[int] = field(default_factory=set)  # modseqs of nothing but these changes
    mixed: set[int] = field(default_factory=set)  # UIDs that others had changed since the session was last told


@dataclass(slots=True)
class _Alike:
    """Messages of one hold with the same flags and the same end of their names, and what becomes of both."""

    flags: int
    keywords: int
    ending: bytes
    cut: int  # octets of the old ending
    unchanged: bool
    touched: list[int] = field(default_factory=list)  # UIDs


def store(box: Box, uids: Sequence[int], change: Change) -> Done:
    """Change flags."""
    done = Done()
    for start in range(0, len(uids), HOLD_MESSAGES):
        missed = _hold(box, uids[start : start + HOLD_MESSAGES], False, change, done)
        if missed:
            # A foreign program renamed them this very moment: list the directories, try the new names.
            _hold(box, missed, True, change, done)
            done.rows.sort()
    return done


def _hold(box: Box, uids: Sequence[int], full: bool, change: Change, done: Done) -> list[int]:
    """One hold's work; the UIDs whose files were not where the rows say."""
    with Hold(box, full=full) as hold:
        foreign = hold.modseq  # of what others did to the files, and then of our change too
        if change.mode == "remove":
            bits = letters.known_bits(hold.db, hold.row, change.keywords)
        else:
            bits = letters.bits(hold, change.keywords)
        missed = _store_part(hold, uids, change, bits, done)
        if hold.modseq and not foreign:
            done.given.add(hold.modseq)
    return missed


def _store_part(hold: Hold, uids: Sequence[int], change: Change, bits: int, done: Done) -> list[int]:
    since = change.unchanged_since
    low, missed, given = hold.row.low, [], 0
    alike: dict[tuple[int, int, bytes], _Alike] = {}
    cur, new, rename = hold.box.cur + b"/", hold.box.new + b"/", hold.disk.rename
    for row in select(hold.db, low, uids, columns=f"{COLUMNS}, in_new, name"):
        uid, modseq, old_flags, old_bits, octets, date, saved, in_new, name = row
        if since is not None and modseq > since:
            done.modified.append(uid)
            continue
        base = names.before_flags(name)
        ending = name[len(base) :]
        group = alike.get((old_flags, old_bits, ending))
        if group is None:
            group = alike[old_flags, old_bits, ending] = _alike(change, bits, row, base)
        if group.unchanged:
            done.rows.append(row[:7])
            continue
        if in_new or ending != group.ending:
            try:
                rename((new if in_new else cur) + name, cur + base + group.ending)
            except FileNotFoundError:
                missed.append(uid)
                continue
        given = given or hold.next_modseq()
        group.touched.append(uid)
        done.rows.append((uid, given, group.flags, group.keywords, octets, date, saved))
        if modseq > change.known:
            done.mixed.add(uid)
    _record(hold, alike)
    return missed


def _alike(change: Change, bits: int, row: MessageRow, base: bytes) -> _Alike:
    """What becomes of a message, and so of all that are like it."""
    old_flags, old_bits, name = row[2], row[3], row[8]
    if change.mode == "add":
        flags, keywords = old_flags | change.flags, old_bits | bits
    elif change.mode == "remove":
        flags, keywords = old_flags & ~change.flags, old_bits & ~bits
    else:
        flags, keywords = change.flags | (old_flags & PASSED), bits
    ending = names.with_flags(name, flags, keywords)[len(base) :]
    unchanged = flags == old_flags and keywords == old_bits
    return _Alike(flags, keywords, ending, len(name) - len(base), unchanged)


def _record(hold: Hold, alike: dict[tuple[int, int, bytes], _Alike]) -> None:
    """Write rows and counters of what was renamed, with one statement for all that are alike."""
    row, beyond = hold.row, 0
    touched: list[int] = []
    for (old_flags, old_bits, _), group in alike.items():
        if not group.touched:
            continue
        touched += group.touched
        beyond |= old_bits ^ group.keywords
        ids = json.dumps([row.low | uid for uid in group.touched])
        hold.db.execute(_UPDATE, (hold.modseq, group.flags, group.keywords, group.cut, group.ending, ids))
        row.unseen += len(group.touched) * ((not group.flags & SEEN) - (not old_flags & SEEN))
        row.deleted += len(group.touched) * (bool(group.flags & DELETED) - bool(old_flags & DELETED))
    if touched:
        hold.touched()
        hold.more_keywords = beyond >> names.LETTERS != 0
        hold.record_change(sorted(touched), FLAGGED)


def move_to_cur(hold: Hold, name: bytes) -> bytes | None:
    """Move a message of `new/` (STORE.md s. 4.10); its name in `cur/`, None if a foreign program was faster."""
    moved = names.with_flags(name, *names.flags_of(name))
    try:
        hold.disk.rename(os.path.join(hold.box.new, name), os.path.join(hold.box.cur, moved))
    except FileNotFoundError:
        return None
    hold.touched()
    return moved


def claim_new(box: Box) -> int:
    """SELECT: make the messages since the last claim nobody else's \\Recent, move those in `new/` to `cur/`.

    The first recent UID. Killed in between, some stay in `new/`, which is no harm.
    """
    with Hold(box) as hold:
        row = hold.row
        first, stop = row.first_recent, row.uidnext
        if first >= stop:
            return first
        at = _move_new(hold, first, stop)
        row.first_recent = stop
        hold.saved()
    while at < stop:
        with Hold(box) as hold:
            at = _move_new(hold, at, stop)
    return first


def _move_new(hold: Hold, at: int, stop: int) -> int:
    """Move what one hold takes of the UIDs from `at` to below `stop`; where to go on."""
    found = hold.db.execute(
        "SELECT id, name FROM message WHERE id BETWEEN ? AND ? AND in_new ORDER BY id LIMIT ?",
        (hold.row.low | at, hold.row.low | (stop - 1), HOLD_MESSAGES),
    ).fetchall()
    moved = []
    for message, name in found:
        fresh = move_to_cur(hold, name)
        if fresh is not None:
            moved.append((fresh, message))
    hold.db.executemany("UPDATE message SET name=?, in_new=0 WHERE id=?", moved)
    return (found[-1][0] - hold.row.low) + 1 if len(found) == HOLD_MESSAGES else stop


def positions(uids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where `wanted` UIDs stand in an ascending view; those not in it left out."""
    out = []
    for uid in wanted:
        at = bisect_left(uids, uid)
        if at < len(uids) and uids[at] == uid:
            out.append(at)
    return out
