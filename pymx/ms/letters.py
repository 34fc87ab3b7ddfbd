"""Keyword names to bits of one mailbox, new letters included."""

from __future__ import annotations

from collections.abc import Sequence

from pymx.mail.flags import MAX_KEYWORD_OCTETS, MAX_KEYWORDS
from pymx.ms import keywords
from pymx.ms.box import Hold
from pymx.ms.errors import LimitReached
from pymx.ms.index import Connection
from pymx.ms.names import LETTERS
from pymx.ms.row import Row


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
    """The bits of all `wanted` keywords; missing ones get a letter, synced before this returns, or a bit beyond the
    letters. Raises LimitReached."""
    if not wanted:
        return 0
    known = keyword_names(hold.db, hold.row)
    out, missing = _split(known, wanted)
    if missing:
        # Dovecot may have added names since the last look, which a flag change would not have shown.
        known = keywords.read(hold.box.control) + known[LETTERS:]
        out, missing = _split(known, wanted)
        new_letters = False
        for name in missing:
            if len(name.encode()) > MAX_KEYWORD_OCTETS:
                raise LimitReached("Keyword is too long")
            bit = _free_bit(hold, known, out)
            known += [""] * (bit + 1 - len(known))
            known[bit] = name
            out |= 1 << bit
            new_letters = new_letters or bit < LETTERS
        if new_letters:
            keywords.write(hold.disk, hold.box.control, known[:LETTERS], hold.box.home.mode)
        hold.db.execute("DELETE FROM keyword WHERE mailbox=?", (hold.row.id,))
        hold.db.executemany(
            "INSERT INTO keyword VALUES(?, ?, ?)", [(hold.row.id, bit, name) for bit, name in enumerate(known) if name]
        )
        hold.next_modseq()
    if out >> LETTERS:
        hold.more_keywords = True
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


def _free_bit(hold: Hold, known: Sequence[str], taken: int) -> int:
    """A letter nobody has, else one no message has any more, else the same beyond the letters."""
    for first, end in ((0, LETTERS), (LETTERS, MAX_KEYWORDS)):
        for bit in range(first, end):
            if bit >= len(known) or not known[bit]:
                return bit
        for bit in range(first, end):
            if taken >> bit & 1:
                continue
            used = hold.db.execute(
                "SELECT 1 FROM message WHERE id BETWEEN ? AND ? AND keywords >> ? & 1 LIMIT 1",
                (hold.row.low, hold.row.high, bit),
            ).fetchone()
            if not used:
                return bit
    raise LimitReached("Too many keywords in this mailbox")
