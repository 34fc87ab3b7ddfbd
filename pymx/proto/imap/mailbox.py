"""Mailbox names on the wire (RFC 3501 s. 5.1): modified UTF-7, INBOX caseless."""

from __future__ import annotations

from pymx.mail import mutf7
from pymx.proto.imap.errors import No
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.response import astring


def decoded(name: bytes) -> str:
    """The name in Unicode.

    Deviation: what is not modified UTF-7 (a bare "&", raw UTF-8) is taken literally, as some clients send it; such a
    name must not end their session, and it is never folded into another one.
    """
    try:
        return mutf7.decode(name.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        pass
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise No("Mailbox name is neither modified UTF-7 nor UTF-8", code="CANNOT") from None


def mailbox(cursor: Cursor) -> str:
    """A mailbox argument."""
    return decoded(cursor.astring())


def encoded(name: str) -> bytes:
    """A name as it stands in a response."""
    return astring(mutf7.encode(name).encode("ascii"))
