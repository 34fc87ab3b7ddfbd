"""SEARCH (RFC 3501 s. 6.4.4), its RETURN options (RFC 4731, SAVE RFC 5182, PARTIAL RFC 9394) and more keys.

Keys: MODSEQ (RFC 7162 s. 3.1.5), OLDER and YOUNGER (RFC 5032), EMAILID and THREADID (RFC 8474), SAVED… (RFC 8514).
They become criteria of `pymx.mail.search`, except that message sets, ages and ids stay what they are (`InSet`, `Age`,
`HasId`) until `resolve` is given the session's view, the time and a way to look ids up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
_RETURN = frozenset({"MIN", "MAX", "ALL", "COUNT", "SAVE"})
_OBJECT_ID = re.compile(rb"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, slots=True)
class InSet:
    messages: SequenceSet
    by_uid: bool


@dataclass(frozen=True, slots=True)
class Age:
    """Arrived within the last `seconds`, or (`younger` False) before that."""

    younger: bool
    seconds: int


@dataclass(frozen=True, slots=True)
class HasId:
    """EMAILID."""

    email_id: str


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


SearchKey = Criterion | InSet | Age | HasId | NotKey | AllOf | EitherOf


@dataclass(frozen=True, slots=True)
class Window:
    """PARTIAL: results number `first` to `last`, counted from the end if `from_end` (RFC 9394); `label` as it came."""

    first: int
    last: int
    from_end: bool
    label: bytes

    def of(self, found: Sequence[int]) -> Sequence[int]:
        """The results that are in it, ascending like `found`."""
        if self.from_end:
            return found[max(0, len(found) - self.last) : max(0, len(found) - self.first + 1)]
        return found[self.first - 1 : self.last]


@dataclass(frozen=True, slots=True)
class Search:
    """`returns` None: plain SEARCH; else the ESEARCH result options (never empty), with PARTIAL in `window`.

    `saves` tells also of a search whose charset is not known and that is to be refused (`bad_charset`).
    """

    by_uid: bool
    key: SearchKey
    returns: frozenset[str] | None
    modseq: bool
    window: Window | None = None
    bad_charset: bool = False

    @property
    def saves(self) -> bool:
        """Whether `$` becomes the result (RFC 5182)."""
        return self.returns is not None and "SAVE" in self.returns


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
    "SAVEDATESUPPORTED": search.All(),
    "RECENT": search.Recent(want=True),
    "OLD": search.Recent(want=False),
    "NEW": search.And((search.Recent(want=True), search.Flags(flags.SEEN, want=False))),
}
_DATES = {
    "BEFORE": ("internal", "before"),
    "ON": ("internal", "on"),
    "SINCE": ("internal", "since"),
    "SAVEDBEFORE": ("saved", "before"),
    "SAVEDON": ("saved", "on"),
    "SAVEDSINCE": ("saved", "since"),
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
        if first in (0x24, 0x2A) or 0x30 <= first <= 0x39:
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
        if name in ("YOUNGER", "OLDER"):
            seconds = cursor.number()
            if not seconds:
                raise Bad("The interval must not be 0")  # RFC 5032 s. 3: nz-number
            return Age(name == "YOUNGER", seconds)
        if name in ("EMAILID", "THREADID"):
            return self._object_id(name)
        raise Bad(f"Unknown search key {name}")

    def _text(self) -> str:
        octets = self._cursor.astring()
        try:
            return octets.decode(self._charset)
        except UnicodeDecodeError:
            raise Bad("Text is not in the given charset") from None

    def _object_id(self, name: str) -> SearchKey:
        octets = self._cursor.astring()
        if _OBJECT_ID.fullmatch(octets) is None:
            raise Bad("Invalid object id")
        # There are no thread ids here, so none is anybody's (RFC 8474 s. 5.2).
        return HasId(octets.decode()) if name == "EMAILID" else NotKey(search.All())

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


def partial_window(cursor: Cursor) -> Window:
    """`1:500` or `-1:-100` (RFC 9394 s. 4); the smaller number may come second."""
    from_end = cursor.skip(b"-")
    one = cursor.number()
    cursor.expect(b":-" if from_end else b":")
    two = cursor.number()
    if not one or not two:
        raise Bad("The range must not have 0 in it")
    sign = "-" if from_end else ""
    return Window(min(one, two), max(one, two), from_end, f"{sign}{one}:{sign}{two}".encode())


def return_options(cursor: Cursor) -> tuple[frozenset[str], Window | None]:
    """The result options behind `RETURN (`, with the closing parenthesis."""
    found: set[str] = set()
    window = None
    first = True
    while not cursor.skip(b")"):
        if not first:
            cursor.space()
        first = False
        word = cursor.word()
        if word == "PARTIAL" and window is None:
            cursor.space()
            window = partial_window(cursor)
        elif word not in _RETURN:
            raise Bad(f"Unknown result option {word}")
        found.add(word)
    if window is not None and "ALL" in found:
        raise Bad("PARTIAL and ALL exclude each other")  # RFC 9394 s. 3.1
    return frozenset(found or {"ALL"}), window


def _parse(cursor: Cursor, *, by_uid: bool) -> Search:
    cursor.space()
    returns = window = None
    if cursor.skip(b"RETURN ("):
        returns, window = return_options(cursor)
        cursor.space()
    # Deviation: without CHARSET it would be US-ASCII; UTF-8 holds that too, and is what clients then send.
    charset = "utf-8"
    if cursor.skip(b"CHARSET "):
        if cursor.utf8 and not cursor.rev2:
            raise Bad("CHARSET is not allowed with UTF8=ACCEPT")  # RFC 9755 s. 3
        name = cursor.astring().decode("ascii", "replace").upper()
        if name not in CHARSETS:
            return Search(by_uid, search.All(), returns, modseq=False, bad_charset=True)
        charset = CHARSETS[name]
        cursor.space()
    keys = _Keys(cursor, charset)
    key = keys.several(0)
    cursor.end()
    return Search(by_uid, key, returns, keys.modseq, window)


def search_keys(cursor: Cursor, charset: bytes) -> tuple[SearchKey, bool]:
    """The keys up to the end of the command, and whether MODSEQ is among them. Raises No for an unknown charset."""
    name = charset.decode("ascii", "replace").upper()
    if name not in CHARSETS:
        raise No("Unknown charset", code=f"BADCHARSET ({' '.join(CHARSETS)})")
    keys = _Keys(cursor, CHARSETS[name])
    key = keys.several(0)
    cursor.end()
    return key, keys.modseq


def parse_search(cursor: Cursor) -> Search:
    return _parse(cursor, by_uid=False)


def parse_uid_search(cursor: Cursor) -> Search:
    return _parse(cursor, by_uid=True)


def wanted_ids(key: SearchKey) -> set[str]:
    """The EMAILIDs that are asked for."""
    match key:
        case HasId(email_id):
            return {email_id}
        case NotKey(inner):
            return wanted_ids(inner)
        case AllOf(keys):
            return set().union(*(wanted_ids(each) for each in keys))
        case EitherOf(first, second):
            return wanted_ids(first) | wanted_ids(second)
        case _:
            return set()


Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What a session knows that a key leaves open: UIDs of a message set and of an EMAILID, as ranges; the time."""

    ranges: Callable[[SequenceSet, bool], Ranges]
    with_id: Callable[[str], Ranges]
    now_s: int


def resolve(key: SearchKey, known: Known) -> Criterion:
    """The key as a criterion."""
    match key:
        case InSet(messages, by_uid):
            return search.Uids(known.ranges(messages, by_uid))
        case Age(younger, seconds):
            return search.Arrived(younger, known.now_s - seconds)
        case HasId(email_id):
            return search.Uids(known.with_id(email_id))
        case NotKey(inner):
            return search.Not(resolve(inner, known))
        case AllOf(keys):
            return search.And(tuple(resolve(each, known) for each in keys))
        case EitherOf(first, second):
            return search.Or(resolve(first, known), resolve(second, known))
        case _:
            return key
