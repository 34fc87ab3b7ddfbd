"""SORT and THREAD in a mailbox: columns of the index in, UIDs in order out (RFC 5256).

Rows of `keys` and dates that are missing are made on the way, so the first sort of a mailbox that came from elsewhere
reads its headers, and later ones do not. `stopped` is asked between portions; a sort that is stopped gives what it has.
Messages that are gone are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from pymx.mail import threads
from pymx.ms import keys, reading
from pymx.ms.arrive import Render
from pymx.ms.box import Box

# RFC 5256 s. 3: a message whose Date can't be read is sorted by its INTERNALDATE.
_SENT = "coalesce(k.sent, m.internaldate, 0)"
ORDERS: Mapping[str, str] = {
    "ARRIVAL": "coalesce(m.internaldate, 0)",
    "CC": "coalesce(k.cc_key, x'')",
    "DATE": _SENT,
    "FROM": "coalesce(k.from_key, x'')",
    "SIZE": "m.octets",
    "SUBJECT": "coalesce(k.base_subject, x'')",
    "TO": "coalesce(k.to_key, x'')",
    "DISPLAYFROM": "coalesce(k.from_name, x'')",
    "DISPLAYTO": "coalesce(k.to_name, x'')",
}
_THREAD = f"{_SENT}, coalesce(k.base_subject, x''), coalesce(k.reply, 0), coalesce(k.thread, x'')"
_PORTION = 10_000

Row = tuple[Any, ...]


def sort(
    box: Box,
    low: int,
    uids: Sequence[int],
    order: Sequence[tuple[str, bool]],
    render: Render | None,
    stopped: Callable[[], bool],
) -> list[int]:
    """`uids` (ascending) by (criterion, reverse), the first weighing most; what is equal stays in mailbox order."""
    _complete(box, low, uids, render, stopped)
    if stopped():
        return []
    # By SQLite, because it lets other threads run meanwhile, and a sort in Python does not.
    terms = [f"{ORDERS[name]} {'DESC' if reverse else 'ASC'}" for name, reverse in order]
    with box.home.index.read() as db:
        ordered = keys.ordered(db, low, uids, ", ".join(terms))
    if ordered is not None:
        return ordered
    found = _rows(box, low, uids, ", ".join([ORDERS[name] for name, _ in order]), stopped)
    for number in range(len(order), 0, -1):
        found.sort(key=itemgetter(number), reverse=order[number - 1][1])
    return [row[0] for row in found]


def thread(
    box: Box, low: int, uids: Sequence[int], algorithm: str, render: Render | None, stopped: Callable[[], bool]
) -> threads.Forest:
    """`uids` (ascending) as threads."""
    _complete(box, low, uids, render, stopped)
    found = _rows(box, low, uids, _THREAD, stopped)
    if algorithm == "ORDEREDSUBJECT":
        return threads.by_subject(found)
    return threads.by_references(found, merge_subjects=algorithm == "REFERENCES")


def _rows(box: Box, low: int, uids: Sequence[int], columns: str, stopped: Callable[[], bool]) -> list[Row]:
    """(uid, *columns) of the messages that are there."""
    found: list[Row] = []
    for start in range(0, len(uids), _PORTION):
        if stopped():
            break
        with box.home.index.read() as db:
            found += keys.select(db, low, uids[start : start + _PORTION], columns)
    return found


def _complete(box: Box, low: int, uids: Sequence[int], render: Render | None, stopped: Callable[[], bool]) -> None:
    """Make what rows lack."""
    for start in range(0, len(uids), _PORTION):
        if stopped():
            break
        with box.home.index.read() as db:
            unmade, undated = keys.incomplete(db, low, uids[start : start + _PORTION])
        if unmade and render is not None:
            reading.fill_keys(box, low, unmade, render, stopped)
        if undated:
            reading.rows(box, low, undated, False, None)
