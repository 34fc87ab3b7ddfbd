"""UID EXPUNGE (RFC 4315 s. 2.1); plain EXPUNGE has no arguments."""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.sequence import SequenceSet


@dataclass(frozen=True, slots=True)
class Expunge:
    """`messages` None: all with \\Deleted."""

    messages: SequenceSet | None


def parse_expunge(cursor: Cursor) -> Expunge:
    cursor.end()
    return Expunge(None)


def parse_uid_expunge(cursor: Cursor) -> Expunge:
    cursor.space()
    messages = cursor.sequence_set()
    cursor.end()
    return Expunge(messages)
