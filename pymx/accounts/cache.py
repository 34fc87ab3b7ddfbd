"""A bounded cache with a time to live that differs for what was found and what was not.

What was found is kept a while longer as *stale*: not used while the database answers, but when it does not, a known
recipient stays known. What was not found is never used stale: an unknown address may have been added meanwhile, and
550 is for ever. Found and not found have a bound each, so that guessed addresses can't push out the real ones.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Final, Generic, Literal, TypeVar

V = TypeVar("V")


class Miss(enum.Enum):
    """The cache does not know."""

    MISS = "miss"


MISS: Final = Miss.MISS


class TtlCache(Generic[V]):
    """Key → value, or None for "there is none". Oldest entries go first when it is full."""

    def __init__(
        self,
        *,
        positive_s: float,
        negative_s: float,
        stale_s: float,
        max_entries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._positive_s = positive_s
        self._negative_s = negative_s
        self._stale_s = stale_s
        self._max_entries = max_entries
        self._clock = clock
        self._found: dict[str, tuple[V, float]] = {}
        self._absent: dict[str, float] = {}

    def get(self, key: str) -> V | Literal[Miss.MISS] | None:
        """The fresh value, None when it is freshly known to be absent, or MISS."""
        entry = self._found.get(key)
        if entry is not None:
            value, stored = entry
            return value if self._clock() - stored < self._positive_s else MISS
        absent_since = self._absent.get(key)
        if absent_since is not None and self._clock() - absent_since < self._negative_s:
            return None
        return MISS

    def stale(self, key: str) -> V | None:
        """What was found last, fresh or not, within the bound for stale answers."""
        entry = self._found.get(key)
        if entry is not None and self._clock() - entry[1] < self._positive_s + self._stale_s:
            return entry[0]
        return None

    def put(self, key: str, value: V | None) -> None:
        now = self._clock()
        self._found.pop(key, None)
        self._absent.pop(key, None)
        if value is None:
            self._absent[key] = now
            if len(self._absent) > self._max_entries:
                del self._absent[next(iter(self._absent))]
        else:
            self._found[key] = (value, now)
            if len(self._found) > self._max_entries:
                del self._found[next(iter(self._found))]

    def clear(self) -> None:
        self._found.clear()
        self._absent.clear()

    def __len__(self) -> int:
        return len(self._found) + len(self._absent)
