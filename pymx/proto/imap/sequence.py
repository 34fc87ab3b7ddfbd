"""Message sets (`sequence-set`, RFC 3501 s. 9): parsed, written, and resolved against a mailbox view.

A set is a tuple of ranges; `*` is kept as 0 until the view is known. A view is the ascending sequence of UIDs a session
knows; a message's sequence number is its position plus one.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pymx.proto.imap.errors import Bad

STAR = 0
_RANGE = re.compile(rb"([1-9]\d{0,9}|\*)(?::([1-9]\d{0,9}|\*))?")
_LARGEST = 0xFFFF_FFFF


def _number(text: bytes) -> int:
    value = STAR if text == b"*" else int(text)
    if value > _LARGEST:
        raise Bad("Number too large in message set")
    return value


@dataclass(frozen=True, slots=True)
class SequenceSet:
    """Ranges of numbers in the order of the client; 0 stands for `*`.

    `saved`: it was `$`, the result of the last search with SAVE (RFC 5182), which only the session knows.
    """

    ranges: tuple[tuple[int, int], ...]
    saved: bool = False

    @classmethod
    def parse(cls, text: bytes) -> SequenceSet:
        ranges = []
        for part in text.split(b","):
            match = _RANGE.fullmatch(part)
            if match is None:
                raise Bad("Invalid message set")
            first = _number(match[1])
            ranges.append((first, first if match[2] is None else _number(match[2])))
        return cls(tuple(ranges))

    def __bytes__(self) -> bytes:
        if self.saved:
            return b"$"

        def text(number: int) -> str:
            return "*" if number == STAR else str(number)

        return ",".join(text(a) if a == b else f"{text(a)}:{text(b)}" for a, b in self.ranges).encode()

    def spans(self, largest: int) -> list[tuple[int, int]]:
        """Ascending, disjoint, inclusive ranges with `*` as `largest`. In an empty mailbox `*` is nothing."""
        spans = []
        for a, b in self.ranges:
            if largest == 0 and STAR in (a, b):
                continue
            first, last = a or largest, b or largest
            spans.append((first, last) if first <= last else (last, first))
        spans.sort()
        merged: list[tuple[int, int]] = []
        for first, last in spans:
            if merged and first <= merged[-1][1] + 1:
                if last > merged[-1][1]:
                    merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        return merged

    def numbers(self, view: Sequence[int]) -> list[tuple[int, int]]:
        """Ranges of positions (start, stop) in the view for a set of sequence numbers.

        RFC 3501 s. 9: a number above the number of messages is answered BAD.
        """
        count = len(view)
        spans = self.spans(count)
        if spans and spans[-1][1] > count:
            raise Bad("Message set is out of range")
        return [(first - 1, last) for first, last in spans]

    def numbers_there(self, view: Sequence[int]) -> list[tuple[int, int]]:
        """Like `numbers`, without those that are too high: no message of a search has them."""
        count = len(view)
        return [(first - 1, min(last, count)) for first, last in self.spans(count) if first <= count]

    def uids(self, view: Sequence[int]) -> list[tuple[int, int]]:
        """Ranges of positions (start, stop) in the view for a set of UIDs; UIDs that don't exist are left out."""
        largest = view[-1] if view else 0
        found = []
        for first, last in self.spans(largest):
            start, stop = bisect_left(view, first), bisect_right(view, last)
            if start < stop:
                found.append((start, stop))
        return found


def select(view: Sequence[int], positions: Sequence[tuple[int, int]]) -> Sequence[int]:
    """The UIDs at ranges of positions."""
    if len(positions) == 1:
        start, stop = positions[0]
        return view if stop - start == len(view) else view[start:stop]
    uids: list[int] = []
    for start, stop in positions:
        uids.extend(view[start:stop])
    return uids


def runs(numbers: Iterable[int]) -> bytes:
    """A set as text, in the given order, runs of successive numbers joined: 1:3,7."""
    return run_text(ranges_of(numbers))


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers in the given order as inclusive ranges."""
    found: list[tuple[int, int]] = []
    first = last = -1
    for number in numbers:
        if number == last + 1 and first >= 0:
            last = number
            continue
        if first >= 0:
            found.append((first, last))
        first = last = number
    if first >= 0:
        found.append((first, last))
    return found


def run_text(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Inclusive ranges as a set."""
    return ",".join([str(first) if first == last else f"{first}:{last}" for first, last in ranges]).encode()
