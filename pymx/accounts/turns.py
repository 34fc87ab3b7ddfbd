"""Whose password is checked next.

So many checks at a time as there are threads, and no more than one for one address: who sends many passwords waits for
himself. Addresses that somebody logged in from lately go first, and take the place of another one in a full queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
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

    async def take(self, source: str, *, first: bool) -> None:
        """Wait for a turn. `source` "" is nobody in particular and may have several. Raises Crowded."""
        if self._free and not (source and source in self._busy):
            self._grant(source)
            return
        if len(self._first) + len(self._rest) >= self._max_waiting:
            if not (first and self._rest):
                raise Crowded
            last = self._rest.pop()
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
