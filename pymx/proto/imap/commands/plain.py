"""Commands without arguments (CAPABILITY, NOOP, LOGOUT, CHECK, CLOSE, UNSELECT, EXPUNGE, IDLE, NAMESPACE, STARTTLS)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor


@dataclass(frozen=True, slots=True)
class Nothing:
    """No arguments."""


_NOTHING = Nothing()


def parse_nothing(cursor: Cursor) -> Nothing:
    cursor.end()
    return _NOTHING
