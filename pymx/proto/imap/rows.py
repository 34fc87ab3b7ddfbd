"""FETCH responses from rows of the store, compiled once per command.

A row is `(uid, modseq, flags, keywords, octets, internaldate, savedate, envelope, bodystructure, emailid, preview)`,
the first seven always and of the rest as much as the items need. Every item becomes a column that `zip` and one `%`
format put together, so that a flag listing costs a fraction of a microsecond per message: everything per row happens in
C but for the format itself. Where all items are in `LISTED`, `ListFormat` does the same from columns
of text, as the store can give them too, ENVELOPE and BODYSTRUCTURE among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from string import Formatter
from typing import Any

from pymx.proto.imap.dates import day, internaldate
from pymx.proto.imap.response import flag_list, nstring

Row = tuple[Any, ...]

UID, MODSEQ, FLAGS, KEYWORDS, OCTETS, INTERNALDATE, SAVEDATE, ENVELOPE, BODYSTRUCTURE, EMAILID, PREVIEW = range(11)
NO_RECENT = 0xFFFF_FFFF

_flags_and_keywords = itemgetter(FLAGS, KEYWORDS)


class FlagTexts(dict[tuple[int, int], bytes]):
    """(flags, keywords) → the text between the parentheses, made once each."""

    __slots__ = ("_names", "_recent")

    def __init__(self, names: Sequence[str], *, recent: bool) -> None:
        super().__init__()
        self._names = names
        self._recent = recent

    def __missing__(self, key: tuple[int, int]) -> bytes:
        text = self[key] = flag_list(key[0], key[1], self._names, recent=self._recent)
        return text


def _date_or_nil(unix_s: int | None) -> bytes:
    return b"NIL" if unix_s is None else internaldate(unix_s)


Column = Callable[[Sequence[Row]], Iterable[object]]

_COLUMNS: dict[str, tuple[bytes, Column]] = {
    "UID": (b"UID %d", lambda rows: map(itemgetter(UID), rows)),
    "MODSEQ": (b"MODSEQ (%d)", lambda rows: map(itemgetter(MODSEQ), rows)),
    "RFC822.SIZE": (b"RFC822.SIZE %d", lambda rows: map(itemgetter(OCTETS), rows)),
    "INTERNALDATE": (b"INTERNALDATE %b", lambda rows: map(internaldate, map(itemgetter(INTERNALDATE), rows))),
    "ENVELOPE": (b"ENVELOPE %b", lambda rows: map(itemgetter(ENVELOPE), rows)),
    "BODYSTRUCTURE": (b"BODYSTRUCTURE %b", lambda rows: map(itemgetter(BODYSTRUCTURE), rows)),
    "SAVEDATE": (b"SAVEDATE %b", lambda rows: map(_date_or_nil, map(itemgetter(SAVEDATE), rows))),
    "EMAILID": (b"EMAILID (%b)", lambda rows: map(itemgetter(EMAILID), rows)),
    "THREADID": (b"THREADID %b", lambda rows: repeat(b"NIL", len(rows))),  # RFC 8474 s. 5.3: there are none
    "PREVIEW": (b"PREVIEW %b", lambda rows: map(nstring, map(itemgetter(PREVIEW), rows))),
    "PREVIEW (LAZY)": (b"PREVIEW %b", lambda rows: map(nstring, map(itemgetter(PREVIEW), rows))),
}


class RowFormat:
    """The items of one FETCH that come from rows, for one mailbox and its keywords.

    `response`: what the response is called, FETCH, or UIDFETCH with UIDs for numbers (RFC 9586).
    """

    def __init__(
        self,
        items: Iterable[str],
        keywords: Sequence[str],
        first_recent: int = NO_RECENT,
        *,
        tail: bytes = b")\r\n",
        response: bytes = b"FETCH",
    ) -> None:
        self._first_recent = first_recent
        self._old = FlagTexts(keywords, recent=False)
        self._recent = FlagTexts(keywords, recent=True)
        self._columns: list[Column | None] = []  # None: the flags
        parts = []
        for item in items:
            if item == "FLAGS":
                parts.append(b"FLAGS (%b)")
                self._columns.append(None)
            else:
                text, column = _COLUMNS[item]
                parts.append(text)
                self._columns.append(column)
        self._template = b"* %d " + response + b" (" + b" ".join(parts) + tail

    def lines(self, numbers: Sequence[int], rows: Sequence[Row]) -> list[bytes]:
        """One response per row, in the order of the rows (ascending UIDs)."""
        if None in self._columns and self._first_recent != NO_RECENT:
            split = bisect_left(rows, self._first_recent, key=itemgetter(UID))
            if split < len(rows):
                return self._format(numbers[:split], rows[:split], self._old) + self._format(
                    numbers[split:], rows[split:], self._recent
                )
        return self._format(numbers, rows, self._old)

    def _format(self, numbers: Sequence[int], rows: Sequence[Row], texts: FlagTexts) -> list[bytes]:
        columns = [
            map(texts.__getitem__, map(_flags_and_keywords, rows)) if column is None else column(rows)
            for column in self._columns
        ]
        template = self._template
        return [template % values for values in zip(numbers, *columns, strict=True)]

    def flags(self, row: Row) -> bytes:
        """The FLAGS item of one row."""
        texts = self._recent if row[UID] >= self._first_recent else self._old
        return b"FLAGS (%b)" % texts[row[FLAGS], row[KEYWORDS]]


# Items that a listing has, with the columns of the store's listing in them.
LISTED: dict[str, str] = {
    "UID": "UID {uid}",
    "FLAGS": "FLAGS ({flags})",
    "MODSEQ": "MODSEQ ({modseq})",
    "RFC822.SIZE": "RFC822.SIZE {octets}",
    "INTERNALDATE": 'INTERNALDATE "{day} {time} +0000"',
    "ENVELOPE": "ENVELOPE {envelope}",
    "BODYSTRUCTURE": "BODYSTRUCTURE {bodystructure}",
}


class _StateTexts(dict[bytes, bytes]):
    """Flags and keywords as a listing has them (`1`, `1:4`) → the text between the parentheses, made once each."""

    __slots__ = ("_texts",)

    def __init__(self, texts: FlagTexts) -> None:
        super().__init__()
        self._texts = texts

    def __missing__(self, state: bytes) -> bytes:
        flags, _, keywords = state.partition(b":")
        text = self[state] = self._texts[int(flags), int(keywords or b"0")]
        return text


class _DayTexts(dict[bytes, bytes]):
    """Days since 1970 → what INTERNALDATE says of them."""

    def __missing__(self, days: bytes) -> bytes:
        text = self[days] = day(int(days)).encode()
        return text


class ListFormat:
    """As `RowFormat`, for items that are all in `LISTED`, from columns of text.

    A few short values are put into a template; with ENVELOPE or BODYSTRUCTURE among them, values and what stands
    between them are joined in one call for all messages, so that each is copied once.
    """

    def __init__(
        self,
        items: Iterable[str],
        keywords: Sequence[str],
        first_recent: int = NO_RECENT,
        *,
        response: bytes = b"FETCH",
    ) -> None:
        self._first_recent = first_recent
        self._old = _StateTexts(FlagTexts(keywords, recent=False))
        self._recent = _StateTexts(FlagTexts(keywords, recent=True))
        self._days = _DayTexts()
        line = " (" + " ".join([LISTED[item] for item in items]) + ")\r\n"
        *before, (tail, _, _, _) = Formatter().parse(line)
        self._columns = [column or "" for _, column, _, _ in before]
        between = [text.encode() for text, _, _, _ in before]
        self._template = b"* %d " + response + b"".join([text + b"%b" for text in between]) + tail.encode()
        self._between = [b"* ", b"", b" " + response + between[0], *[x for text in between[1:] for x in (b"", text)]]
        self._between += (b"", tail.encode())

    @property
    def columns(self) -> list[str]:
        """What to ask the store for."""
        return [column for column in dict.fromkeys(self._columns) if column != "uid"]

    def lines(self, numbers: Sequence[int], uids: Sequence[int], texts: Mapping[str, Sequence[bytes]]) -> bytes:
        """Responses for `uids` (ascending), whose columns `texts` are."""
        values = [self._values(column, uids, texts) for column in self._columns]
        if "envelope" not in texts and "bodystructure" not in texts:
            template = self._template
            return b"".join([template % row for row in zip(numbers, *values, strict=True)])
        pieces = self._between * len(uids)
        width = len(self._between)
        for at, column in enumerate([[b"%d" % number for number in numbers], *values]):
            pieces[2 * at + 1 :: width] = column
        return b"".join(pieces)

    def _values(self, column: str, uids: Sequence[int], texts: Mapping[str, Sequence[bytes]]) -> Sequence[bytes]:
        found = texts[column]
        if column == "day":
            return list(map(self._days.__getitem__, found))
        if column == "flags":
            split = bisect_left(uids, self._first_recent)
            return [*map(self._old.__getitem__, found[:split]), *map(self._recent.__getitem__, found[split:])]
        return found


def numbers(view: Sequence[int], uids: Sequence[int]) -> Sequence[int]:
    """Sequence numbers of UIDs (ascending, all of them in the view)."""
    if not uids:
        return ()
    start = bisect_left(view, uids[0])
    stop = start + len(uids)
    if stop <= len(view) and view[stop - 1] == uids[-1]:
        return range(start + 1, stop + 1)  # both ascending, same length, same ends: the same messages
    return [bisect_left(view, uid, start) + 1 for uid in uids]
