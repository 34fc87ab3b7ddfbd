"""The live sessions of a process, and the one timer that sweeps them.

A timer per session and command costs more than the command; so sessions only note since when they wait, and once a
second `sweep(now)` lets each of them compare. Tasks of sessions are held here, so that none is lost to the garbage
collector and `drain` can wait for deliveries in progress.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Protocol

SWEEP_S = 1.0
MANY = 100  # so many sessions less, and a quarter of them, are worth a word to `thinned`


class Live(Protocol):
    """What a session offers."""

    def sweep(self, now: float) -> None:
        """Look at the limits of time; `now` is the loop's time."""

    def shutdown(self) -> None:
        """Say goodbye (421, BYE) at the next convenient point and end."""

    @property
    def listener(self) -> str:
        """The kind of door it came in by: smtp, submission, lmtp, imap."""

    @property
    def account(self) -> str:
        """Who is logged in: the account's address, or ""."""

    def dismiss(self) -> None:
        """The account is gone or has another password: end as in `shutdown`, but say so."""


class Sessions:
    """All sessions of a process, of every listener and protocol."""

    def __init__(self) -> None:
        self._live: set[Live] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None
        self._most = self._before = 0  # since the last time `thinned` was called, and a second ago
        self.thinned: Callable[[], None] = lambda: None  # called when many have ended, and no more do

    def __len__(self) -> int:
        return len(self._live)

    def by_listener(self) -> Counter[str]:
        """How many there are of each kind."""
        return Counter(session.listener for session in self._live)

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self._live))

    def start(self) -> None:
        """Begin to sweep, in the running loop."""
        self._sweep_later(asyncio.get_running_loop())

    def stop(self) -> None:
        """End the sweeping."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, session: Live) -> None:
        self._live.add(session)

    def discard(self, session: Live) -> None:
        self._live.discard(session)
        self._note_change()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a session's coroutine; it handles its own exceptions, but for cancellation."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def drain(self, timeout_s: float) -> int:
        """Tell every session to end and wait until all have, or `timeout_s` is over. Returns how many are left."""
        for session in tuple(self._live):
            session.shutdown()
        self._changed = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                while self._live or self._tasks:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._changed = None
        return len(self._live)

    def accounts(self) -> set[str]:
        """Who is logged in."""
        return {s.account for s in self._live if s.account}

    def dismiss(self, account: str) -> None:
        """End the sessions of an account."""
        for session in tuple(self._live):
            if session.account == account:
                session.dismiss()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._note_change()

    def _note_change(self) -> None:
        if self._changed is not None:
            self._changed.set()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(SWEEP_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_later(loop)
        now = loop.time()
        for session in tuple(self._live):
            session.sweep(now)
        left = len(self._live)
        self._most = max(self._most, left)
        if left >= self._before and self._most - left >= max(MANY, self._most // 4):
            self._most = left
            self.thinned()
        self._before = left
