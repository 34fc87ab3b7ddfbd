"""Whose password is checked next.

So many checks at a time as there are threads, and no more than one for one address: who sends many passwords waits for
himself. Addresses that somebody logged in from lately go first, and take the place of another one in a full queue. So
does anybody, of an address that has several waiting: one that sends many passwords fills the queue for nobody else.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass


class Crowded(Exception):
    """Too many are waiting."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    source: str
    granted: asyncio.Future[None]


class Turns:
    """`async with`-less on purpose: `take` before the check, `give` after it, whatever came of it."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._max_waiting = waiting
        self._busy: set[str] = set()
        self._first: deque[_Waiter] = deque()
        self._rest: deque[_Waiter] = deque()

    async def take(self, source: str, *, first: bool) -> bool:
        """Wait for a turn; was there a wait? Raises Crowded.

        `source` "" is nobody in particular and may have several turns.
        """
        if self._free and not (source and source in self._busy):
            self._grant(source)
            return False
        if len(self._first) + len(self._rest) >= self._max_waiting:
            last = self._least_entitled(source, first)
            if last is None:
                raise Crowded
            self._rest.remove(last)
            if not last.granted.done():
                last.granted.set_exception(Crowded())
        waiter = _Waiter(source, asyncio.get_running_loop().create_future())
        queue = self._first if first else self._rest
        queue.append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in queue:
                queue.remove(waiter)
            elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self.give(source)
            raise
        return True

    def _least_entitled(self, source: str, first: bool) -> _Waiter | None:
        """Who has to make room for one more of `source`, if anybody."""
        waiting = Counter(waiter.source for waiter in self._rest if waiter.source)
        crowd, count = max(waiting.items(), key=lambda pair: pair[1], default=("", 0))
        if count > waiting[source] + 1:
            return next(waiter for waiter in reversed(self._rest) if waiter.source == crowd)
        return self._rest[-1] if first and self._rest else None

    def give(self, source: str) -> None:
        """The check is over: the next one's turn."""
        self._free += 1
        self._busy.discard(source)
        for queue in (self._first, self._rest):
            for waiter in tuple(queue):
                if not self._free:
                    return
                if waiter.source and waiter.source in self._busy:
                    continue
                queue.remove(waiter)
                if not waiter.granted.done():
                    self._grant(waiter.source)
                    waiter.granted.set_result(None)

    def _grant(self, source: str) -> None:
        self._free -= 1
        if source:
            self._busy.add(source)
