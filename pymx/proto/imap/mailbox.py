"""Mailbox names on the wire: modified UTF-7 (RFC 3501 s. 5.1), or UTF-8 once UTF8=ACCEPT is enabled (RFC 9755 s. 3)."""

from __future__ import annotations

from pymx.mail import mutf7
from pymx.proto.imap.errors import No
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.response import astring, utf8_string


def decoded(name: bytes, *, utf8: bool = False) -> str:
    """The name in Unicode.

    Deviation: what is not modified UTF-7 (a bare "&", raw UTF-8) is taken literally, as some clients send it; such a
    name must not end their session, and it is never folded into another one.
    """
    if not utf8:
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
    return decoded(cursor.astring(), utf8=cursor.utf8)


def encoded(name: str, *, utf8: bool = False) -> bytes:
    """A name as it stands in a response."""
    if utf8 and not name.isascii():
        return utf8_string(name)
    if utf8:
        return astring(name.encode())
    return astring(mutf7.encode(name).encode("ascii"))
