"""SEARCH over the messages of a view (RFC 3501 s. 6.4.4), cheap facts first.

Each message is asked the whole criterion up to three times: with its row only, then with its header, then with all
of it, and drops out as soon as the answer is certain (Kleene's logic: None stands for "not known yet"). So a file is
opened only where flags, dates and sizes leave the answer open. Headers and bodies are compared decoded and folded
(`pymx.mail.text`); where key and text are ASCII the octets are compared as they are, which gives the same answer.

A message that is gone (no row, or no file when one is needed) matches nothing, `Not` included.

What the texts are: a header criterion looks at the unfolded, decoded value of each field of that name, and at addresses
in it that are written another way there. The body is every text part, HTML without its tags, what a message/… part
holds that is no message (delivery status), and the header of each attached message, at most MAX_TEXT characters in all;
together with the headers (TEXT) the headers of the parts count too, so that names of attachments are found. Dates are
the day in UTC (internal) or as the Date field has it (sent); a message without a readable Date matches no sent date.
"""

from __future__ import annotations

import datetime
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from pymx.mail import search
from pymx.mail.address_list import hidden
from pymx.mail.date import parse_date
from pymx.mail.header import split_head
from pymx.mail.mime import MAX_HEADER, Part, parse
from pymx.mail.search import Criterion
from pymx.mail.text import MAX_BODY, charset_of, decode_body, decode_header, fold, html_to_text

MAX_TEXT = 16 * 1024 * 1024

Row = tuple[int, int, int, int, int, int, int]

# Charsets in which ASCII octets are ASCII characters, whatever stands before them.
_ASCII_SUPERSETS = frozenset(
    {"", "us-ascii", "ascii", "utf-8", "utf8", "iso-8859-1", "iso-8859-2", "iso-8859-15", "windows-1252"}
    | {"windows-1250", "windows-1251", "koi8-r"}
)
_IDENTITY = (b"7bit", b"8bit", b"binary")
_ADDRESS_FIELDS = frozenset({"from", "to", "cc", "bcc"})
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()


class SearchView(Protocol):
    """What search needs of a mailbox view."""

    uids: Sequence[int]
    first_recent: int

    def rows(self, uids: Sequence[int]) -> Iterable[tuple[int, ...]]:
        """(uid, modseq, flags, keywords, octets, internaldate, savedate), only of messages still there."""

    def header(self, uid: int) -> bytes | None:
        """The header block in wire form."""

    def message(self, uid: int) -> bytes | None:
        """The whole message in wire form."""

    def keyword_bit(self, name: str) -> int | None:
        """The number of the keyword's bit, or None when the mailbox has no such keyword."""


class _Message:
    """One message while it is asked; what was decoded for one criterion is kept for the next."""

    __slots__ = ("_body", "_tree", "_unfolded", "header", "row", "uid", "whole")

    def __init__(self, uid: int, row: tuple[int, ...]) -> None:
        self.uid = uid
        self.row = row
        self.header: bytes | None = None
        self.whole: bytes | None = None
        self._unfolded: bytes | None = None
        self._tree: Part | None = None
        self._body: tuple[list[bytes], list[str]] | None = None

    def unfolded(self, header: bytes) -> bytes:
        if self._unfolded is None:
            self._unfolded = _unfold(header)
        return self._unfolded

    def body(self, whole: bytes) -> tuple[list[bytes], list[str]]:
        """The body's texts: those that are ASCII as they stand, in lower case, and the others decoded and folded."""
        if self._body is None:
            self._body = _texts(self.tree(whole), whole)
        return self._body

    def tree(self, whole: bytes) -> Part:
        if self._tree is None:
            self._tree = parse(whole)
        return self._tree


_Test = Callable[[_Message], bool | None]


def run(criterion: Criterion, view: SearchView, uids: Sequence[int] | None = None) -> list[int]:
    """The UIDs of the view's messages (or of `uids` only) that match, ascending."""
    uids = narrowed(criterion, view.uids if uids is None else uids)
    test = _compile(criterion, view)
    needed = needs(criterion)
    matched: list[int] = []
    for message in _messages(view, uids, rows="row" in needed):
        answer = test(message)
        if answer is None and "header" in needed:
            message.header = view.header(message.uid)
            if message.header is None:
                continue
            answer = test(message)
        if answer is None:
            message.whole = view.message(message.uid)
            if message.whole is None:
                continue
            if message.header is None:
                message.header = split_head(message.whole)[0]
            answer = test(message)
        if answer:
            matched.append(message.uid)
    return matched


def _messages(view: SearchView, uids: Sequence[int], *, rows: bool) -> Iterator[_Message]:
    if rows:
        for row in view.rows(uids):
            yield _Message(row[0], row)
    else:
        for uid in uids:
            yield _Message(uid, ())


def narrowed(criterion: Criterion, uids: Sequence[int]) -> Sequence[int]:
    """The UIDs that a `Uids` among the outermost conditions leaves."""
    if isinstance(criterion, search.And):
        for part in criterion.criteria:
            uids = narrowed(part, uids)
    elif isinstance(criterion, search.Uids):
        chosen: set[int] = set()
        for low, high in criterion.ranges:
            chosen.update(uids[bisect_left(uids, low) : bisect_right(uids, high)])
        return sorted(chosen)
    return uids


def needs(criterion: Criterion) -> set[str]:
    """Which of "row", "header" and "message" may have a say in the answer."""
    match criterion:
        case search.And(criteria):
            return set().union(*(needs(part) for part in criteria))
        case search.Or(first, second):
            return needs(first) | needs(second)
        case search.Not(inner):
            return needs(inner)
        case search.Text():
            return {"message"}
        case search.Header():
            return {"header"}
        case search.Date(which="sent"):
            return {"header"}
        case search.All() | search.Uids() | search.Recent():
            return set()
        case _:
            return {"row"}


def _compile(criterion: Criterion, view: SearchView) -> _Test:
    match criterion:
        case search.And(criteria):
            return _all_of([_compile(part, view) for part in sorted(criteria, key=_cost)])
        case search.Or(first, second):
            return _any_of([_compile(part, view) for part in sorted((first, second), key=_cost)])
        case search.Not(inner):
            return _none_of(_compile(inner, view))
        case search.Text(text, headers):
            return _text(text, headers=headers)
        case search.Header(name, text):
            return _header(name, text)
        case search.Date("sent", op, day):
            return _sent(op, day)
        case _:
            return _cheap(criterion, view)


def _cost(criterion: Criterion) -> int:
    needed = needs(criterion)
    return 2 if "message" in needed else 1 if "header" in needed else 0


def _cheap(criterion: Criterion, view: SearchView) -> _Test:
    """Criteria that UID and row answer."""
    match criterion:
        case search.Flags(bits, want):
            expected = bits if want else 0
            return lambda m: m.row[2] & bits == expected
        case search.Keyword(name, want):
            bit = view.keyword_bit(name)
            if bit is None:
                return lambda _: not want
            mask = 1 << bit
            return lambda m: bool(m.row[3] & mask) is want
        case search.Recent(want):
            first = view.first_recent
            return lambda m: (m.uid >= first) is want
        case search.Uids(ranges):
            return _within(ranges)
        case search.Octets(larger, octets):
            return (lambda m: m.row[4] > octets) if larger else (lambda m: m.row[4] < octets)
        case search.Date(which, op, day):
            number = day.toordinal() - _EPOCH_DAY
            column = 6 if which == "saved" else 5
            return lambda m: m.row[column] is not None and _compare(m.row[column] // 86400, op, number)
        case search.Arrived(younger, moment):
            return lambda m: (m.row[5] > moment) is younger
        case search.ModSeq(value):
            return lambda m: m.row[1] >= value
        case _:
            return lambda _: True


def _within(ranges: Sequence[tuple[int, int]]) -> _Test:
    if len(ranges) <= 4:
        return lambda m: any(low <= m.uid <= high for low, high in ranges)
    ordered = sorted(ranges)
    lows = [low for low, _ in ordered]
    highs = list(accumulate((high for _, high in ordered), max))

    def test(message: _Message) -> bool:
        at = bisect_right(lows, message.uid)
        return at > 0 and message.uid <= highs[at - 1]

    return test


def _compare(day: int, op: str, wanted: int) -> bool:
    if op == "before":
        return day < wanted
    return day == wanted if op == "on" else day >= wanted


def _all_of(tests: Sequence[_Test]) -> _Test:
    def test(message: _Message) -> bool | None:
        known = True
        for one in tests:
            answer = one(message)
            if answer is False:
                return False
            known = known and answer is not None
        return True if known else None

    return test


def _any_of(tests: Sequence[_Test]) -> _Test:
    def test(message: _Message) -> bool | None:
        known = True
        for one in tests:
            answer = one(message)
            if answer:
                return True
            known = known and answer is not None
        return False if known else None

    return test


def _none_of(one: _Test) -> _Test:
    def test(message: _Message) -> bool | None:
        answer = one(message)
        return None if answer is None else not answer

    return test


def _sent(op: str, day: datetime.date) -> _Test:
    wanted = day.toordinal()
    field = _field_pattern("date")

    def test(message: _Message) -> bool | None:
        if message.header is None:
            return None
        match = field.search(message.unfolded(message.header))
        when = parse_date(match[1].decode("utf-8", "replace")) if match else None
        return when is not None and _compare(when.toordinal(), op, wanted)

    return test


def _header(name: str, text: str) -> _Test:
    field = _field_pattern(name)
    key = fold(text)
    octets = key.encode() if key.isascii() else None
    of_addresses = name.lower() in _ADDRESS_FIELDS

    def test(message: _Message) -> bool | None:
        if message.header is None:
            return None
        values = field.findall(message.unfolded(message.header))
        if any(_holds(value, key, octets) for value in values):
            return True
        return of_addresses and any(key in address for value in values for address in hidden(value))

    return test


def _field_pattern(name: str) -> re.Pattern[bytes]:
    """Finds the values of a field in an unfolded header."""
    return re.compile(rb"\n%b[ \t]*+:[ \t]*+([^\n]*+)" % re.escape(name.encode("utf-8", "replace")), re.IGNORECASE)


def _holds(value: bytes, key: str, octets: bytes | None) -> bool:
    """Whether an unfolded value holds `key`, folded; `octets` is the key when it is ASCII."""
    value = value.rstrip(b" \t\r")
    if not _is_plain(value):
        return key in fold(decode_header(value))
    return octets is not None and octets in value.lower()


def _text(text: str, *, headers: bool) -> _Test:
    key = fold(text)
    octets = key.encode() if key.isascii() else None

    def test(message: _Message) -> bool | None:
        whole = message.whole
        if whole is None:
            return None
        if not key:
            return True
        if headers and message.header is not None:
            lines = message.unfolded(message.header)
            if _holds(lines, key, octets) if _is_plain(lines) else key in _header_text(message.header):
                return True
        plain, decoded = message.body(whole)
        if octets is not None and any(octets in part for part in plain):
            return True
        if any(key in part for part in decoded):
            return True
        return headers and any(key in part for part in _part_headers(message.tree(whole), whole))

    return test


def _is_plain(octets: bytes) -> bool:
    """Nothing to decode: ASCII without encoded words."""
    return octets.isascii() and b"=?" not in octets


def _unfold(header: bytes) -> bytes:
    """A header block (its first MAX_HEADER octets) without its folding, with LF before each field."""
    return b"\n" + header[:MAX_HEADER].replace(b"\r\n", b"\n").replace(b"\n ", b" ").replace(b"\n\t", b"\t")


def _header_text(header: bytes) -> str:
    """All fields of a header block decoded and folded, one a line."""
    return "\n".join(
        [
            line.decode("ascii").lower() if _is_plain(line) and b"\r" not in line else fold(decode_header(line))
            for line in _unfold(header).split(b"\n")
        ]
    )


def _part_headers(part: Part, whole: bytes) -> Iterator[str]:
    """The headers of the parts below the root; an attached message's own header is body."""
    for child in part.children:
        yield _header_text(whole[child.header_start : child.header_end])
        yield from _part_headers(child, whole)
    if part.message is not None:
        yield from _part_headers(part.message, whole)


def _texts(tree: Part, whole: bytes) -> tuple[list[bytes], list[str]]:
    plain: list[bytes] = []
    decoded: list[str] = []
    room = MAX_TEXT
    for part in _leaves(tree):
        if room <= 0:
            break
        if part.message is not None:
            inner = part.message
            decoded.append(_header_text(whole[inner.header_start : inner.header_end]))
            room -= len(decoded[-1])
            continue
        if part.subtype != b"html" and part.encoding.lower() in _IDENTITY and charset_of(part) in _ASCII_SUPERSETS:
            octets = whole[part.body_start : min(part.body_end, part.body_start + min(room, MAX_BODY))]
            if octets.isascii():
                plain.append(octets.lower())
                room -= len(octets)
                continue
        text = decode_body(part, whole)[:room]
        decoded.append(fold(html_to_text(text) if part.subtype == b"html" else text))
        room -= len(text)
    return plain, decoded


def searched_texts(whole: bytes) -> tuple[str, str]:
    """All that Header and Text criteria compare a folded key with, in this module: of the headers, and of the body."""
    header = split_head(whole)[0]
    lines, tree = _unfold(header), parse(whole)
    plain, decoded = _texts(tree, whole)
    of_header = lines.decode("ascii").lower() if _is_plain(lines) else _header_text(header)
    of_body = [octets.decode("ascii") for octets in plain] + decoded
    return "\n".join([of_header, *_part_headers(tree, whole)]), "\n".join(of_body)


def _leaves(part: Part) -> Iterator[Part]:
    """Text parts and attached messages, depth first."""
    if part.children:
        for child in part.children:
            yield from _leaves(child)
    elif part.message is not None:
        yield part
        yield from _leaves(part.message)
    elif part.type in (b"text", b"multipart", b"message"):
        yield part  # as Dovecot: also message/delivery-status and the like
