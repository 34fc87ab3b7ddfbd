"""SELECT and EXAMINE (RFC 3501 s. 6.3.1, 6.3.2) with CONDSTORE and QRESYNC (RFC 7162 s. 3.1.8, 3.2.5)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import MAX_63, Cursor
from pymx.proto.imap.mailbox import mailbox
from pymx.proto.imap.sequence import STAR, SequenceSet


@dataclass(frozen=True, slots=True)
class Qresync:
    """What the client has from an earlier session; `known` None: every UID below UIDNEXT.

    `match` holds sequence numbers and the UIDs they had.
    """

    uidvalidity: int
    modseq: int
    known: SequenceSet | None
    match: tuple[SequenceSet, SequenceSet] | None


@dataclass(frozen=True, slots=True)
class Select:
    mailbox: str
    read_only: bool
    condstore: bool
    qresync: Qresync | None = None


def _parse(cursor: Cursor, *, read_only: bool) -> Select:
    cursor.space()
    name = mailbox(cursor)
    found: set[str] = set()
    qresync = None
    if not cursor.at_end() and cursor.skip(b" ("):
        while not cursor.skip(b")"):
            if found:
                cursor.space()
            word = cursor.word()
            if word == "QRESYNC" and not qresync:
                cursor.space()
                qresync = _qresync(cursor)
            elif word != "CONDSTORE":
                raise Bad("Unknown parameter")
            found.add(word)
    cursor.end()
    return Select(name, read_only, "CONDSTORE" in found, qresync)


def _qresync(cursor: Cursor) -> Qresync:
    cursor.expect(b"(")
    uidvalidity = cursor.number()
    cursor.space()
    modseq = cursor.number(MAX_63)
    known = match = None
    if not cursor.skip(b")"):
        cursor.space()
        if not cursor.opens():
            known = _known(cursor)
        if known is not None and cursor.closes():
            cursor.expect(b")")
            return Qresync(uidvalidity, modseq, known, None)
        if known is not None:
            cursor.space()
        cursor.expect(b"(")
        numbers = _known(cursor)
        cursor.space()
        match = numbers, _known(cursor)
        cursor.expect(b"))")
    return Qresync(uidvalidity, modseq, known, match)


def _known(cursor: Cursor) -> SequenceSet:
    found = cursor.sequence_set()
    if not found.ranges or any(STAR in pair for pair in found.ranges):
        raise Bad("The set must not contain *")  # RFC 7162 s. 7: known-uids, known-sequence-set
    return found


def parse_select(cursor: Cursor) -> Select:
    return _parse(cursor, read_only=False)


def parse_examine(cursor: Cursor) -> Select:
    return _parse(cursor, read_only=True)
