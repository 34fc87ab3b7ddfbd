"""SELECT and EXAMINE (RFC 3501 s. 6.3.1, 6.3.2) with the CONDSTORE parameter (RFC 7162 s. 3.1.8)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox


@dataclass(frozen=True, slots=True)
class Select:
    mailbox: str
    read_only: bool
    condstore: bool


def _parse(cursor: Cursor, *, read_only: bool) -> Select:
    cursor.space()
    name = mailbox(cursor)
    condstore = False
    if not cursor.at_end() and cursor.skip(b" ("):
        while not cursor.skip(b")"):
            if condstore:
                cursor.space()
            if cursor.word() != "CONDSTORE":
                raise Bad("Unknown parameter")
            condstore = True
    cursor.end()
    return Select(name, read_only, condstore)


def parse_select(cursor: Cursor) -> Select:
    return _parse(cursor, read_only=False)


def parse_examine(cursor: Cursor) -> Select:
    return _parse(cursor, read_only=True)
