"""Keyword names to bits of one mailbox, new letters included."""

from __future__ import annotations

from collections.abc import Sequence

from pymx.mail.flags import MAX_KEYWORD_OCTETS
from pymx.ms import keywords
from pymx.ms.box import Hold, Row
from pymx.ms.errors import LimitReached
from pymx.ms.index import Connection
from pymx.ms.names import LETTERS


def keyword_names(db: Connection, row: Row) -> list[str]:
    """The mailbox's keywords by bit, "" where there is none."""
    found = db.execute("SELECT bit, name FROM keyword WHERE mailbox=? ORDER BY bit", (row.id,)).fetchall()
    out = [""] * (found[-1][0] + 1 if found else 0)
    for bit, name in found:
        out[bit] = name
    return out


def known_bits(db: Connection, row: Row, wanted: Sequence[str]) -> int:
    """The bits of those keywords that exist here."""
    lower = {name.lower() for name in wanted}
    return sum(1 << bit for bit, name in enumerate(keyword_names(db, row)) if name and name.lower() in lower)


def bits(hold: Hold, wanted: Sequence[str]) -> int:
    """The bits of all `wanted` keywords; missing ones get a letter, synced before this returns. LimitReached."""
    if not wanted:
        return 0
    out, missing = _split(keyword_names(hold.db, hold.row), wanted)
    if not missing:
        return out
    # Dovecot may have added names since the last look, which a flag change would not have shown.
    letters = keywords.read(hold.box.path)
    out, missing = _split(letters, wanted)
    if missing:
        for name in missing:
            if len(name.encode()) > MAX_KEYWORD_OCTETS:
                raise LimitReached("Keyword is too long")
            letter = _free_letter(hold, letters, out)
            letters[letter] = name
            out |= 1 << letter
        keywords.write(hold.disk, hold.box.path, letters, hold.box.home.mode)
    hold.db.execute("DELETE FROM keyword WHERE mailbox=? AND bit<?", (hold.row.id, LETTERS))
    hold.db.executemany(
        "INSERT INTO keyword VALUES(?, ?, ?)", [(hold.row.id, bit, name) for bit, name in enumerate(letters) if name]
    )
    hold.next_modseq()
    return out


def _split(there: Sequence[str], wanted: Sequence[str]) -> tuple[int, list[str]]:
    by_name = {name.lower(): bit for bit, name in enumerate(there) if name}
    out = 0
    missing: list[str] = []
    for name in dict.fromkeys(wanted):
        bit = by_name.get(name.lower())
        if bit is None:
            if name.lower() not in {m.lower() for m in missing}:
                missing.append(name)
        else:
            out |= 1 << bit
    return out, missing


def _free_letter(hold: Hold, letters: Sequence[str], taken: int) -> int:
    for letter, name in enumerate(letters):
        if not name:
            return letter
    for letter in range(LETTERS):  # one that no message has any more may change its name
        if taken >> letter & 1:
            continue
        used = hold.db.execute(
            "SELECT 1 FROM message WHERE id BETWEEN ? AND ? AND keywords >> ? & 1 LIMIT 1",
            (hold.row.low, hold.row.high, letter),
        ).fetchone()
        if not used:
            return letter
    raise LimitReached("Too many keywords in this mailbox")
