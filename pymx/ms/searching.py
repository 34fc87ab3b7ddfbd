"""SEARCH in a mailbox: the index first, and `pymx.ms.search` for the messages it can't decide.

Where the full-text index knows which messages can't hold a text, they drop out before; the answer is the same. Rows of
`keys` that are missing are made on the way, so the first search of a mailbox that came from elsewhere reads its
headers, and later ones do not. `stopped` is asked between portions; a search that is stopped gives what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pymx.mail import search as mail_search
from pymx.mail.search import Criterion
from pymx.ms import fulltext, keys, reading, search
from pymx.ms.arrive import Render
from pymx.ms.box import Box
from pymx.ms.fulltext import Narrowing
from pymx.ms.where import Where

_PORTION = 20_000


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
    found: list[int] = []
    for start in range(0, len(uids), _PORTION):
        if stopped():
            break
        portion = uids[start : start + _PORTION]
        known = _ask_keys(box, where, portion) if uids is view.uids else None
        matched, undecided = known or _ask_index(box, low, where, portion, render, stopped)
        if undecided:
            matched = sorted(matched + search.run(criterion, view, undecided))
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
            left = possible[key]
            return [uid for uid in uids if uid in left]
    return uids


def _ask_keys(box: Box, where: Where, uids: Sequence[int]) -> tuple[list[int], list[int]] | None:
    if not where.uses_keys:
        return None
    with box.home.index.read() as db:
        return where.select_at_once(db, uids)


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
