"""Reading messages and filling in what rows lack: dates, ENVELOPE and BODYSTRUCTURE of messages that came from outside.

Files are opened by the name in the row, without a lock. A name that is no longer there was changed by somebody: the row
is read again, then `cur/` and `new/` are tried, then the mailbox is compared with its files; after that it is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from pymx.mail.preview import MAX_OCTETS, preview
from pymx.ms import keys, packed
from pymx.ms.arrive import Render, keep_rendered
from pymx.ms.box import Box, Hold
from pymx.ms.measure import to_wire
from pymx.ms.rows import MessageRow, name_of, select, select_previews, select_rendered

MAX_HEADER_OCTETS = 1_048_576
_END_OF_HEADER = re.compile(rb"\n\r?\n")


def open_message(box: Box, uid: int) -> int | None:
    """A file descriptor of the message, unpacked if need be, or None when it is gone."""
    for attempt in range(3):
        if attempt == 2:
            with Hold(box, full=True):
                pass
        with box.home.index.read() as db:
            row = box.row(db)
            found = name_of(db, row.low, uid) if row else None
        if found is None:
            return None
        name, in_new, _ = found
        directories = (box.new, box.cur) if in_new else (box.cur, box.new)
        for directory in directories:
            try:
                return packed.open_plain(os.path.join(directory, name))
            except FileNotFoundError:
                continue
    return None


def read_message(box: Box, uid: int) -> bytes | None:
    """The whole message in wire form, or None when it is gone."""
    fd = open_message(box, uid)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return to_wire(file.read())


def read_header(box: Box, uid: int) -> bytes | None:
    """The header block in wire form, with the empty line; of a larger one the first MAX_HEADER_OCTETS."""
    fd = open_message(box, uid)
    if fd is None:
        return None
    try:
        return header_of(fd)
    finally:
        os.close(fd)


def header_of(fd: int) -> bytes:
    """As `read_header`, of an open file."""
    data = bytearray()
    while len(data) < MAX_HEADER_OCTETS and (piece := os.read(fd, 16384)):
        searched = max(0, len(data) - 2)
        data += piece
        if data.startswith((b"\n", b"\r\n")):
            return b"\r\n"
        end = _END_OF_HEADER.search(data, searched)
        if end is not None:
            return to_wire(bytes(data[: end.end()]))
    return to_wire(bytes(data[:MAX_HEADER_OCTETS]))


def fill_keys(box: Box, low: int, uids: Sequence[int], render: Render, stopped: Callable[[], bool]) -> None:
    """Make rows of `keys` for messages that have none, from their headers."""
    for portion in keys.in_portions(uids):
        if stopped():
            return
        made = []
        with box.home.index.read() as db:
            files = select(db, low, portion, columns="id & 4294967295, in_new, name")
        for uid, in_new, name in files:
            try:
                fd = packed.open_plain(os.path.join(box.new if in_new else box.cur, name))
            except FileNotFoundError:
                header = read_header(box, uid)
            else:
                try:
                    header = header_of(fd)
                finally:
                    os.close(fd)
            if header is not None:
                made.append((low | uid, render(header)[2]))
        with box.home.index.write() as db:
            keys.keep(db, made)


def read_small(box: Box, low: int, uids: Sequence[int], limit: int) -> dict[int, bytes]:
    """The wire forms of those messages that have at most `limit` octets and whose file is where its row says."""
    with box.home.index.read() as db:
        found = select(db, low, uids, columns="id & 4294967295, octets, in_new, name")
    out = {}
    for uid, octets, in_new, name in found:
        if octets > limit:
            continue
        try:
            fd = os.open(os.path.join(box.new if in_new else box.cur, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            data = os.read(fd, limit + 1)
            if packed.kind(data):
                continue
            if len(data) <= limit and not os.read(fd, 1):
                out[uid] = to_wire(data)
        finally:
            os.close(fd)
    return out


def previews(box: Box, low: int, uids: Sequence[int], *, lazy: bool) -> dict[int, bytes | None]:
    """Previews as UTF-8; those that are missing are made from the file and kept, or are None with `lazy`."""
    with box.home.index.read() as db:
        found: dict[int, bytes | None] = dict(select_previews(db, low, uids))
    if lazy:
        return found
    made = []
    for uid in [uid for uid, known in found.items() if known is None]:
        fd = open_message(box, uid)
        if fd is None:
            continue
        with open(fd, "rb") as file:
            text = preview(to_wire(file.read(MAX_OCTETS))).encode()
        made.append((low | uid, text))
        found[uid] = text
    if made:
        with box.home.index.write() as db:
            db.executemany(
                "INSERT INTO rendered(id, preview) SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM message WHERE id=?1)"
                " ON CONFLICT(id) DO UPDATE SET preview=excluded.preview",
                made,
            )
    return found


def rows(
    box: Box, low: int, uids: Sequence[int], rendered: bool, render: Render | None, *, dated: bool = True
) -> list[MessageRow]:
    """Rows of the messages that are there, with nothing missing in them but, without `dated`, their dates."""
    with box.home.index.read() as db:
        found = select_rendered(db, low, uids) if rendered else select(db, low, uids)
    undated = [row[0] for row in found if row[5] is None] if dated else []
    unrendered = [row[0] for row in found if row[7] is None] if rendered else []
    if not undated and not unrendered:
        return found
    if undated:
        _fill_dates(box, low, undated)
    if unrendered and render is not None:
        _fill_rendered(box, low, unrendered, render)
    with box.home.index.read() as db:
        found = select_rendered(db, low, uids) if rendered else select(db, low, uids)
    # what is still missing has no file any more; the next listing takes its row away
    return [row for row in found if (row[5] is not None or not dated) and (not rendered or row[7] is not None)]


def _fill_dates(box: Box, low: int, uids: Sequence[int]) -> None:
    with box.home.index.read() as db:
        files = select(db, low, uids, columns="id & 4294967295, in_new, name")
    dates = []
    for uid, in_new, name in files:
        try:
            date = int(os.stat(os.path.join(box.new if in_new else box.cur, name)).st_mtime)
        except FileNotFoundError:
            fd = open_message(box, uid)
            if fd is None:
                continue
            date = int(os.fstat(fd).st_mtime)
            os.close(fd)
        dates.append((date, low | uid))
    with box.home.index.write() as db:
        db.executemany("UPDATE message SET internaldate=? WHERE id=?", dates)


def _fill_rendered(box: Box, low: int, uids: Sequence[int], render: Render) -> None:
    filled = []
    with box.home.index.read() as db:
        files = select(db, low, uids, columns="id & 4294967295, in_new, name")
    for uid, in_new, name in files:
        try:
            fd = packed.open_plain(os.path.join(box.new if in_new else box.cur, name))
        except FileNotFoundError:
            message = read_message(box, uid)
        else:
            with open(fd, "rb", buffering=0) as file:
                message = to_wire(file.read())
        if message is not None:
            filled.append((low | uid, render(message)))
    with box.home.index.write() as db:
        keep_rendered(db, filled)
