"""The active window: deliveries in memory by destination, taken in turn. No I/O.

Every destination has a lane. `next()` goes round the lanes that have something waiting and a slot free, so that a
destination with a thousand messages gets no more turns than one with a single message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pymx.queue.state import Item


@dataclass(slots=True)
class _Lane:
    waiting: deque[Item] = field(default_factory=deque)
    active: int = 0
    listed: bool = False


class Lanes:
    """`per_destination` deliveries of one destination run at the same time."""

    def __init__(self, per_destination: int) -> None:
        self._per_destination = per_destination
        self._lanes: dict[str, _Lane] = {}
        self._ready: deque[str] = deque()
        self.fresh = 0  # new mail waiting in all lanes
        self.deferred = 0

    def add(self, item: Item) -> None:
        lane = self._lanes.setdefault(item.destination, _Lane())
        lane.waiting.append(item)
        self._count(item, 1)
        self._list(item.destination, lane)

    def _count(self, item: Item, n: int) -> None:
        if item.fresh:
            self.fresh += n
        else:
            self.deferred += n

    def _list(self, destination: str, lane: _Lane) -> None:
        if lane.waiting and lane.active < self._per_destination and not lane.listed:
            lane.listed = True
            self._ready.append(destination)

    @property
    def any_ready(self) -> bool:
        return bool(self._ready)

    def enter(self) -> str | None:
        """Take a slot of the next destination, or None when none has both work and a slot."""
        if not self._ready:
            return None
        destination = self._ready.popleft()
        lane = self._lanes[destination]
        lane.listed = False
        lane.active += 1
        self._list(destination, lane)
        return destination

    def pop(self, destination: str) -> Item | None:
        """The next delivery of a destination whose slot one has."""
        lane = self._lanes[destination]
        if not lane.waiting:
            return None
        item = lane.waiting.popleft()
        self._count(item, -1)
        return item

    def leave(self, destination: str) -> None:
        """Give the slot back."""
        lane = self._lanes[destination]
        lane.active -= 1
        if lane.waiting:
            self._list(destination, lane)
        elif not lane.active and not lane.listed:
            del self._lanes[destination]

    def waiting(self, destination: str) -> int:
        lane = self._lanes.get(destination)
        return len(lane.waiting) if lane else 0

    def waiting_by_destination(self) -> dict[str, int]:
        return {destination: len(lane.waiting) for destination, lane in self._lanes.items()}

    def empty(self) -> list[Item]:
        """Take out everything that waits."""
        items: list[Item] = []
        self._ready.clear()
        for destination, lane in list(self._lanes.items()):
            items += lane.waiting
            lane.waiting.clear()
            lane.listed = False
            if not lane.active:
                del self._lanes[destination]
        self.fresh = self.deferred = 0
        return items
