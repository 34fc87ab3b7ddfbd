"""The messages a session sees: an immutable array of UIDs, position + 1 being the sequence number.

A view belongs to one modseq; the next one is derived from the index's `change` table and shared by all sessions of a
process that stood on the same array.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Protocol

from pymx.ms.index import EXPUNGED, UID_MASK, Connection

Uids = array  # array('I'), never changed in place


class RowLike(Protocol):
    """What a view needs of a mailbox's row."""

    id: int
    highestmodseq: int
    expunge_floor: int
    messages: int

    @property
    def low(self) -> int: ...
    @property
    def high(self) -> int: ...


def load(db: Connection, row: RowLike) -> array[int]:
    """All UIDs of the mailbox."""
    found = db.execute("SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ?", (row.low, row.high)).fetchall()
    return array("I", [uid for (uid,) in found])


def expunged_since(db: Connection, row: RowLike, uids: array[int], since: int) -> list[int]:
    """Positions in `uids` of messages that are gone since `since`, ascending."""
    if since < row.expunge_floor:
        there = set(load(db, row))
        return [n for n, uid in enumerate(uids) if uid not in there]
    gone: set[int] = set()
    for first, last in db.execute(
        "SELECT first, last FROM change WHERE mailbox=? AND modseq>? AND kind=?", (row.id, since, EXPUNGED)
    ):
        gone.update(range(bisect_left(uids, first), bisect_right(uids, last)))
    return sorted(gone)


def vanished(
    db: Connection, row: RowLike, uids: array[int], spans: Sequence[tuple[int, int]], since: int, uidnext: int
) -> list[tuple[int, int]]:
    """Runs of UIDs within `spans` that are gone since `since` and are not in the view `uids`.

    When `since` is older than what `change` remembers: all that do not exist.
    """
    if since < row.expunge_floor:
        gone = [(first, min(last, uidnext - 1)) for first, last in spans]
    else:
        found = db.execute(
            "SELECT first, last FROM change WHERE mailbox=? AND modseq>? AND kind=? ORDER BY first",
            (row.id, since, EXPUNGED),
        )
        gone = _common(_joined(found), spans)
    out: list[tuple[int, int]] = []
    for first, last in gone:
        start, stop = bisect_left(uids, first), bisect_right(uids, last)
        for uid in uids[start:stop]:
            if first < uid:
                out.append((first, uid - 1))
            first = uid + 1
        if first <= last:
            out.append((first, last))
    return out


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs in the order of their beginnings, those that touch made one."""
    out: list[tuple[int, int]] = []
    for first, last in runs:
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def _common(runs: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What lies in both; each ascending and disjoint."""
    out = []
    at = 0
    for first, last in runs:
        while at < len(spans) and spans[at][1] < first:
            at += 1
        for low, high in spans[at:]:
            if low > last:
                break
            out.append((max(first, low), min(last, high)))
    return out


def without(uids: array[int], positions: list[int]) -> array[int]:
    """`uids` less those at `positions` (ascending)."""
    if not positions:
        return uids
    if len(positions) < 64:
        left = uids[:]
        for position in reversed(positions):
            del left[position]
        return left
    gone = set(positions)
    return array("I", [uid for n, uid in enumerate(uids) if n not in gone])


def arrived_since(db: Connection, row: RowLike, uids: array[int], seen_uidnext: int) -> list[int]:
    """UIDs above what the view has looked at."""
    after = max(uids[-1] if uids else 0, seen_uidnext - 1)
    if after >= UID_MASK:
        return []
    found = db.execute(
        "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ?", (row.low | (after + 1), row.high)
    ).fetchall()
    return [uid for (uid,) in found]


class ViewCache:
    """The latest whole view and the latest step, so that sessions share arrays."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._full: tuple[int, int, array[int]] = (0, 0, array("I"))
        self._step: tuple[array[int], array[int]] | None = None

    def full(self, db: Connection, row: RowLike) -> array[int]:
        """The view of somebody who opens the mailbox now."""
        with self._mutex:
            mailbox, modseq, uids = self._full
            if mailbox == row.id and modseq == row.highestmodseq and len(uids) == row.messages:
                return uids
            fresh = None
            if mailbox == row.id and row.expunge_floor <= modseq < row.highestmodseq:
                fresh = without(uids, expunged_since(db, row, uids, modseq))
                arrived = arrived_since(db, row, fresh, 0)
                if arrived:
                    fresh = fresh + array("I", arrived)
            if fresh is None or len(fresh) != row.messages:
                fresh = load(db, row)
            self._full = (row.id, row.highestmodseq, fresh)
            return fresh

    def shared(self, old: array[int], new: array[int]) -> array[int]:
        """An array equal to `new` that others may have already."""
        with self._mutex:
            if self._full[2] is not new and self._full[2] == new:
                return self._full[2]
            if self._step is not None and self._step[0] is old and self._step[1] == new:
                return self._step[1]
            self._step = (old, new)
            return new
