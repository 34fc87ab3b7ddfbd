"""Search criteria as an SQL expression over `message` and `keys`.

SQL's NULL is the "not known yet" of `pymx.ms.search`, and AND, OR and NOT treat it as that module's logic does. So one
scan tells which messages match for certain and which have to be asked further; what the index can't say is NULL.
"""

from __future__ import annotations

import datetime
import json
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence

from pymx.mail import search
from pymx.mail.search import Criterion
from pymx.mail.text import fold
from pymx.ms import fulltext
from pymx.ms.index import Connection

_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_TEXTS = {"from": "from_text", "to": "to_text", "cc": "cc_text", "bcc": "bcc_text", "subject": "subject_text"}
_UNKNOWN = "NULL"
# SQLite's parser has a small stack, and its expressions a limited depth.
_MAX_DEPTH = 12
_MAX_TERMS = 200
_MAX_RANGES = 50
_BY_VALUE = 900


class Where:
    """One criterion for one mailbox view; `uses_keys` when rows of `keys` have a say."""

    def __init__(
        self,
        criterion: Criterion,
        *,
        low: int,
        first_recent: int,
        keyword_bit: Callable[[str], int | None],
        possible: Mapping[fulltext.Asked, Collection[int]] | None = None,
    ) -> None:
        """`possible`: the UIDs that may hold a text, of those that the full-text index knows to look for."""
        self._low = low
        self._first_recent = first_recent
        self._keyword_bit = keyword_bit
        self._possible = possible or {}
        self._parameters: dict[str, int | bytes | str] = {}
        self._terms = 0
        self.uses_keys = False
        self._uses_message = False
        self._is_text = isinstance(criterion, search.Text | search.Header)
        self._matches_few = not isinstance(criterion, search.Not)
        # In parentheses, and 0, 1 or NULL if it is a NOT; else also another number that counts as true.
        self._expression = self._of(criterion, 0)

    @property
    def knows_nothing(self) -> bool:
        """No more than which messages a text may be in: each of those has to be asked."""
        return self._is_text and not self.uses_keys

    def select_at_once(self, db: Connection, uids: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """As `select`, for all UIDs of a view between two of them: from `keys` alone, in half the time.

        None when that can't be: the criterion asks for more, or not every message has its row there.
        """
        if self._uses_message or not uids:
            return None
        within = {"first": self._low | uids[0], "last": self._low | uids[-1]}
        # What is undecided comes out negative. The first way is faster where few match, the second where most do.
        known, uid = self._expression, "(k.id & 4294967295)"
        if self._matches_few:
            chosen = f"CASE WHEN {known} THEN {uid} ELSE -{uid} END) FILTER (WHERE {known} IS NOT 0"
        else:
            chosen = f"CASE {known} WHEN 1 THEN {uid} WHEN 0 THEN NULL ELSE -{uid} END"
        count, text = db.execute(
            f"SELECT count(*), group_concat({chosen}) FROM keys k WHERE k.id BETWEEN :first AND :last",  # noqa: S608
            self._parameters | within,
        ).fetchone()
        if count != len(uids):
            return None
        found = sorted(map(int, text.split(","))) if text else []
        if found and uids[-1] - uids[0] + 1 != len(uids):
            there = set(uids)
            found = [uid for uid in found if abs(uid) in there]
        decided = bisect_left(found, 0)
        return found[decided:], [-uid for uid in reversed(found[:decided])]

    def select(self, db: Connection, uids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of `uids` (ascending): those that match, and those about which the index does not know enough."""
        if not uids:
            return [], []
        first, last = uids[0], uids[-1]
        if last - first < 4 * len(uids):
            found = self._run(db, "BETWEEN :first AND :last", {"first": self._low | first, "last": self._low | last})
            if found and last - first + 1 != len(uids):
                wanted = set(uids)
                found = [row for row in found if row[0] in wanted]
        else:
            found = []
            for start in range(0, len(uids), _BY_VALUE):
                # UIDs are numbers of our own, and so many names would be slower to bind than to read.
                ids = ",".join([str(self._low | uid) for uid in uids[start : start + _BY_VALUE]])
                found += self._run(db, f"IN ({ids})", {})
        matched = [uid for uid, known in found if known]
        return matched, [uid for uid, known in found if known is None] if len(matched) < len(found) else []

    def _run(self, db: Connection, which: str, bounds: dict[str, int]) -> list[tuple[int, int | None]]:
        joined = " LEFT JOIN keys k ON k.id = m.id" if self.uses_keys else ""
        return db.execute(
            f"SELECT m.id & 4294967295, {self._expression} FROM message m{joined}"  # noqa: S608  (built below)
            f" WHERE m.id {which} AND ({self._expression}) IS NOT 0 ORDER BY m.id",
            self._parameters | bounds,
        ).fetchall()

    def _value(self, value: int | bytes | str) -> str:
        name = f"p{len(self._parameters)}"
        self._parameters[name] = value
        return ":" + name

    def _of(self, criterion: Criterion, depth: int) -> str:
        self._terms += 1
        if depth > _MAX_DEPTH or self._terms > _MAX_TERMS:
            return _UNKNOWN
        match criterion:
            case search.All():
                return "1"
            case search.And(criteria):
                if len(criteria) > _MAX_TERMS:
                    return _UNKNOWN
                return f"({' AND '.join([self._of(each, depth + 1) for each in criteria])})" if criteria else "1"
            case search.Or(first, second):
                return f"({self._of(first, depth + 1)} OR {self._of(second, depth + 1)})"
            case search.Not(inner):
                return f"(NOT {self._of(inner, depth + 1)})"
            case search.Header(name, text):
                known = self._header(name, text)
                return self._text(criterion) if known == _UNKNOWN else known
            case search.Text():
                return self._text(criterion)
            case search.Date("sent", op, day):
                self.uses_keys = True
                return self._day("k.sent_day", op, day.toordinal(), 1, 1)
            case search.Date(which, op, day):
                self._uses_message = True
                column = "m.savedate" if which == "saved" else "m.internaldate"
                return self._day(column, op, (day.toordinal() - _EPOCH_DAY) * 86400, 86400, None)
            case _:
                return self._cheap(criterion)

    def _cheap(self, criterion: Criterion) -> str:
        self._uses_message = True
        match criterion:
            case search.Flags(bits, want):
                return f"(m.flags & {self._value(bits)} = {self._value(bits if want else 0)})"
            case search.Keyword(name, want):
                bit = self._keyword_bit(name)
                if bit is None:
                    return str(int(not want))
                return f"((m.keywords & {self._value(1 << bit)} <> 0) = {int(want)})"
            case search.Recent(want):
                return f"((m.id >= {self._value(self._low | self._first_recent)}) = {int(want)})"
            case search.Uids(ranges) if len(ranges) <= _MAX_RANGES:
                each = [
                    f"m.id BETWEEN {self._value(self._low + low)} AND {self._value(self._low + high)}"
                    for low, high in ranges
                ]
                return f"({' OR '.join(each)})" if each else "0"
            case search.Octets(larger, octets):
                return f"(m.octets {'>' if larger else '<'} {self._value(octets)})"
            case search.Arrived(younger, moment):
                return f"((m.internaldate > {self._value(moment)}) = {int(younger)})"
            case search.ModSeq(value):
                return f"(m.modseq >= {self._value(value)})"
            case _:
                return _UNKNOWN

    def _day(self, column: str, op: str, start: int, length: int, least: int | None) -> str:
        """The day from `start` on; below `least` there is no day."""
        if op == "since":
            return f"({column} >= {self._value(start)})"
        if op == "on":
            return f"({column} BETWEEN {self._value(start)} AND {self._value(start + length - 1)})"
        before = f"({column} < {self._value(start)})"
        return before if least is None else f"({before} AND {column} >= {self._value(least)})"

    def _text(self, criterion: search.Text | search.Header) -> str:
        """Certainly not where the full-text index says so, else unknown."""
        key = fulltext.asked_by(criterion)
        if key is None or key not in self._possible:
            return _UNKNOWN
        self._uses_message = True
        ids = json.dumps([self._low | uid for uid in sorted(self._possible[key])])
        return f"(CASE WHEN m.id IN (SELECT value FROM json_each({self._value(ids)})) THEN NULL ELSE 0 END)"  # noqa: S608

    def _header(self, name: str, text: str) -> str:
        column = _TEXTS.get(name.lower())
        key = fold(text)
        if column is None or "\n" in key or "\r" in key:
            return _UNKNOWN  # a line end in the key could match where two fields meet
        self.uses_keys = True
        if not key:
            return f"(k.{column} <> x'')"
        return f"instr(k.{column}, {self._value(key.encode('utf-8', 'surrogatepass'))})"
