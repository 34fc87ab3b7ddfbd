"""FETCH (RFC 3501 s. 6.4.5) with MODSEQ, CHANGEDSINCE, VANISHED (RFC 7162 s. 3.1.4, 3.2.6), PARTIAL (RFC 9394)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from pymx.proto.imap.commands.search import Window, partial_window
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import MAX_32, MAX_63, Cursor
from pymx.proto.imap.response import astring
from pymx.proto.imap.section import Section
from pymx.proto.imap.sequence import SequenceSet

MAX_ITEMS = 200
MAX_FIELDS = 500  # names in HEADER.FIELDS

# What needs nothing but a row of the store: also MODSEQ, SAVEDATE (RFC 8514), ids (RFC 8474) and PREVIEW (RFC 8970).
ROW_ITEMS = frozenset(
    {"UID", "FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODYSTRUCTURE", "MODSEQ"}
    | {"SAVEDATE", "EMAILID", "THREADID", "PREVIEW"}
)
_MACROS: dict[str, tuple[str, ...]] = {
    "ALL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"),
    "FAST": ("FLAGS", "INTERNALDATE", "RFC822.SIZE"),
    "FULL": ("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY"),
}
_PATH = re.compile(
    r"((?:[1-9]\d{0,8}\.)*[1-9]\d{0,8})?(?:(?:^|(?<=\d)\.)(HEADER|HEADER\.FIELDS|HEADER\.FIELDS\.NOT|TEXT|MIME))?"
)


@dataclass(frozen=True, slots=True)
class BodyItem:
    """Octets of the message: `label` is how the response names them, `partial` is (offset, length).

    `kind`: as they are, decoded (BINARY, RFC 3516), or the number of the decoded ones (BINARY.SIZE).
    """

    label: bytes
    section: Section
    peek: bool
    partial: tuple[int, int] | None = None
    kind: Literal["body", "binary", "size"] = "body"

    @property
    def whole(self) -> bool:
        return self.kind == "body" and not self.section.path and not self.section.text


FetchItem = str | BodyItem

_RFC822: dict[str, BodyItem] = {
    "RFC822": BodyItem(b"RFC822", Section((), "", ()), peek=False),
    "RFC822.HEADER": BodyItem(b"RFC822.HEADER", Section((), "HEADER", ()), peek=True),
    "RFC822.TEXT": BodyItem(b"RFC822.TEXT", Section((), "TEXT", ()), peek=False),
    # RFC 1730 s. 6.4.5, gone from later versions; Outlook still asks for the first.
    "RFC822.PEEK": BodyItem(b"RFC822", Section((), "", ()), peek=True),
    "RFC822.TEXT.PEEK": BodyItem(b"RFC822.TEXT", Section((), "TEXT", ()), peek=True),
}


@dataclass(frozen=True, slots=True)
class Fetch:
    """`items` has each item once; BODY without a section stands for itself."""

    messages: SequenceSet
    by_uid: bool
    items: tuple[FetchItem, ...]
    changed_since: int | None
    vanished: bool = False
    window: Window | None = None
    wants_uid: bool = True  # it was asked for the UID, and not only by UID


def _section(cursor: Cursor) -> tuple[Section, bytes]:
    """The section between the brackets, and how to write it back."""
    text = "" if cursor.skip(b"]") else cursor.item()
    match = _PATH.fullmatch(text)
    if match is None:
        raise Bad("Invalid section")
    path = tuple(int(number) for number in match[1].split(".")) if match[1] else ()
    part = match[2] or ""
    if part == "MIME" and not path:
        raise Bad("Invalid section")
    fields: tuple[bytes, ...] = ()
    label = text.encode()
    if part.startswith("HEADER.FIELDS"):
        cursor.space()
        fields = _field_names(cursor)
        label += b" (%b)" % b" ".join(astring(name) for name in fields)
    if text:
        cursor.expect(b"]")
    return Section(path, part, fields), label


def section_of(text: bytes) -> Section:
    """A section that stands by itself, without brackets. Raises Bad."""
    cursor = Cursor(text + b"]")
    section, _ = _section(cursor)
    cursor.end()
    return section


def _field_names(cursor: Cursor) -> tuple[bytes, ...]:
    cursor.expect(b"(")
    names: list[bytes] = []
    while not cursor.skip(b")"):
        if names:
            cursor.space()
        if len(names) >= MAX_FIELDS:
            raise Bad("Too many header fields")
        names.append(cursor.astring())
    if not names:
        raise Bad("Missing header field name")
    return tuple(names)


_BINARY: dict[str, tuple[bool, Literal["binary", "size"]]] = {
    "BINARY": (False, "binary"),
    "BINARY.PEEK": (True, "binary"),
    "BINARY.SIZE": (True, "size"),
}


def _binary(cursor: Cursor, name: str) -> BodyItem:
    """RFC 3516 s. 6: part numbers only."""
    peek, kind = _BINARY[name]
    section, text = _section(cursor)
    if section.text:
        raise Bad("Invalid section")
    if kind == "size":
        return BodyItem(b"BINARY.SIZE[%b]" % text, section, peek, None, kind)
    return _partial(cursor, BodyItem(b"BINARY[%b]" % text, section, peek, None, kind))


def _body(cursor: Cursor, *, peek: bool) -> BodyItem:
    section, text = _section(cursor)
    return _partial(cursor, BodyItem(b"BODY[%b]" % text, section, peek))


def _partial(cursor: Cursor, item: BodyItem) -> BodyItem:
    if not cursor.skip(b"<"):
        return item
    offset = cursor.number()
    cursor.expect(b".")
    length = cursor.number(MAX_32)
    if length == 0:
        raise Bad("Partial length must not be 0")
    cursor.expect(b">")
    return replace(item, label=b"%b<%d>" % (item.label, offset), partial=(offset, length))


def _item(cursor: Cursor) -> FetchItem:
    name = cursor.item()
    if name in ("BODY", "BODY.PEEK") and cursor.skip(b"["):
        return _body(cursor, peek=name == "BODY.PEEK")
    if name in _BINARY and cursor.skip(b"["):
        return _binary(cursor, name)
    if name == "PREVIEW" and cursor.skip(b" (LAZY)"):
        return "PREVIEW (LAZY)"
    if name in ROW_ITEMS or name == "BODY":
        return name
    if name in _RFC822:
        return _RFC822[name]
    raise Bad(f"Unknown fetch item {name}")


def fetch_items(cursor: Cursor) -> tuple[FetchItem, ...]:
    """`(item item …)`, each once, or one item or macro."""
    if not cursor.opens():
        for macro, names in _MACROS.items():
            if cursor.skip(macro.encode()):
                return names
        return (_item(cursor),)
    cursor.expect(b"(")
    items: dict[FetchItem, None] = {}
    while not cursor.skip(b")"):
        if items:
            cursor.space()
        if len(items) >= MAX_ITEMS:
            raise Bad("Too many fetch items")
        items[_item(cursor)] = None
    if not items:
        raise Bad("Missing fetch item")
    return tuple(items)


def _modifiers(cursor: Cursor, *, by_uid: bool) -> tuple[int | None, bool, Window | None]:
    """`(CHANGEDSINCE n VANISHED PARTIAL n:m)` in any order; the last two only with UID FETCH."""
    changed_since = window = None
    vanished = False
    if cursor.at_end() or not cursor.skip(b" ("):
        return None, False, None
    while True:
        word = cursor.word()
        if word == "CHANGEDSINCE" and changed_since is None:
            cursor.space()
            # Deviation: RFC 7162 s. 3.1.4.1 forbids 0 here, iOS sends it all the same
            changed_since = cursor.number(MAX_63)
        elif word == "VANISHED" and by_uid:
            vanished = True
        elif word == "PARTIAL" and by_uid and window is None:
            cursor.space()
            window = partial_window(cursor)
        else:
            raise Bad("Unknown fetch modifier")
        if cursor.skip(b")"):
            break
        cursor.space()
    if vanished and changed_since is None:
        raise Bad("VANISHED needs CHANGEDSINCE")  # RFC 7162 s. 3.2.6
    return changed_since, vanished, window


def _parse(cursor: Cursor, *, by_uid: bool) -> Fetch:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.space()
    items = fetch_items(cursor)
    changed_since, vanished, window = _modifiers(cursor, by_uid=by_uid)
    cursor.end()
    if "PREVIEW" in items and "PREVIEW (LAZY)" in items:
        items = tuple(item for item in items if item != "PREVIEW (LAZY)")
    wants_uid = "UID" in items
    if by_uid and not wants_uid:
        items = ("UID", *items)  # s. 6.4.8: the UID is in every response to UID FETCH
    if changed_since is not None and "MODSEQ" not in items:
        items = (*items, "MODSEQ")
    return Fetch(messages, by_uid, items, changed_since, vanished, window, wants_uid)


def parse_fetch(cursor: Cursor) -> Fetch:
    return _parse(cursor, by_uid=False)


def parse_uid_fetch(cursor: Cursor) -> Fetch:
    return _parse(cursor, by_uid=True)
