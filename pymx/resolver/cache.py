"""A bounded map whose entries end at their time: DNS answers, found or not.

The least recently used entry goes first when the map is full, by number or by weight: one answer may have 64 KB, and
who sends mail chooses what is asked. `now` is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class TtlCache(Generic[V]):
    """At most `entries` values of `weight` octets together, each until its time."""

    __slots__ = ("_entries", "_limit", "_max_weight", "weight")

    def __init__(self, entries: int, weight: int = 1 << 62) -> None:
        self._limit = entries
        self._max_weight = weight
        self._entries: OrderedDict[Hashable, tuple[float, V, int]] = OrderedDict()
        self.weight = 0

    def get(self, key: Hashable, now: float) -> V | None:
        found = self._entries.get(key)
        if found is None:
            return None
        if found[0] <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, key: Hashable, value: V, until: float, weight: int = 0) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (until, value, weight)
        self.weight += weight
        # the newest stays, however heavy: whoever waits for it has to find it
        while len(self._entries) > self._limit or (self.weight > self._max_weight and len(self._entries) > 1):
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.weight = 0

    def _drop(self, key: Hashable) -> None:
        self.weight -= self._entries.pop(key)[2]

    def __len__(self) -> int:
        return len(self._entries)
