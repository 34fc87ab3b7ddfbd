"""Rows of messages as tuples: `(uid, modseq, flags, keywords, octets, internaldate, savedate)`.

Octets are those of the wire form, dates Unix seconds. A range of UIDs is one scan of the primary key; a sparse set is
asked for by value.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from pymx.ms.index import UID_MASK, Connection
from pymx.ms.names import base_of

MessageRow = tuple[Any, ...]
COLUMNS = "id & 4294967295, modseq, flags, keywords, octets, internaldate, savedate"
_RENDERED = (
    "SELECT m.id & 4294967295, modseq, flags, keywords, octets, internaldate, savedate, envelope, bodystructure"
    " FROM message m LEFT JOIN rendered r ON r.id = m.id WHERE m.id IN ("
)
BATCH = 2000
_BY_VALUE = 900


def select(db: Connection, low: int, uids: Sequence[int], *, columns: str = COLUMNS) -> list[MessageRow]:
    """The rows of `uids` (ascending), in UID order; expunged ones are absent. The first column must be the UID."""
    if not uids:
        return []
    first, last = uids[0], uids[-1]
    if last - first < 4 * len(uids):
        found = db.execute(
            f"SELECT {columns} FROM message WHERE id BETWEEN ? AND ?",  # noqa: S608  (column names of our own)
            (low | first, low | last),
        ).fetchall()
        if last - first + 1 != len(uids) and len(found) > 0:
            wanted = set(uids)
            found = [row for row in found if row[0] in wanted]
        return found
    out: list[MessageRow] = []
    for start in range(0, len(uids), _BY_VALUE):
        ids = [low | uid for uid in uids[start : start + _BY_VALUE]]
        places = ",".join("?" * len(ids))
        out += db.execute(f"SELECT {columns} FROM message WHERE id IN ({places}) ORDER BY id", ids).fetchall()  # noqa: S608
    return out


def select_rendered(db: Connection, low: int, uids: Sequence[int]) -> list[MessageRow]:
    """Rows with ENVELOPE and BODYSTRUCTURE behind them; None where not rendered yet."""
    out: list[MessageRow] = []
    for start in range(0, len(uids), _BY_VALUE):
        ids = [low | uid for uid in uids[start : start + _BY_VALUE]]
        places = ",".join("?" * len(ids))
        out += db.execute(_RENDERED + places + ") ORDER BY m.id", ids).fetchall()
    return out


def name_of(db: Connection, low: int, uid: int) -> tuple[bytes, int, int] | None:
    """File name, in_new and wire octets of one message."""
    found: tuple[bytes, int, int] | None = db.execute(
        "SELECT name, in_new, octets FROM message WHERE id=?", (low | (uid & UID_MASK),)
    ).fetchone()
    return found


def changed(db: Connection, mailbox: int, low: int, since: int, kind: int) -> list[MessageRow]:
    """Rows whose messages `change` names with this kind after `since`, in UID order."""
    found: dict[int, MessageRow] = {}
    for first, last in db.execute(
        "SELECT DISTINCT first, last FROM change WHERE mailbox=? AND modseq>? AND kind=?", (mailbox, since, kind)
    ).fetchall():
        for row in db.execute(
            f"SELECT {COLUMNS} FROM message WHERE id BETWEEN ? AND ?",  # noqa: S608
            (low | first, low | last),
        ):
            found[row[0]] = row
    return [found[uid] for uid in sorted(found)]


def modified_since(db: Connection, low: int, uids: Sequence[int], since: int) -> list[int]:
    """Those of `uids` (ascending) whose modseq is above `since`."""
    if not uids:
        return []
    found = [
        uid
        for (uid,) in db.execute(
            "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ? AND modseq > ?",
            (low | uids[0], low | uids[-1], since),
        )
    ]
    if len(uids) == uids[-1] - uids[0] + 1:
        return found  # nothing lies between them
    wanted = set(uids)
    return [uid for uid in found if uid in wanted]


def select_previews(db: Connection, low: int, uids: Sequence[int]) -> list[tuple[int, bytes | None]]:
    """UIDs of the messages that are there, with the previews known of them."""
    out: list[tuple[int, bytes | None]] = []
    for start in range(0, len(uids), _BY_VALUE):
        ids = [low | uid for uid in uids[start : start + _BY_VALUE]]
        places = ",".join("?" * len(ids))
        out += db.execute(
            "SELECT m.id & 4294967295, preview FROM message m LEFT JOIN rendered r ON r.id = m.id"  # noqa: S608
            f" WHERE m.id IN ({places})",
            ids,
        ).fetchall()
    return out


def guids(db: Connection, low: int, uids: Sequence[int]) -> list[tuple[int, str]]:
    """UIDs with the messages' GUIDs: the one in the uidlist line, else the base of the file name."""
    found = select(db, low, uids, columns="id & 4294967295, guid, name")
    return [(uid, guid or os.fsdecode(base_of(name))) for uid, guid, name in found]


def first_unseen(db: Connection, low: int, uids: Sequence[int]) -> int | None:
    """The first of `uids` without \\Seen."""
    if not uids:
        return None
    statement = "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ? AND flags & 1 = 0"
    for (uid,) in db.execute(statement, (low | uids[0], low | uids[-1])):
        at = bisect_left(uids, uid)
        if at < len(uids) and uids[at] == uid:
            return int(uid)
    return None


def deleted(db: Connection, low: int, uids: Sequence[int]) -> list[int]:
    """Those of `uids` that have \\Deleted."""
    if not uids:
        return []
    found = db.execute(
        "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ? AND flags & 8", (low | uids[0], low | uids[-1])
    ).fetchall()
    doomed = {uid for (uid,) in found}
    return [uid for uid in uids if uid in doomed] if doomed else []
