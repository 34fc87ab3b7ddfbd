"""What can still be read of a damaged index, into the new one: UIDs, modseqs, save dates, special uses.

A row is taken only if nothing speaks against it: the uidlist, where it can be read, has the same UID for the same base,
or, where it can't, the file is there. So a damaged row can't make a UID mean another message; it is merely lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from pymx.ms import names, uidlist
from pymx.ms.index import UID_BITS, Connection, IndexTrouble
from pymx.ms.row import COLUMNS, Row

_MAX_MODSEQ = 1 << 53
_NO_STAMP = (0, 0, 0, 0, 0, 0.0)
_PLACES = ", ".join("?" * 19)


def mailboxes(old: Connection) -> list[Row]:
    """The rows of mailboxes that make sense."""
    out = []
    for values in _readable(old, f"SELECT {COLUMNS} FROM mailbox", ()):  # noqa: S608
        row = Row(*values)
        numbers = (row.id, row.uidvalidity, row.uidnext, row.highestmodseq, row.expunge_floor, row.first_recent)
        if not isinstance(row.name, str) or not row.name or not all(isinstance(n, int) for n in numbers):
            continue
        sound = 0 < row.id < 1 << 31 and 0 < row.uidvalidity <= uidlist.MAX_UID and 0 < row.uidnext <= uidlist.MAX_UID
        if (
            sound
            and 0 <= row.expunge_floor <= row.highestmodseq < _MAX_MODSEQ
            and isinstance(row.guid, str)
            and row.guid
        ):
            out.append(row)
    return out


def copy(old: Connection, new: Connection, row: Row, path: bytes, control: bytes) -> int:
    """Put one mailbox, with its files in `path` and `control`, into the new index; how many messages were saved."""
    lines: dict[int, bytes] | None = None
    try:
        with open(os.path.join(control, uidlist.NAME), "rb") as file:
            found = uidlist.parse(file.read())
        if found.header.uidvalidity != row.uidvalidity:
            return 0
        lines = {uid: base for uid, _, base in found.records}
    except (FileNotFoundError, uidlist.Damaged):
        pass
    files = {names.base_of(n) for part in (b"cur", b"new") for n in _listing(os.path.join(path, part))}
    statement = (
        "SELECT id, modseq, flags, keywords, octets, internaldate, savedate, in_new, name, guid"
        " FROM message WHERE id BETWEEN ? AND ?"
    )
    kept = []
    taken: set[bytes] = set()
    for message in _readable(old, statement, (row.low, row.high)):
        identity, modseq, *numbers, name, guid = message
        uid = identity & uidlist.MAX_UID
        if identity >> UID_BITS != row.id or not isinstance(name, bytes) or not isinstance(modseq, int):
            continue
        base = names.base_of(name)
        right = lines[uid] == base if lines is not None and uid in lines else lines is None and base in files
        plain = all(n is None or isinstance(n, int) for n in numbers) and (guid is None or isinstance(guid, str))
        if right and plain and base not in taken and 0 < modseq <= row.highestmodseq and uid < row.uidnext:
            taken.add(base)
            kept.append(message)
    new.execute(
        f"INSERT OR REPLACE INTO mailbox({COLUMNS}) VALUES({_PLACES})",
        (*astuple(row)[:13], *_NO_STAMP),
    )
    new.executemany("INSERT OR REPLACE INTO message VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
    keywords = _readable(old, "SELECT mailbox, bit, name FROM keyword WHERE mailbox=?", (row.id,))
    sound = [k for k in keywords if isinstance(k[1], int) and 0 <= k[1] < 62 and isinstance(k[2], str)]
    new.executemany("INSERT OR REPLACE INTO keyword VALUES(?, ?, ?)", sound)
    # expunged UIDs may be missing from what was saved: clients that ask are told by what exists
    new.execute("UPDATE mailbox SET expunge_floor=highestmodseq WHERE id=?", (row.id,))
    return len(kept)


def _readable(old: Connection, statement: str, arguments: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Rows up to the first that can't be read."""
    try:
        yield from old.execute(statement, arguments)
    except IndexTrouble:
        return


def _listing(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
