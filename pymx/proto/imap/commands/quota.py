"""GETQUOTA, GETQUOTAROOT and SETQUOTA (RFC 9208 s. 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import MAX_63, Cursor


@dataclass(frozen=True, slots=True)
class QuotaOf:
    root: bytes


def parse_getquota(cursor: Cursor) -> QuotaOf:
    cursor.space()
    root = cursor.astring()
    cursor.end()
    return QuotaOf(root)


def parse_setquota(cursor: Cursor) -> QuotaOf:
    """The root and its new limits, which are read and not kept: nobody may set them."""
    cursor.space()
    root = cursor.astring()
    cursor.space()
    cursor.expect(b"(")
    while not cursor.closes():
        cursor.atom()
        cursor.space()
        cursor.number(MAX_63)
        cursor.skip(b" ")
    cursor.expect(b")")
    cursor.end()
    return QuotaOf(root)
