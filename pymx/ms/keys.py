"""The table `keys`: what SEARCH, SORT and THREAD ask of headers, in rows of their own so that a scan is short.

A row is made with ENVELOPE at delivery, or the first time somebody searches or sorts (then from the header alone). A
message without one (NULL in an outer join) has not been looked at yet, and a NULL among the first seven columns of a
row means that the header must be asked. Rows go with their messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pymx.ms.index import Connection

COLUMNS = (
    "sent",
    "sent_day",
    "from_text",
    "to_text",
    "cc_text",
    "bcc_text",
    "subject_text",
    "base_subject",
    "reply",
    "from_key",
    "to_key",
    "cc_key",
    "from_name",
    "to_name",
    "thread",
)
Keys = tuple[int | bytes | None, ...]

_REPLACE = f"REPLACE INTO keys(id, {', '.join(COLUMNS)}) VALUES(?{', ?' * len(COLUMNS)})"
_COPY = f"REPLACE INTO keys SELECT ?, {', '.join(COLUMNS)} FROM keys WHERE id=?"  # noqa: S608
# Somebody may have expunged it since its header was read.
_WITHOUT_MESSAGE = "DELETE FROM keys WHERE id=? AND NOT EXISTS (SELECT 1 FROM message WHERE message.id = keys.id)"
_AT_ONCE = 200
_BY_VALUE = 900


def keep(db: Connection, made: Sequence[tuple[int, Keys | None]]) -> None:
    """Write rows, by message id, of those messages that are in the index."""
    db.executemany(_REPLACE, [(at, *keys) for at, keys in made if keys is not None])
    db.executemany(_WITHOUT_MESSAGE, [(at,) for at, _ in made])


def copy(db: Connection, pairs: Iterable[tuple[int, int]]) -> None:
    """The same rows for copies of messages: (id, id of the copy)."""
    db.executemany(_COPY, [(target, source) for source, target in pairs])


def missing(db: Connection, low: int, uids: Sequence[int]) -> list[int]:
    """Those of `uids` that have no row yet."""
    found: list[int] = []
    for start in range(0, len(uids), _BY_VALUE):
        part = uids[start : start + _BY_VALUE]
        there = {
            uid
            for (uid,) in db.execute(
                f"SELECT id & 4294967295 FROM keys WHERE id IN ({','.join('?' * len(part))})",  # noqa: S608
                [low | uid for uid in part],
            )
        }
        found += [uid for uid in part if uid not in there]
    return found


def incomplete(db: Connection, low: int, uids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those of `uids` (ascending) that have no row yet, and those that have no INTERNALDATE."""
    lacks = "(k.id IS NULL OR m.internaldate IS NULL)"
    found = select(db, low, uids, "k.id IS NULL, m.internaldate IS NULL", lacks)
    return [uid for uid, unmade, _ in found if unmade], [uid for uid, _, undated in found if undated]


def ordered(db: Connection, low: int, uids: Sequence[int], terms: str) -> list[int] | None:
    """`uids` (ascending) in the order of SQL terms, then as they are; None where they are too few of many."""
    if not uids or uids[-1] - uids[0] >= 4 * len(uids):
        return None
    statement = (
        "SELECT m.id & 4294967295 FROM message m LEFT JOIN keys k ON k.id = m.id"  # noqa: S608
        f" WHERE m.id BETWEEN ? AND ? ORDER BY {terms}, m.id"
    )
    found = [uid for (uid,) in db.execute(statement, (low | uids[0], low | uids[-1]))]
    if uids[-1] - uids[0] + 1 != len(uids):
        wanted = set(uids)
        found = [uid for uid in found if uid in wanted]
    return found


def select(db: Connection, low: int, uids: Sequence[int], columns: str, condition: str = "1") -> list[tuple[Any, ...]]:
    """(uid, *columns) of `uids` (ascending), of `message` m and `keys` k; what is not in the mailbox is absent."""
    if not uids:
        return []
    statement = (
        f"SELECT m.id & 4294967295, {columns} FROM message m LEFT JOIN keys k ON k.id = m.id"  # noqa: S608
        f" WHERE {condition} AND"
    )
    first, last = uids[0], uids[-1]
    if last - first < 4 * len(uids):
        found = db.execute(statement + " m.id BETWEEN ? AND ? ORDER BY m.id", (low | first, low | last)).fetchall()
        if found and last - first + 1 != len(uids):
            wanted = set(uids)
            found = [row for row in found if row[0] in wanted]
        return found
    out: list[tuple[Any, ...]] = []
    for start in range(0, len(uids), _BY_VALUE):
        ids = [low | uid for uid in uids[start : start + _BY_VALUE]]
        out += db.execute(f"{statement} m.id IN ({','.join('?' * len(ids))}) ORDER BY m.id", ids).fetchall()
    return out


def in_portions(uids: Sequence[int]) -> Iterable[Sequence[int]]:
    """Pieces small enough to be made in one go and written in one commit."""
    return (uids[start : start + _AT_ONCE] for start in range(0, len(uids), _AT_ONCE))
