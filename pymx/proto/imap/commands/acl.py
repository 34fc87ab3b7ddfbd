"""MYRIGHTS, GETACL, SETACL, DELETEACL and LISTRIGHTS (RFC 4314 s. 3)."""

from __future__ import annotations

from pymx.proto.imap.commands.folder import MailboxName
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox


def _parse(cursor: Cursor, more: int) -> MailboxName:
    cursor.space()
    name = mailbox(cursor)
    for _ in range(more):
        cursor.space()
        cursor.astring()  # an identifier, or rights: nobody may change them
    cursor.end()
    return MailboxName(name)


def parse_setacl(cursor: Cursor) -> MailboxName:
    return _parse(cursor, 2)


def parse_about_identifier(cursor: Cursor) -> MailboxName:
    """DELETEACL, LISTRIGHTS."""
    return _parse(cursor, 1)
