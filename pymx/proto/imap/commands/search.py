"""SEARCH (RFC 3501 s. 6.4.4), its RETURN options (ESEARCH, RFC 4731) and MODSEQ (RFC 7162 s. 3.1.5).

Keys become criteria of `pymx.mail.search`, except that message sets stay sets (`InSet`) until `resolve` is given the
view: only the session knows what sequence number or `*` means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pymx.mail import flags, search
from pymx.mail.search import Criterion
from pymx.proto.imap.dates import parse_date
from pymx.proto.imap.errors import Bad, No
from pymx.proto.imap.lexer import MAX_63, Cursor
from pymx.proto.imap.sequence import SequenceSet

MAX_DEPTH = 32
MAX_KEYS = 2000
CHARSETS = {"US-ASCII": "ascii", "UTF-8": "utf-8"}
_RETURN = frozenset({"MIN", "MAX", "ALL", "COUNT"})


@dataclass(frozen=True, slots=True)
class InSet:
    messages: SequenceSet
    by_uid: bool


@dataclass(frozen=True, slots=True)
class NotKey:
    key: SearchKey


@dataclass(frozen=True, slots=True)
class AllOf:
    keys: tuple[SearchKey, ...]


@dataclass(frozen=True, slots=True)
class EitherOf:
    first: SearchKey
    second: SearchKey


SearchKey = Criterion | InSet | NotKey | AllOf | EitherOf


@dataclass(frozen=True, slots=True)
class Search:
    """`returns` None: plain SEARCH; else the ESEARCH result options (never empty)."""

    by_uid: bool
    key: SearchKey
    returns: frozenset[str] | None
    modseq: bool


_SIMPLE: dict[str, Criterion] = {
    "ALL": search.All(),
    "ANSWERED": search.Flags(flags.ANSWERED, want=True),
    "DELETED": search.Flags(flags.DELETED, want=True),
    "DRAFT": search.Flags(flags.DRAFT, want=True),
    "FLAGGED": search.Flags(flags.FLAGGED, want=True),
    "SEEN": search.Flags(flags.SEEN, want=True),
    "UNANSWERED": search.Flags(flags.ANSWERED, want=False),
    "UNDELETED": search.Flags(flags.DELETED, want=False),
    "UNDRAFT": search.Flags(flags.DRAFT, want=False),
    "UNFLAGGED": search.Flags(flags.FLAGGED, want=False),
    "UNSEEN": search.Flags(flags.SEEN, want=False),
    "RECENT": search.Recent(want=True),
    "OLD": search.Recent(want=False),
    "NEW": search.And((search.Recent(want=True), search.Flags(flags.SEEN, want=False))),
}
_DATES = {
    "BEFORE": ("internal", "before"),
    "ON": ("internal", "on"),
    "SINCE": ("internal", "since"),
    "SENTBEFORE": ("sent", "before"),
    "SENTON": ("sent", "on"),
    "SENTSINCE": ("sent", "since"),
}
_HEADERS = {"BCC": "Bcc", "CC": "Cc", "FROM": "From", "SUBJECT": "Subject", "TO": "To"}


class _Keys:
    """One command's keys, its charset and counts."""

    __slots__ = ("_charset", "_count", "_cursor", "modseq")

    def __init__(self, cursor: Cursor, charset: str) -> None:
        self._cursor = cursor
        self._charset = charset
        self._count = 0
        self.modseq = False

    def several(self, depth: int) -> SearchKey:
        """Keys joined by spaces, up to the end or a closing parenthesis: all of them must hold."""
        keys = [self.one(depth)]
        while not self._cursor.at_end() and not self._cursor.closes():
            self._cursor.space()
            if self._cursor.at_end():
                break  # a space at the end of the line
            keys.append(self.one(depth))
        return keys[0] if len(keys) == 1 else AllOf(tuple(keys))

    def one(self, depth: int) -> SearchKey:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_KEYS:
            raise Bad("Search is too complicated")
        cursor = self._cursor
        if cursor.skip(b"("):
            key = self.several(depth + 1)
            cursor.expect(b")")
            return key
        first = cursor.peek()
        if first == 0x2A or 0x30 <= first <= 0x39:
            return InSet(cursor.sequence_set(), by_uid=False)
        name = cursor.word()
        if name in _SIMPLE:
            return _SIMPLE[name]
        cursor.space()
        return self._with_argument(name, depth)

    def _with_argument(self, name: str, depth: int) -> SearchKey:
        cursor = self._cursor
        if name in _DATES:
            which, op = _DATES[name]
            return search.Date(which, op, parse_date(cursor.astring()))
        if name in _HEADERS:
            return search.Header(_HEADERS[name], self._text())
        if name == "HEADER":
            field = self._text()
            cursor.space()
            return search.Header(field, self._text())
        if name in ("BODY", "TEXT"):
            return search.Text(self._text(), headers=name == "TEXT")
        if name in ("KEYWORD", "UNKEYWORD"):
            return search.Keyword(cursor.flag(), want=name == "KEYWORD")
        if name in ("LARGER", "SMALLER"):
            return search.Octets(name == "LARGER", cursor.number(MAX_63))
        if name == "UID":
            return InSet(cursor.sequence_set(), by_uid=True)
        if name == "NOT":
            return NotKey(self.one(depth + 1))
        if name == "OR":
            first = self.one(depth + 1)
            cursor.space()
            return EitherOf(first, self.one(depth + 1))
        if name == "MODSEQ":
            return self._modseq()
        raise Bad(f"Unknown search key {name}")

    def _text(self) -> str:
        octets = self._cursor.astring()
        try:
            return octets.decode(self._charset)
        except UnicodeDecodeError:
            raise Bad("Text is not in the given charset") from None

    def _modseq(self) -> SearchKey:
        cursor = self._cursor
        self.modseq = True
        if cursor.peek() == 0x22:  # an entry name and type, which here all have the same modseq (s. 3.1.5)
            cursor.string()
            cursor.space()
            if cursor.word() not in ("ALL", "SHARED", "PRIV"):
                raise Bad("Unknown entry type")
            cursor.space()
        return search.ModSeq(cursor.number(MAX_63))


def _returns(cursor: Cursor) -> frozenset[str]:
    found: set[str] = set()
    first = True
    while not cursor.skip(b")"):
        if not first:
            cursor.space()
        first = False
        word = cursor.word()
        if word not in _RETURN:
            raise Bad(f"Unknown result option {word}")
        found.add(word)
    return frozenset(found or {"ALL"})


def _parse(cursor: Cursor, *, by_uid: bool) -> Search:
    cursor.space()
    returns = None
    if cursor.skip(b"RETURN ("):
        returns = _returns(cursor)
        cursor.space()
    # Deviation: without CHARSET it would be US-ASCII; UTF-8 holds that too, and is what clients then send.
    charset = "utf-8"
    if cursor.skip(b"CHARSET "):
        name = cursor.astring().decode("ascii", "replace").upper()
        if name not in CHARSETS:
            raise No("Unknown charset", code=f"BADCHARSET ({' '.join(CHARSETS)})")
        charset = CHARSETS[name]
        cursor.space()
    keys = _Keys(cursor, charset)
    key = keys.several(0)
    cursor.end()
    return Search(by_uid, key, returns, keys.modseq)


def parse_search(cursor: Cursor) -> Search:
    return _parse(cursor, by_uid=False)


def parse_uid_search(cursor: Cursor) -> Search:
    return _parse(cursor, by_uid=True)


def resolve(key: SearchKey, ranges: Callable[[SequenceSet, bool], tuple[tuple[int, int], ...]]) -> Criterion:
    """The key as a criterion; `ranges(set, by_uid)` gives inclusive ranges of UIDs."""
    match key:
        case InSet(messages, by_uid):
            return search.Uids(ranges(messages, by_uid))
        case NotKey(inner):
            return search.Not(resolve(inner, ranges))
        case AllOf(keys):
            return search.And(tuple(resolve(each, ranges) for each in keys))
        case EitherOf(first, second):
            return search.Or(resolve(first, ranges), resolve(second, ranges))
        case _:
            return key
