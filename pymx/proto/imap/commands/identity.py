"""ID (RFC 2971) and ENABLE (RFC 5161)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor

MAX_FIELDS = 30  # RFC 2971 s. 3.3


@dataclass(frozen=True, slots=True)
class Id:
    """Fields of the client, names in lower case."""

    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Enable:
    capabilities: tuple[str, ...]


def parse_id(cursor: Cursor) -> Id:
    cursor.space()
    if cursor.skip(b"NIL"):
        cursor.end()
        return Id(())
    cursor.expect(b"(")
    fields: list[tuple[str, str]] = []
    while not cursor.skip(b")"):
        if len(fields) >= MAX_FIELDS:
            raise Bad("Too many fields")
        if fields:
            cursor.space()
        name = cursor.string()
        cursor.space()
        value = cursor.nstring()
        fields.append((name.decode("utf-8", "replace").lower(), (value or b"").decode("utf-8", "replace")))
    cursor.end()
    return Id(tuple(fields))


def parse_enable(cursor: Cursor) -> Enable:
    names = []
    while not cursor.at_end():
        cursor.space()
        names.append(cursor.word())
    if not names:
        raise Bad("Missing argument")
    return Enable(tuple(names))
