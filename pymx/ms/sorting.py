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
_NO_KEYS, _NO_DATE = 1, 2

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
    columns = ", ".join([ORDERS[name] for name, _ in order])
    found = _rows(box, low, uids, columns, render, stopped)
    for number in range(len(order), 0, -1):
        found.sort(key=itemgetter(number), reverse=order[number - 1][1])
    return [row[0] for row in found]


def thread(
    box: Box, low: int, uids: Sequence[int], algorithm: str, render: Render | None, stopped: Callable[[], bool]
) -> threads.Forest:
    """`uids` (ascending) as threads."""
    found = [row[:-1] for row in _rows(box, low, uids, _THREAD, render, stopped)]
    if algorithm == "ORDEREDSUBJECT":
        return threads.by_subject(found)
    return threads.by_references(found, merge_subjects=algorithm == "REFERENCES")


def _rows(
    box: Box, low: int, uids: Sequence[int], columns: str, render: Render | None, stopped: Callable[[], bool]
) -> list[Row]:
    """(uid, *columns, …) of the messages that are there."""
    found: list[Row] = []
    for start in range(0, len(uids), _PORTION):
        if stopped():
            break
        portion = uids[start : start + _PORTION]
        rows = _portion(box, low, portion, columns)
        lacking = [row for row in rows if row[-1]]
        if lacking:
            unmade = [row[0] for row in lacking if row[-1] & _NO_KEYS]
            undated = [row[0] for row in lacking if row[-1] & _NO_DATE]
            if unmade and render is not None:
                reading.fill_keys(box, low, unmade, render, stopped)
            if undated:
                reading.rows(box, low, undated, False, None)
            rows = _portion(box, low, portion, columns)
        found += rows
    return found


def _portion(box: Box, low: int, uids: Sequence[int], columns: str) -> list[Row]:
    lacks = f"({_NO_KEYS} * (k.id IS NULL)) | ({_NO_DATE} * (m.internaldate IS NULL))"
    with box.home.index.read() as db:
        return keys.select(db, low, uids, f"{columns}, {lacks}")
