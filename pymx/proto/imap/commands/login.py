"""LOGIN (RFC 3501 s. 6.2.3) and AUTHENTICATE with an initial response (s. 6.2.2, RFC 4959)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor

_BASE64 = re.compile(rb"=|[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Authenticate:
    """`initial` is base64 as sent ("=" means empty), or None when the client waits for a challenge."""

    mechanism: str
    initial: bytes | None


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad("Not valid UTF-8") from None


def parse_login(cursor: Cursor) -> Login:
    cursor.space()
    username = _text(cursor.astring())
    cursor.space()
    password = _text(cursor.astring())
    cursor.end()
    return Login(username, password)


def parse_authenticate(cursor: Cursor) -> Authenticate:
    cursor.space()
    mechanism = cursor.word()
    initial = None
    if not cursor.at_end():
        cursor.space()
        initial = cursor.rest()
        if not _BASE64.fullmatch(initial):
            raise Bad("Invalid base64")
    return Authenticate(mechanism, initial)
