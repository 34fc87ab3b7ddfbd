"""GETMETADATA and SETMETADATA (RFC 5464 s. 4), and the METADATA response.

Entry names are caseless and come out in lower case. An empty mailbox name means the server itself.

Deviation: the options of GETMETADATA are taken behind the mailbox too, where the examples of the RFC have them (against
its grammar) and Roundcube sends them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import MAX_32, Cursor
from pymx.proto.imap.mailbox import mailbox
from pymx.proto.imap.response import astring, literal, string

MAX_ENTRIES = 200
MAX_NAME_OCTETS = 1000
# s. 3.2: no wildcards, no empty component, no slash at the end
_ENTRY = re.compile(rb"(?:/[^/*%\x00-\x1f\x7f-\xff]+)+")
_OPTIONS = re.compile(rb"\((?:MAXSIZE|DEPTH) ", re.IGNORECASE)
_EVERYTHING = 0xFFFF_FFFF
_DEPTHS = {"0": 0, "1": 1, "INFINITY": _EVERYTHING}


@dataclass(frozen=True, slots=True)
class GetMetadata:
    """`depth` levels below each entry are wanted too; values above `max_octets` are left out."""

    mailbox: str
    entries: tuple[str, ...]
    depth: int
    max_octets: int | None


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """A value of None takes the entry away."""

    mailbox: str
    values: Mapping[str, bytes | None]


def _entry(cursor: Cursor) -> str:
    name = cursor.astring()
    if not _ENTRY.fullmatch(name) or len(name) > MAX_NAME_OCTETS:
        raise Bad("Invalid entry name")
    text = name.decode().lower()
    # s. 3.2
    if text.split("/")[1] not in ("private", "shared"):
        raise Bad("Entries begin with /private or /shared")
    return text


def _options(cursor: Cursor) -> tuple[int | None, int]:
    max_octets: int | None = None
    depth = 0
    seen: set[str] = set()
    cursor.expect(b"(")
    while not seen or not cursor.skip(b")"):
        if seen:
            cursor.space()
        word = cursor.word()
        if word in seen:
            raise Bad(f"{word} comes twice")
        seen.add(word)
        cursor.space()
        if word == "MAXSIZE":
            max_octets = cursor.number(MAX_32)
        elif word == "DEPTH":
            found = _DEPTHS.get(cursor.word())
            if found is None:
                raise Bad("Unknown depth")
            depth = found
        else:
            raise Bad(f"Unknown option {word}")
    return max_octets, depth


def parse_getmetadata(cursor: Cursor) -> GetMetadata:
    cursor.space()
    max_octets, depth = None, 0
    options = cursor.opens()
    if options:
        max_octets, depth = _options(cursor)
        cursor.space()
    name = mailbox(cursor)
    cursor.space()
    if not options and cursor.comes(_OPTIONS):
        max_octets, depth = _options(cursor)
        cursor.space()
    entries: dict[str, None] = {}
    if not cursor.opens():
        entries[_entry(cursor)] = None
    else:
        cursor.expect(b"(")
        while not entries or not cursor.skip(b")"):
            if entries:
                cursor.space()
            if len(entries) >= MAX_ENTRIES:
                raise Bad("Too many entries")
            entries[_entry(cursor)] = None
    cursor.end()
    return GetMetadata(name, tuple(entries), depth, max_octets)


def parse_setmetadata(cursor: Cursor) -> SetMetadata:
    cursor.space()
    name = mailbox(cursor)
    cursor.space()
    cursor.expect(b"(")
    values: dict[str, bytes | None] = {}
    while not values or not cursor.skip(b")"):
        if values:
            cursor.space()
        if len(values) >= MAX_ENTRIES:
            raise Bad("Too many entries")
        entry = _entry(cursor)
        cursor.space()
        values[entry] = _value(cursor)
    cursor.end()
    return SetMetadata(name, values)


def _value(cursor: Cursor) -> bytes | None:
    if cursor.peek() == 0x7E:  # literal8 may hold NUL
        value = cursor.literal()
        if not isinstance(value, bytes):
            raise Bad("Literal in the wrong place")
        return value
    return cursor.nstring()


def metadata_response(name: bytes, values: Sequence[tuple[str, bytes | None]]) -> bytes:
    """Entries with their values; `name` as it stands in a response."""
    items = b" ".join(b"%b %b" % (astring(entry.encode()), _written(value)) for entry, value in values)
    return b"* METADATA %b (%b)\r\n" % (name, items)


def metadata_names(name: bytes, entries: Sequence[str]) -> bytes:
    """Entries that changed (s. 4.4.2)."""
    return b"* METADATA %b %b\r\n" % (name, b" ".join(astring(entry.encode()) for entry in entries))


def _written(value: bytes | None) -> bytes:
    if value is None:
        return b"NIL"
    return b"~" + literal(value) if b"\x00" in value else string(value)
