"""Flags that foreign programs changed in a large mailbox, taken in without listing it under its locks.

The directories are listed and compared with the rows first, without a lock. Nothing of it is used unless the mailbox's
row is still the same in the hold, so no change of ours lies in between; what foreign programs do in between is found
by the next look, since the directories' times are recorded from before the listing. New names are taken in a thousand a
hold. Only names of known messages are: what came or seems to be gone is left to `pymx.ms.reconcile`.
"""

from __future__ import annotations

import time
from dataclasses import replace

from pymx.ms import names, reconcile
from pymx.ms.box import Box, Hold
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.row import Row

LEAST = 2000  # messages; fewer are quickly listed
_TICK_NS = 20_000_000  # changes of a directory closer than this may have the same time

Renamed = list[tuple[int, bytes, int]]  # UID, name, in_new


def take_in(box: Box, row: Row) -> None:
    """Take in what can be, with `row` being the mailbox's a moment ago."""
    if row.messages < LEAST or row.dirty_since < 0:
        return
    taken, stamp = time.time_ns(), box.stamp()
    if stamp[:3] != row.stamp[:3] or (stamp[3] == row.cur_mtime != 0 and not row.dirty_since):
        return
    found = _compare(box, row)
    if found is None:
        return
    renamed, whole = found
    if not whole and len(renamed) <= HOLD_MESSAGES:
        return
    for start in range(0, max(1, len(renamed)), HOLD_MESSAGES):
        with Hold(box, rows="stale") as hold:
            if hold.row != row or box.stamp()[:3] != row.stamp[:3]:
                return  # a new line of the uidlist would count as read, and its UID be given once more
            reconcile.take_keywords(hold)
            reconcile.take_renamed(hold, renamed[start : start + HOLD_MESSAGES])
            if whole and start + HOLD_MESSAGES >= len(renamed):
                hold.row.dirty_since = time.time() if max(stamp[3:]) > taken - _TICK_NS else 0.0
                hold.listed = stamp[3:]
        row = replace(hold.row)
    if whole:
        box.last_listing = taken / 1_000_000_000


def _compare(box: Box, row: Row) -> tuple[Renamed, bool] | None:
    """Known messages with new names, and whether that is all; None if somebody was at it meanwhile."""
    fresh: dict[bytes, tuple[bytes, int]] = {}
    gone: dict[bytes, int] = {}
    there = (reconcile.listing(box.cur), reconcile.listing(box.new))
    with box.home.index.snapshot() as db:
        if box.row(db) != row:
            return None
        known = [
            dict(
                db.execute(
                    "SELECT name, id & 4294967295 FROM message WHERE id BETWEEN ? AND ? AND in_new=?",
                    (row.low, row.high, in_new),
                )
            )
            for in_new in (0, 1)
        ]
    for in_new in (0, 1):
        for name in there[in_new] - known[in_new].keys():
            base = names.base_of(name)
            if base in fresh or not base or b"\n" in name or b"\r" in name:
                return None
            fresh[base] = (name, in_new)
        for name in known[in_new].keys() - there[in_new]:
            gone[names.base_of(name)] = known[in_new][name]
    both = fresh.keys() & gone.keys()
    return sorted((gone[base], *fresh[base]) for base in both), len(both) == len(fresh) == len(gone)
