"""APPEND: like a delivery, with flags, keywords and date, and the told barrier before the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pymx.ms import arrive, letters
from pymx.ms.box import Box, Hold
from pymx.spool import Content

Item = tuple[Content, int, tuple[str, ...], int | None]  # content, flags, keywords, INTERNALDATE


def append(box: Box, items: Sequence[Item], render: arrive.Render | None) -> tuple[int, list[int]]:
    """All messages or none; UIDVALIDITY and UIDs, everything on disk (n + 2 syncs)."""
    disk = box.home.disk
    prepared: list[arrive.Prepared] = []
    try:
        for content, _, _, date in items:
            prepared.append(arrive.prepare(box, content, render, internaldate=date))
        box.refresh()  # rows that are missing are written in more than one hold
        with Hold(box) as hold:
            messages = [
                (message, item[1], letters.bits(hold, item[2])) for message, item in zip(prepared, items, strict=True)
            ]
            uids = arrive.place(hold, messages)
            uidvalidity = hold.row.uidvalidity
            state = os.stat(box.uidlist)
    finally:
        for message in prepared:
            message.close(disk)
    for directory in sorted({box.cur if flags or bits else box.new for _, flags, bits in messages}):
        disk.sync_directory(directory)
    box.tell(state.st_ino, state.st_size)
    return uidvalidity, uids
