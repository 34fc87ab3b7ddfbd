"""What of the queue waits in memory: a lane for each destination, a site for all that one provider takes. PURE.

Which of them has the next turn is decided in `queue.window`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pymx.queue.pace import Pace
from pymx.queue.place import Place
from pymx.queue.state import Item


@dataclass(slots=True)
class Lane:
    """What waits for one destination."""

    destination: str
    place: Place | None = None
    fresh: deque[Item] = field(default_factory=deque)
    deferred: deque[Item] = field(default_factory=deque)
    prefer_deferred: bool = False  # the other kind had the last turn
    turn: int = 0
    turn_began: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.fresh or self.deferred)

    def pop(self, *, deferred_too: bool) -> Item | None:
        """New and deferred mail in turn."""
        kinds = (self.deferred, self.fresh) if self.prefer_deferred else (self.fresh, self.deferred)
        for kind in kinds:
            if kind and (deferred_too or kind is self.fresh):
                self.prefer_deferred = kind is self.fresh
                return kind.popleft()
        return None


@dataclass(slots=True)
class Site:
    """The lanes of a site that have something waiting."""

    name: str
    pace: Pace
    lanes: deque[Lane] = field(default_factory=deque)
    fresh: int = 0
    deferred: int = 0
    listed: bool = False
