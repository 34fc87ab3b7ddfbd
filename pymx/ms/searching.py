"""SEARCH in a mailbox: the index first, and `pymx.ms.search` for the messages it can't decide.

Where the full-text index knows which messages can't hold a text, they drop out before; the answer is the same. Rows of
`keys` that are missing are made on the way, so the first search of a mailbox that came from elsewhere reads its
headers, and later ones do not. `stopped` is asked between portions; a search that is stopped gives what it has.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pymx.mail import search as mail_search
from pymx.mail.search import Criterion
from pymx.ms import fulltext, keys, reading, search
from pymx.ms.arrive import Render
from pymx.ms.box import Box
from pymx.ms.fulltext import Narrowing
from pymx.ms.searchahead import Ahead
from pymx.ms.where import Where

_PORTION = 10_000
_FOR_ONE = 2  # so many portions are scanned before a second thread would have begun
_MANY = 2_000  # messages; with fewer it does not matter what a scan reads

_Known = tuple[Sequence[int], Sequence[int]]  # UIDs that match, and those that are undecided


def find(
    box: Box,
    low: int,
    criterion: Criterion,
    view: search.SearchView,
    render: Render | None,
    stopped: Callable[[], bool],
    narrowing: Narrowing | None = None,
) -> list[int]:
    """The UIDs of the view's messages that match, ascending."""
    if not search.needs(criterion):
        return search.run(criterion, view)
    possible = narrowing.possible if narrowing is not None else {}
    where = Where(criterion, low=low, first_recent=view.first_recent, keyword_bit=view.keyword_bit, possible=possible)
    uids = _possible(criterion, search.narrowed(criterion, view.uids), possible)
    if where.uses_keys and len(uids) >= _MANY:
        box.home.index.add_texts()
    portions = [uids[start : start + _PORTION] for start in range(0, len(uids), _PORTION)]
    scanned: list[_Known | None] = [None] * len(portions)
    if where.knows_nothing:
        scanned = [([], portion) for portion in portions]
    elif where.uses_keys and uids is view.uids:
        scanned = _ask_keys(box, where, portions, stopped)
    found: list[int] = []
    for portion, known in zip(portions, scanned, strict=True):
        if stopped():
            break
        matched, undecided = known or _ask_index(box, low, where, portion, render, stopped)
        if undecided:
            ahead = Ahead(view, box, low, undecided, stopped)
            matched = sorted([*matched, *search.run(criterion, ahead, undecided)])
        found += matched
    return found


def narrow(box: Box, guid: str, uidvalidity: int, criterion: Criterion, uids: Sequence[int]) -> Narrowing | None:
    """What the full-text index says about the texts in a criterion; None when it has nothing to say."""
    keys = fulltext.asked(criterion)
    if not keys:
        return None

    def uidnext() -> int:
        with box.home.index.read() as db:
            row = box.row(db)
        return row.uidnext if row else 0

    file = fulltext.FullText(box.home.index.path, box.home.mode)
    return file.narrow(guid, uidvalidity, uidnext, uids, keys)


def _possible(
    criterion: Criterion, uids: Sequence[int], possible: Mapping[fulltext.Asked, Collection[int]]
) -> Sequence[int]:
    """The UIDs that texts among the outermost conditions leave."""
    if isinstance(criterion, mail_search.And):
        for part in criterion.criteria:
            uids = _possible(part, uids, possible)
    elif isinstance(criterion, mail_search.Text | mail_search.Header):
        key = fulltext.asked_by(criterion)
        if key is not None and key in possible:
            return _common(uids, possible[key])
    return uids


def _common(uids: Sequence[int], chosen: Collection[int]) -> list[int]:
    """Those of `uids` (ascending) that are chosen."""
    if len(chosen) * 10 > len(uids):
        return [uid for uid in uids if uid in chosen]
    places = [(uid, bisect_left(uids, uid)) for uid in sorted(chosen)]
    return [uid for uid, at in places if at < len(uids) and uids[at] == uid]


def _ask_keys(
    box: Box, where: Where, portions: Sequence[Sequence[int]], stopped: Callable[[], bool]
) -> list[_Known | None]:
    """What `keys` alone says of each portion, if it can say it."""

    def ask(some: Sequence[Sequence[int]]) -> list[_Known | None]:
        with box.home.index.read() as db:
            return [None if stopped() else where.select_at_once(db, portion) for portion in some]

    if len(portions) <= _FOR_ONE or len(os.sched_getaffinity(0)) == 1:
        return ask(portions)
    # SQLite works without the interpreter lock, so a second thread halves the time that a client waits.
    half = len(portions) // 2
    with ThreadPoolExecutor(1, "search") as helper:
        others = helper.submit(ask, portions[half:])
        return ask(portions[:half]) + others.result()


def _ask_index(
    box: Box, low: int, where: Where, uids: Sequence[int], render: Render | None, stopped: Callable[[], bool]
) -> tuple[list[int], list[int]]:
    with box.home.index.read() as db:
        matched, undecided = where.select(db, uids)
        unmade = keys.missing(db, low, undecided) if where.uses_keys and render is not None else []
    if not unmade or render is None:
        return matched, undecided
    reading.fill_keys(box, low, unmade, render, stopped)
    with box.home.index.read() as db:
        more, still = where.select(db, unmade)
    made = set(unmade)
    return sorted(matched + more), sorted([uid for uid in undecided if uid not in made] + still)
