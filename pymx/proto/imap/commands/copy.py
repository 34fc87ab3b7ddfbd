"""COPY (RFC 3501 s. 6.4.7) and MOVE (RFC 6851)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox
from pymx.proto.imap.sequence import SequenceSet


@dataclass(frozen=True, slots=True)
class CopyTo:
    messages: SequenceSet
    by_uid: bool
    mailbox: str


def _parse(cursor: Cursor, *, by_uid: bool) -> CopyTo:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.space()
    name = mailbox(cursor)
    cursor.end()
    return CopyTo(messages, by_uid, name)


def parse_copy(cursor: Cursor) -> CopyTo:
    return _parse(cursor, by_uid=False)


def parse_uid_copy(cursor: Cursor) -> CopyTo:
    return _parse(cursor, by_uid=True)
