"""EXPUNGE: unlink, commit, unlock, then sync the directories before anybody is told."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence

from pymx.mail.flags import DELETED
from pymx.ms import arrive, names, repair
from pymx.ms.box import Box, Hold
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.reconcile import expunge_rows
from pymx.ms.rows import select

_COLUMNS = "id & 4294967295, modseq, flags, keywords, octets, in_new, name"


def expunge(box: Box, uids: Sequence[int], *, only_deleted: bool, bases: Container[bytes] | None = None) -> list[int]:
    """Remove messages for good (with `only_deleted` those that have \\Deleted); the UIDs removed.

    `bases`: those of the messages that are meant, where the UIDs may be others' by now.
    """
    out, missed = _expunge(box, uids, only_deleted, bases)
    if missed:
        # A foreign program renamed them this very moment: list the directories, try the new names.
        with Hold(box, full=True):
            pass
        out = sorted(out + _expunge(box, missed, only_deleted, bases)[0])
    return out


def _expunge(
    box: Box, uids: Sequence[int], only_deleted: bool, bases: Container[bytes] | None
) -> tuple[list[int], list[int]]:
    out: list[int] = []
    missed: list[int] = []
    directories: set[bytes] = set()
    for start in range(0, len(uids), HOLD_MESSAGES):
        with Hold(box) as hold:
            found = select(hold.db, hold.row.low, uids[start : start + HOLD_MESSAGES], columns=_COLUMNS)
            doomed = [row for row in found if not only_deleted or row[2] & DELETED]
            if bases is not None:
                doomed = [row for row in doomed if names.base_of(row[6]) in bases]
            done = []
            for row in doomed:
                directory = box.new if row[5] else box.cur
                try:
                    hold.disk.unlink(os.path.join(directory, row[6]))
                except FileNotFoundError:
                    missed.append(row[0])
                    continue
                directories.add(directory)
                done.append(row)
            if done:
                gone = [row[0] for row in done]
                hold.touched()
                expunge_rows(hold, gone)
                arrive.count(hold, done, -1)
                out += gone
                if start + HOLD_MESSAGES >= len(uids):
                    repair.compact(hold)
    for directory in sorted(directories):
        box.home.disk.sync_directory(directory)
    return out, missed
