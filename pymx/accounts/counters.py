"""The asynchronous door to `LimitState`: work is collected and done in batches, in a thread of its own.

While one batch is being committed the next one collects, so a storm of logins costs a commit per batch, not one each.
When a call returns, what it wrote is committed and every other process sees it.

Fails with `LimitsUnavailable`: no room, a failing disk, another process that holds the file for too long, or too much
work waiting. Nobody is kept out for that: callers go on as if there were no limits, and the log says so once a minute.
A damaged file is moved aside and begun anew; one that another process has begun anew, or that was removed, is left for
the one that is there now. After `close` the counters can't be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pymx import log
from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import LimitState, is_damage

T = TypeVar("T")

_MAX_WAITING = 10_000
_COMPLAIN_EVERY_S = 60.0
_TIDY_EVERY_S = 900.0


class LimitsUnavailable(Exception):
    """The counters can't be had now; the reason is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Work:
    run: Callable[[LimitState], object]
    writes: bool
    done: asyncio.Future[Any]


class Counters:
    """One per process, made after a fork (it has a thread); `start` before use, `close` at the end."""

    def __init__(self, path: Path, rules: Rules, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._path = path
        self._rules = rules
        self._state: LimitState | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._waiting: list[_Work] = []
        self._running: asyncio.Future[list[object]] | None = None
        self._tidied_s = 0.0
        self._is_closed = False
        self._complained_s = -_COMPLAIN_EVERY_S
        self._log = log.get("accounts")

    def reload(self, rules: Rules) -> None:
        """Go by other rules from now on; bans that are in force keep their length."""
        self._rules = rules
        if self._state is not None:
            self._state.rules = rules

    async def close(self) -> None:
        """Finish what waits, close the file, end the thread."""
        self._is_closed = True
        while self._running is not None:
            await asyncio.wait([self._running])
            await asyncio.sleep(0)  # its callback starts the next batch
        state, self._state = self._state, None
        if state is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, state.close)
        self._thread.shutdown(wait=True)

    async def read(self, work: Callable[[LimitState], T]) -> T:
        """Raises LimitsUnavailable."""
        return await self._do(work, writes=False)

    async def write(self, work: Callable[[LimitState], T]) -> T:
        """At return the change is committed. Raises LimitsUnavailable."""
        return await self._do(work, writes=True)

    async def add_rates(self, changes: list[tuple[str, str, int, int]]) -> list[int]:
        """The sums of all processes, in order; none when they can't be had."""
        try:
            return await self.write(lambda state: state.add_rates(changes))
        except LimitsUnavailable as e:
            self.complain(e.reason)
            return []

    def complain(self, reason: str) -> None:
        """Say that limits are off for the moment, at most once a minute."""
        now = time.monotonic()
        if now - self._complained_s >= _COMPLAIN_EVERY_S:
            self._complained_s = now
            self._log.error("limits_unavailable", path=self._path, reason=reason)

    async def _do(self, work: Callable[[LimitState], T], *, writes: bool) -> T:
        if self._is_closed:  # a session that did not end in time
            raise LimitsUnavailable("the server stops")
        if len(self._waiting) >= _MAX_WAITING:
            raise LimitsUnavailable("too much is waiting to be counted")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Work(work, writes, done))
        if self._running is None:
            self._next()
        return await done

    def _next(self) -> None:
        batch, self._waiting = self._waiting, []
        self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
        self._running.add_done_callback(functools.partial(self._batch_done, batch))

    def _batch_done(self, batch: list[_Work], running: asyncio.Future[list[object]]) -> None:
        self._running = None
        error = running.exception()
        if isinstance(error, sqlite3.Error | OSError):
            error = LimitsUnavailable(str(error))
        for i, work in enumerate(batch):
            if work.done.done():
                continue  # whoever asked is gone
            if error is not None:
                work.done.set_exception(error)
            else:
                work.done.set_result(running.result()[i])
        if self._waiting:
            self._next()

    # In the thread

    def _run(self, batch: list[_Work]) -> list[object]:
        state = self._state
        if state is not None and not state.is_current():
            self._state = None
            state.close()
        try:
            return self._commit(batch)
        except sqlite3.Error as e:
            damaged = self._state
            if damaged is None or not is_damage(e):
                raise
            self._state = None
            self._tell_damaged(damaged.abandon())
            return self._commit(batch)

    def _commit(self, batch: list[_Work]) -> list[object]:
        state = self._state
        if state is None:
            state = self._state = LimitState(self._path, self._rules)
            self._tell_damaged(state.moved)
        with state.transaction() if any(work.writes for work in batch) else contextlib.nullcontext():
            results = [work.run(state) for work in batch]
        now = self.clock()
        if abs(now - self._tidied_s) >= _TIDY_EVERY_S:  # also when the clock was set back
            self._tidied_s = now
            # busy or full: it can wait, and the batch is done
            with contextlib.suppress(sqlite3.OperationalError), state.transaction():
                state.tidy(now)
        return results

    def _tell_damaged(self, moved: Path | None) -> None:
        if moved is not None:
            self._log.error("limits_damaged", path=moved, reason="bans and counters begin anew")
