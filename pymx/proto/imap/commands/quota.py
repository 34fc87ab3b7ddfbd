"""GETQUOTA and GETQUOTAROOT (RFC 9208 s. 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor


@dataclass(frozen=True, slots=True)
class QuotaOf:
    root: bytes


def parse_getquota(cursor: Cursor) -> QuotaOf:
    cursor.space()
    root = cursor.astring()
    cursor.end()
    return QuotaOf(root)
