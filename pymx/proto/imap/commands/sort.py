"""SORT (RFC 5256 s. 3), its RETURN options (ESORT, RFC 5267) and display names (SORT=DISPLAY, RFC 5957)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.commands.search import Search, return_options, search_keys
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor

CRITERIA = frozenset({"ARRIVAL", "CC", "DATE", "DISPLAYFROM", "DISPLAYTO", "FROM", "SIZE", "SUBJECT", "TO"})
MAX_CRITERIA = 20


@dataclass(frozen=True, slots=True)
class Sort:
    """What is searched for, and by what the result is sorted: (criterion, reverse), the first weighing most."""

    search: Search
    order: tuple[tuple[str, bool], ...]


def _order(cursor: Cursor) -> tuple[tuple[str, bool], ...]:
    cursor.expect(b"(")
    order: list[tuple[str, bool]] = []
    while True:
        word = cursor.word()
        reverse = word == "REVERSE"
        if reverse:
            cursor.space()
            word = cursor.word()
        if word not in CRITERIA:
            raise Bad(f"Unknown sort criterion {word}")
        order.append((word, reverse))
        if len(order) > MAX_CRITERIA:
            raise Bad("Too many sort criteria")
        if cursor.skip(b")"):
            return tuple(order)
        cursor.space()


def _parse(cursor: Cursor, *, by_uid: bool) -> Sort:
    cursor.space()
    returns = window = None
    if cursor.skip(b"RETURN ("):
        returns, window = return_options(cursor)
        cursor.space()
    order = _order(cursor)
    cursor.space()
    charset = cursor.astring()
    cursor.space()
    key, modseq = search_keys(cursor, charset)
    return Sort(Search(by_uid, key, returns, modseq, window), order)


def parse_sort(cursor: Cursor) -> Sort:
    return _parse(cursor, by_uid=False)


def parse_uid_sort(cursor: Cursor) -> Sort:
    return _parse(cursor, by_uid=True)
