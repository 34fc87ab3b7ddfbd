"""Delivery into one mailbox, and what a session needs to begin: the row, told."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pymx.ms import arrive, firstsight, letters
from pymx.ms.box import Box, Hold
from pymx.ms.disk import opened_directory
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.firstsight import Counted
from pymx.ms.row import FILLING, Row
from pymx.spool import Content


@dataclass(frozen=True, slots=True)
class Placed:
    """A delivered message; `prepared` is still open if it was to be kept for more mailboxes."""

    uidvalidity: int
    uid: int
    prepared: arrive.Prepared | None
    filling: bool  # rows of the mailbox are missing, perhaps with nobody at it


@dataclass(frozen=True, slots=True)
class Opened:
    """A mailbox at SELECT: its row, its view, its keywords."""

    row: Row
    uids: array[int]
    first_recent: int
    keywords: list[str]
    early: firstsight.Begun | None = None  # its rows are not written yet


def deliver(
    box: Box,
    content: Content,
    flags: int,
    render: arrive.Render | None,
    *,
    shared: arrive.Prepared | None = None,
    keep: bool = False,
) -> Placed:
    """Store one message: durable at return (two syncs; one if it is linked to a file already synced)."""
    disk = box.home.disk
    if not box.guid and firstsight.begin(box) is not None:
        firstsight.complete(box)
    message = shared.shared() if shared else arrive.prepare(box, content, render)
    directory = box.cur if flags else box.new
    try:
        with ExitStack() as files:
            try:
                with Hold(box, rows="some") as hold:
                    # opened under the lock: once it is free the mailbox may be renamed, and the message with it
                    fd = files.enter_context(opened_directory(directory))
                    uid = arrive.place(hold, [(message, flags, 0)])[0]
                    uidvalidity, filling = hold.row.uidvalidity, hold.row.dirty_since == FILLING
            except OSError as error:
                if shared is None or error.errno not in (errno.EXDEV, errno.EMLINK):
                    raise
                return deliver(box, content, flags, render)
            disk.fsync_directory(fd, directory)
    except BaseException:
        message.close(disk)
        raise
    if keep:
        return Placed(uidvalidity, uid, message, filling)
    message.close(disk)
    return Placed(uidvalidity, uid, None, filling)


def told_row(box: Box) -> Row:
    """The mailbox's row, in line with the files, its UIDNEXT on disk."""
    box.refresh()
    with box.home.index.read() as db:
        row = box.row(db)
    if row is None:
        raise NoSuchMailbox("Mailbox does not exist")
    box.tell(row.uidlist_ino, row.uidlist_size)
    return row


def counted(box: Box) -> Counted:
    """What STATUS tells, its UIDNEXT on disk."""
    early = firstsight.counted(box)
    if early is not None:
        box.tell(early.row.uidlist_ino, early.row.uidlist_size)
        return early
    row, freed = told_row(box), 0
    with box.home.index.read() as db:
        recent = db.execute(
            "SELECT count(*) FROM message WHERE id BETWEEN ? AND ?", (row.low | row.first_recent, row.high)
        ).fetchone()[0]
        if row.deleted:
            freed = db.execute(
                "SELECT coalesce(sum(octets), 0) FROM message WHERE id BETWEEN ? AND ? AND flags & 8",
                (row.low, row.high),
            ).fetchone()[0]
    return Counted(row, recent, freed)


def opened(box: Box, claim: Callable[[Box], int] | None) -> Opened:
    """Everything a session begins with; `claim` makes new messages this session's \\Recent."""
    begun = firstsight.begin(box, claim=claim is not None, tells=True)
    if begun is not None:
        box.tell(begun.row.uidlist_ino, begun.row.uidlist_size)
        return Opened(begun.row, begun.uids, begun.first_recent, begun.keywords, begun)
    row = told_row(box)
    first_recent = row.first_recent
    if claim is not None and row.first_recent < row.uidnext:
        first_recent = claim(box)
    with box.home.index.snapshot() as db:
        fresh = box.row(db)
        if fresh is None:
            raise NoSuchMailbox("Mailbox does not exist")
        uids = box.views.full(db, fresh)
        keywords = letters.keyword_names(db, fresh)
    if claim is not None and fresh.first_recent < fresh.uidnext:  # one came in between
        claimed = claim(box)
        first_recent = first_recent if claimed == fresh.first_recent else claimed
    box.tell(fresh.uidlist_ino, fresh.uidlist_size)
    return Opened(fresh, uids, first_recent, keywords)
