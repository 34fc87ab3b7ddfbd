"""Which backups are kept: the last of each of so many days, weeks and months, and always the newest."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

NAME = "%Y%m%dT%H%M%SZ"


def when(name: str) -> datetime.datetime | None:
    """The time in a backup's name; None for other names."""
    try:
        return datetime.datetime.strptime(name, NAME).replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def kept(names: Sequence[str], *, daily: int, weekly: int, monthly: int) -> list[str]:
    """Of names with times, those to keep, oldest first. Other names are nobody's business and are not among them."""
    known = sorted((at, name) for name in names if (at := when(name)) is not None)
    keep = {name for _, name in known[-1:]}
    rules: list[tuple[int, Callable[[datetime.datetime], object]]] = [
        (daily, lambda at: at.date()),
        (weekly, lambda at: at.isocalendar()[:2]),
        (monthly, lambda at: (at.year, at.month)),
    ]
    for count, period in rules:
        last_of: dict[object, str] = {}
        for at, name in known:
            last_of[period(at)] = name
        keep.update(list(last_of.values())[len(last_of) - min(count, len(last_of)) :])
    return [name for _, name in known if name in keep]
