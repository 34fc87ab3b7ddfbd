"""Messages as columns of text, for FETCH of whole mailboxes.

SQLite puts the columns of many messages into a few texts in one step, without the interpreter's lock; rows as tuples
take twice the time and hold the lock all of it. That is for messages next to each other in the index of which nothing
is missing; else rows are asked for (`pymx.ms.reading`), which make what is missing, and become columns here.

A piece is small enough (`PIECE_OCTETS`) that none of its texts is a block that malloc maps and the kernel clears anew
each time. Several pieces are made in one hop to a thread, until they are `HOP_OCTETS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pymx.ms import reading, rows
from pymx.ms.arrive import Render
from pymx.ms.box import Box
from pymx.ms.index import Connection
from pymx.ms.rows import MessageRow

PIECE_OCTETS = 65_536
HOP_OCTETS = 524_288
LARGE_OCTETS = 32_768  # of ENVELOPE and BODYSTRUCTURE: so large a one takes the way of rows
_FIRST = 50  # messages, when nothing is known of their size
_MADE = 200  # messages rendered in one hop
_MOST = rows.BATCH
_SEPARATOR = b"\x00"  # which stands in no IMAP string

_NUMBERS = {
    "flags": "CASE keywords WHEN 0 THEN flags ELSE flags || ':' || keywords END",
    "modseq": "modseq",
    "octets": "octets",
    "day": "CASE WHEN internaldate >= 0 THEN internaldate / 86400 END",
    "time": "time(internaldate, 'unixepoch')",
}
RENDERED = ("envelope", "bodystructure")
_RENDERED = {
    ("envelope",): "envelope",
    ("bodystructure",): "bodystructure",
    RENDERED: "envelope || x'00' || bodystructure",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """Messages as columns of text.

    `texts` has "uid" and what else was asked for: decimal "modseq", "octets", "flags" (`1`, or with keywords `1:4`);
    INTERNALDATE as "day" since 1970 and "time" of day (`13:05:00`), in UTC; "envelope" and "bodystructure".
    """

    uids: Sequence[int]
    texts: Mapping[str, Sequence[bytes]]
    octets: int  # of ENVELOPE and BODYSTRUCTURE


class Pieces:
    """The listings of `uids` (ascending), one hop after the other."""

    def __init__(self, uids: Sequence[int], columns: Sequence[str]) -> None:
        self.rendered = any(column in RENDERED for column in columns)
        self._uids = uids
        self._columns = columns
        self._dated = "day" in columns or "time" in columns
        self._next = 0
        self._size = _FIRST if self.rendered else _MOST

    @property
    def done(self) -> bool:
        return self._next >= len(self._uids)

    def hop(self, box: Box, low: int, render: Render | None) -> list[Listing]:
        """What comes next, as much as one hop takes; messages that are gone are absent."""
        out: list[Listing] = []
        at, size, octets = self._next, self._size, 0
        while at < len(self._uids) and octets < HOP_OCTETS:
            part = self._uids[at : at + size]
            with box.home.index.read() as db:
                piece = _aggregated(db, low, part, self._columns)
            at += len(part)
            if piece is None:
                out.append(self._of_rows(box, low, part, render))
                size = _MADE if self.rendered else _MOST
                break  # it may have taken long
            out.append(piece)
            if not self.rendered:
                break
            octets += piece.octets
            size = max(1, min(_MOST, len(part) * PIECE_OCTETS // max(1, piece.octets)))
        self._next, self._size = at, size  # not before: a hop that failed is done once more
        return out

    async def read_ahead(self, begin: Callable[[], asyncio.Future[list[Listing]]]) -> AsyncGenerator[Listing, None]:
        """What the hops give that `begin` starts, each started before what the last one gave is taken."""
        ahead = begin()
        try:
            while True:
                found = await ahead
                done = self.done
                if not done:
                    ahead = begin()
                for piece in found:
                    yield piece
                if done:
                    return
        finally:
            await asyncio.wait([ahead])  # nobody may be at work any more when the mailbox is closed
            if not ahead.cancelled():
                ahead.exception()  # has been raised, or nobody wants to know

    def _of_rows(self, box: Box, low: int, uids: Sequence[int], render: Render | None) -> Listing:
        found = reading.rows(box, low, uids, self.rendered, render, dated=self._dated)
        there = [row[0] for row in found]
        texts = {column: [_text(column, row) for row in found] for column in ("uid", *self._columns)}
        return Listing(there, texts, sum(len(part) for row in found for part in row[7:]))


def _text(column: str, row: MessageRow) -> bytes:
    """What `_aggregated` has of a row."""
    if column in RENDERED:
        rendered: bytes = row[7 + RENDERED.index(column)]
        return rendered
    uid, modseq, flags, keywords, octets, date = row[:6]
    match column:
        case "flags":
            return b"%d:%d" % (flags, keywords) if keywords else b"%d" % flags
        case "day":
            return b"%d" % (date // 86_400)
        case "time":
            return b"%02d:%02d:%02d" % (date // 3600 % 24, date // 60 % 60, date % 60)
    return b"%d" % {"uid": uid, "modseq": modseq, "octets": octets}[column]


def _aggregated(db: Connection, low: int, uids: Sequence[int], columns: Sequence[str]) -> Listing | None:
    """None where the messages of this range are not just those wanted, or something is missing of one."""
    if uids[-1] - uids[0] >= 4 * len(uids):
        return None
    numbers = [column for column in columns if column in _NUMBERS]
    asked = tuple(column for column in RENDERED if column in columns)
    span = (low | uids[0], low | uids[-1])
    wanted = ",".join(map(str, uids)).encode()
    there, *found = db.execute(_statement(tuple(numbers), asked), span * (2 if asked else 1)).fetchone()
    if there != wanted or (asked and found[-2] != wanted):
        return None
    texts: dict[str, Sequence[bytes]] = {"uid": wanted.split(b",")}
    for column, text in zip(numbers, found, strict=False):
        texts[column] = text.split(b",") if text else ()
    octets = 0
    if asked:
        octets = len(found[-1])
        parts = found[-1].split(_SEPARATOR)
        for at, column in enumerate(asked):
            texts[column] = parts[at :: len(asked)]
    # What SQLite has no text for is left out of a column.
    return Listing(uids, texts, octets) if all(len(column) == len(uids) for column in texts.values()) else None


@lru_cache(maxsize=64)
def _statement(numbers: tuple[str, ...], rendered: tuple[str, ...]) -> str:
    """UIDs, columns of `message`, and with `rendered` UIDs and the text of that table."""
    names = ["id & 4294967295", *(_NUMBERS[column] for column in numbers)]
    columns = ", ".join([f"CAST(group_concat({name}) AS BLOB)" for name in names])
    of_messages = f"SELECT {columns} FROM message WHERE id BETWEEN ? AND ?"  # noqa: S608  (expressions of our own)
    if not rendered:
        return of_messages
    of_rendered = (
        "SELECT CAST(group_concat(id & 4294967295) AS BLOB),"  # noqa: S608
        f" CAST(group_concat({_RENDERED[rendered]}, x'00') AS BLOB) FROM rendered WHERE id BETWEEN ? AND ?"
        f" AND length(envelope) + length(bodystructure) < {LARGE_OCTETS}"
    )
    return f"SELECT * FROM ({of_messages}), ({of_rendered})"  # noqa: S608
