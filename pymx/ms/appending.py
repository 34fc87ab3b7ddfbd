"""APPEND: like a delivery, with flags, keywords and date, and the told barrier before the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from pymx.ms import arrive, letters
from pymx.ms.box import Box, Hold
from pymx.ms.disk import opened_directory
from pymx.spool import Content

Item = tuple[Content, int, tuple[str, ...], int | None]  # content, flags, keywords, INTERNALDATE


def append(box: Box, items: Sequence[Item], render: arrive.Render | None) -> tuple[int, list[int]]:
    """All messages or none; UIDVALIDITY and UIDs, everything on disk (n + 2 syncs)."""
    disk = box.home.disk
    prepared: list[arrive.Prepared] = []
    with ExitStack() as files:  # opened under the lock: once it is free the mailbox may be renamed
        try:
            for content, _, _, date in items:
                prepared.append(arrive.prepare(box, content, render, internaldate=date))
            box.refresh()  # rows that are missing are written in more than one hold
            with Hold(box) as hold:
                messages = [
                    (message, item[1], letters.bits(hold, item[2]))
                    for message, item in zip(prepared, items, strict=True)
                ]
                paths = sorted({box.cur if flags or bits else box.new for _, flags, bits in messages})
                directories = [(files.enter_context(opened_directory(path)), path) for path in paths]
                lines = files.enter_context(open(box.uidlist, "rb"))
                uids = arrive.place(hold, messages)
                uidvalidity = hold.row.uidvalidity
        finally:
            for message in prepared:
                message.close(disk)
        for fd, path in directories:
            disk.fsync_directory(fd, path)
        state = os.fstat(lines.fileno())
        box.tell(state.st_ino, state.st_size, lines.fileno())
    return uidvalidity, uids
