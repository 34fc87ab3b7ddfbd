"""COMPRESS (RFC 4978 s. 3)."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor


@dataclass(frozen=True, slots=True)
class Compress:
    mechanism: str


def parse_compress(cursor: Cursor) -> Compress:
    cursor.space()
    mechanism = cursor.word()
    cursor.end()
    return Compress(mechanism)
