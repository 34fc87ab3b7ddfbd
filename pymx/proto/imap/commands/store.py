"""STORE (RFC 3501 s. 6.4.6) with UNCHANGEDSINCE (RFC 7162 s. 3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.flags import split_flags
from pymx.proto.imap.lexer import MAX_63, Cursor
from pymx.proto.imap.sequence import SequenceSet

Mode = Literal["set", "add", "remove"]
_MODES: dict[str, Mode] = {"FLAGS": "set", "+FLAGS": "add", "-FLAGS": "remove"}


@dataclass(frozen=True, slots=True)
class StoreFlags:
    messages: SequenceSet
    by_uid: bool
    mode: Mode
    flags: int
    keywords: tuple[str, ...]
    silent: bool
    unchanged_since: int | None


def _parse(cursor: Cursor, *, by_uid: bool) -> StoreFlags:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.space()
    unchanged_since = None
    if cursor.skip(b"(UNCHANGEDSINCE "):
        unchanged_since = cursor.number(MAX_63)
        cursor.expect(b")")
        cursor.space()
    item = cursor.word()
    name = item.removesuffix(".SILENT")
    mode = _MODES.get(name)
    if mode is None:
        raise Bad("Unknown store item")
    cursor.space()
    names = cursor.flag_list() if cursor.opens() else _bare(cursor)
    flags, keywords = split_flags(names)
    return StoreFlags(messages, by_uid, mode, flags, keywords, item != name, unchanged_since)


def _bare(cursor: Cursor) -> list[str]:
    names = [cursor.flag()]
    while not cursor.at_end():
        cursor.space()
        names.append(cursor.flag())
    return names


def parse_store(cursor: Cursor) -> StoreFlags:
    arguments = _parse(cursor, by_uid=False)
    cursor.end()
    return arguments


def parse_uid_store(cursor: Cursor) -> StoreFlags:
    arguments = _parse(cursor, by_uid=True)
    cursor.end()
    return arguments
