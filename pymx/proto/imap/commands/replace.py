"""REPLACE and UID REPLACE (RFC 8508): the message that goes, and the arguments of an APPEND."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.commands.append import AppendMessage, append_message
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox
from pymx.proto.imap.sequence import SequenceSet


@dataclass(frozen=True, slots=True)
class Replace:
    """`messages` is one number or UID (or `*`)."""

    messages: SequenceSet
    by_uid: bool
    mailbox: str
    message: AppendMessage


def _parse(cursor: Cursor, *, by_uid: bool) -> Replace:
    cursor.space()
    messages = cursor.sequence_set()
    if messages.saved or len(messages.ranges) != 1 or messages.ranges[0][0] != messages.ranges[0][1]:
        raise Bad("Only one message can be replaced")
    cursor.space()
    name = mailbox(cursor)
    cursor.space()
    message = append_message(cursor)
    cursor.end()
    return Replace(messages, by_uid, name, message)


def parse_replace(cursor: Cursor) -> Replace:
    return _parse(cursor, by_uid=False)


def parse_uid_replace(cursor: Cursor) -> Replace:
    return _parse(cursor, by_uid=True)
