"""CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE (RFC 3501 s. 6.3.3–6.3.7), CREATE … (USE …) (RFC 6154)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox


@dataclass(frozen=True, slots=True)
class MailboxName:
    mailbox: str


@dataclass(frozen=True, slots=True)
class Rename:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Create:
    """`uses` are special uses as the client wrote them (RFC 6154 s. 3)."""

    mailbox: str
    uses: tuple[str, ...]


def parse_create(cursor: Cursor) -> Create:
    cursor.space()
    name = mailbox(cursor)
    uses: tuple[str, ...] = ()
    if not cursor.at_end() and cursor.skip(b" ("):
        cursor.expect(b"USE ")
        uses = tuple(cursor.flag_list())
        cursor.expect(b")")
    cursor.end()
    return Create(name, uses)


def parse_mailbox(cursor: Cursor) -> MailboxName:
    cursor.space()
    name = mailbox(cursor)
    cursor.end()
    return MailboxName(name)


def parse_rename(cursor: Cursor) -> Rename:
    cursor.space()
    old = mailbox(cursor)
    cursor.space()
    new = mailbox(cursor)
    cursor.end()
    return Rename(old, new)
