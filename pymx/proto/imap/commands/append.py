"""APPEND (RFC 3501 s. 6.3.11) of one or several messages (MULTIAPPEND, RFC 3502), or of parts (CATENATE, RFC 4469)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.dates import parse_date_time
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.flags import split_flags
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox

MAX_PARTS = 128  # of a message


@dataclass(frozen=True, slots=True)
class UrlPart:
    """A part of a message that another message, or a part of it, is to be copied into; as the client wrote it."""

    url: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """A part of a message that came along; `content` is what the receiver's sink made of the literal."""

    content: object


CatenatePart = UrlPart | TextPart


@dataclass(frozen=True, slots=True)
class AppendMessage:
    """One message; `content` is what the receiver's sink made of the literal, or the parts of a CATENATE."""

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
    if cursor.skip(b"CATENATE ("):
        return AppendMessage(flags, keywords, internaldate, _parts(cursor))
    extended = cursor.skip(b"UTF8 (")  # RFC 6855 s. 4, given up by RFC 9755
    binary = cursor.peek() == 0x7E
    content = cursor.literal()
    if extended:
        cursor.expect(b")")
    if isinstance(content, bytes):
        raise Bad("Literal in the wrong place")
    return AppendMessage(flags, keywords, internaldate, content, binary)


def _parts(cursor: Cursor) -> tuple[CatenatePart, ...]:
    """RFC 4469 s. 5, with the closing parenthesis."""
    parts: list[CatenatePart] = []
    while not parts or not cursor.skip(b")"):
        if parts:
            cursor.space()
        if len(parts) >= MAX_PARTS:
            raise Bad("Too many parts")
        if cursor.skip(b"TEXT "):
            content = cursor.literal()
            if isinstance(content, bytes):
                raise Bad("Literal in the wrong place")
            parts.append(TextPart(content))
        else:
            cursor.expect(b"URL ")
            parts.append(UrlPart(_url(cursor.astring())))
    return tuple(parts)


def _url(octets: bytes) -> str:
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError:
        raise Bad("A URL is ASCII") from None
