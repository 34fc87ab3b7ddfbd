"""LIST, LSUB (RFC 3501 s. 6.3.8, 6.3.9), LIST-EXTENDED (RFC 5258), LIST-STATUS (RFC 5819), SPECIAL-USE (RFC 6154).

LIST-MYRIGHTS: RFC 8440.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pymx.proto.imap.commands.status import status_items
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import decoded

_SELECT = frozenset({"SUBSCRIBED", "REMOTE", "RECURSIVEMATCH", "SPECIAL-USE"})
_RETURN = frozenset({"SUBSCRIBED", "CHILDREN", "SPECIAL-USE", "MYRIGHTS"})
MAX_PATTERNS = 100


@dataclass(frozen=True, slots=True)
class ListMailboxes:
    """`extended`: any of the LIST-EXTENDED syntax was used; `status` holds the items of RETURN (STATUS …)."""

    reference: str
    patterns: tuple[str, ...]
    select: frozenset[str] = frozenset()
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    extended: bool = False


def _words(cursor: Cursor, known: frozenset[str]) -> frozenset[str]:
    cursor.expect(b"(")
    found: set[str] = set()
    first = True
    while not cursor.skip(b")"):
        if not first:
            cursor.space()
        first = False
        word = cursor.word()
        if word not in known:
            raise Bad(f"Unknown option {word}")
        found.add(word)
    return frozenset(found)


def _patterns(cursor: Cursor) -> tuple[str, ...]:
    if not cursor.opens():
        return (decoded(cursor.list_mailbox(), utf8=cursor.utf8),)
    cursor.expect(b"(")
    patterns: list[str] = []
    while not cursor.skip(b")"):
        if patterns:
            cursor.space()
        if len(patterns) >= MAX_PATTERNS:
            raise Bad("Too many patterns")
        patterns.append(decoded(cursor.list_mailbox(), utf8=cursor.utf8))
    if not patterns:
        raise Bad("Missing pattern")
    return tuple(patterns)


def _returns(cursor: Cursor) -> tuple[frozenset[str], tuple[str, ...]]:
    cursor.expect(b"RETURN (")
    found: set[str] = set()
    status: tuple[str, ...] = ()
    first = True
    while not cursor.skip(b")"):
        if not first:
            cursor.space()
        first = False
        word = cursor.word()
        if word == "STATUS":
            cursor.space()
            status = status_items(cursor)
        elif word in _RETURN:
            found.add(word)
        else:
            raise Bad(f"Unknown option {word}")
    return frozenset(found), status


def parse_list(cursor: Cursor) -> ListMailboxes:
    cursor.space()
    extended = False
    chosen: frozenset[str] = frozenset()
    if cursor.opens():
        extended = True
        chosen = _words(cursor, _SELECT)
        if "RECURSIVEMATCH" in chosen and not chosen & {"SUBSCRIBED", "SPECIAL-USE"}:
            raise Bad("RECURSIVEMATCH needs another selection option")  # RFC 5258 s. 3.1
        cursor.space()
    reference = decoded(cursor.astring(), utf8=cursor.utf8)
    cursor.space()
    extended = extended or cursor.opens()
    patterns = _patterns(cursor)
    returns: frozenset[str] = frozenset()
    status: tuple[str, ...] = ()
    if not cursor.at_end():
        cursor.space()
        extended = True
        returns, status = _returns(cursor)
    cursor.end()
    return ListMailboxes(reference, patterns, chosen, returns, status, extended)


def parse_lsub(cursor: Cursor) -> ListMailboxes:
    cursor.space()
    reference = decoded(cursor.astring(), utf8=cursor.utf8)
    cursor.space()
    pattern = decoded(cursor.list_mailbox(), utf8=cursor.utf8)
    cursor.end()
    return ListMailboxes(reference, (pattern,))


def matcher(pattern: str, separator: str) -> Callable[[str], bool]:
    """What a pattern with `*` and `%` matches (s. 6.3.8), in time linear in the name whatever the pattern is.

    Bit n of `at` says that the first n literal characters of the pattern can stand for the name so far; a wildcard is
    a place where a character may be taken without going on.
    """
    following: dict[str, int] = {}
    anything = level = 0
    length = 0
    for char in pattern:
        if char == "*":
            anything |= 1 << length
        elif char == "%":
            level |= 1 << length
        else:
            following[char] = following.get(char, 0) | 1 << length
            length += 1
    if length == 0 and anything:
        return lambda name: True

    def match(name: str) -> bool:
        at = 1
        for char in name:
            stay = anything if char == separator else anything | level
            at = (at & following.get(char, 0)) << 1 | at & stay
            if not at:
                return False
        return bool(at >> length & 1)

    return match
