"""STATUS (RFC 3501 s. 6.3.10) with SIZE (RFC 8438), HIGHESTMODSEQ (RFC 7162), APPENDLIMIT (RFC 7889) and more.

DELETED and DELETED-STORAGE: RFC 9208 s. 4.1.4; MAILBOXID: RFC 8474 s. 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox

ITEMS = frozenset(
    {"MESSAGES", "RECENT", "UIDNEXT", "UIDVALIDITY", "UNSEEN", "SIZE", "HIGHESTMODSEQ", "APPENDLIMIT"}
    | {"DELETED", "DELETED-STORAGE", "MAILBOXID"}
)


@dataclass(frozen=True, slots=True)
class StatusOf:
    mailbox: str
    items: tuple[str, ...]


def status_items(cursor: Cursor) -> tuple[str, ...]:
    """`(item item …)`, each once, in the order of the client."""
    cursor.expect(b"(")
    items: dict[str, None] = {}
    while not cursor.skip(b")"):
        if items:
            cursor.space()
        item = cursor.word()
        if item not in ITEMS:
            raise Bad(f"Unknown status item {item}")
        items[item] = None
    if not items:
        raise Bad("Missing status item")
    return tuple(items)


def parse_status(cursor: Cursor) -> StatusOf:
    cursor.space()
    name = mailbox(cursor)
    cursor.space()
    items = status_items(cursor)
    cursor.end()
    return StatusOf(name, items)
