"""APPEND (RFC 3501 s. 6.3.11) of one or several messages (MULTIAPPEND, RFC 3502)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.dates import parse_date_time
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.flags import split_flags
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox


@dataclass(frozen=True, slots=True)
class AppendMessage:
    """One message; `content` is what the receiver's sink made of the literal."""

    flags: int
    keywords: tuple[str, ...]
    internaldate: int | None
    content: object
    binary: bool = False  # it came as literal8 (RFC 3516)


@dataclass(frozen=True, slots=True)
class AppendTo:
    mailbox: str
    messages: tuple[AppendMessage, ...]


def parse_append(cursor: Cursor) -> AppendTo:
    cursor.space()
    name = mailbox(cursor)
    messages: list[AppendMessage] = []
    while not messages or not cursor.at_end():
        cursor.space()
        messages.append(append_message(cursor))
    return AppendTo(name, tuple(messages))


def append_message(cursor: Cursor) -> AppendMessage:
    """One message with its flags and date."""
    flags = 0
    keywords: tuple[str, ...] = ()
    if cursor.opens():
        flags, keywords = split_flags(cursor.flag_list())
        cursor.space()
    internaldate = None
    if cursor.peek() == 0x22:
        internaldate = parse_date_time(cursor.string())
        cursor.space()
    extended = cursor.skip(b"UTF8 (")  # RFC 6855 s. 4, given up by RFC 9755
    binary = cursor.peek() == 0x7E
    content = cursor.literal()
    if extended:
        cursor.expect(b")")
    if isinstance(content, bytes):
        raise Bad("Literal in the wrong place")
    return AppendMessage(flags, keywords, internaldate, content, binary)
