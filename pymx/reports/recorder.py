"""What is counted for reports, on its way to the database: never in the way of mail.

`Recorder.add` takes a key and returns at once. What came within a few seconds is written in one transaction in the
store's thread. When the database is slow, full or broken, counts are lost and the log says so once an hour, with how
many; mail goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from pymx import log, metrics
from pymx.reports.error import StoreUnavailable
from pymx.reports.store import Store

Key = tuple[int, str, str, str]
MAX_KEYS = 5_000  # different ones between two writes
_WRITE_EVERY_S = 2.0
_COMPLAIN_EVERY_S = 3600.0

_log = log.get("reports")


class Write(Protocol):
    """`Store.add_dmarc` or `Store.add_tls`."""

    def __call__(self, store: Store, counts: Mapping[Key, int], /) -> int: ...


class Recorder:
    """Counts of one kind. `start` and `close` in the loop that adds."""

    def __init__(
        self,
        store: Store,
        write: Write,
        *,
        every_s: float = _WRITE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._write = write
        self._every_s = every_s
        self._clock = clock
        self._counts: dict[Key, int] = {}
        self._lost = 0
        self._complained = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write what is there."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    def add(self, key: Key) -> None:
        """Count one."""
        count = self._counts.get(key, 0)
        if not count and len(self._counts) >= MAX_KEYS:
            self._lose(1, "too many different results at once")
            return
        self._counts[key] = count + 1

    async def flush(self) -> None:
        """Write now; what can't be written is lost."""
        counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            lost = await self._store.call(lambda store: self._write(store, counts))
        except StoreUnavailable as e:
            self._lose(sum(counts.values()), str(e))
        else:
            if lost:
                self._lose(lost, "too many different results of one domain in a day")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            # a flush that has begun is finished also when the process ends
            await asyncio.shield(self.flush())

    def _lose(self, count: int, reason: str) -> None:
        metrics.add("report_results_dropped", count)
        self._lost += count
        now = self._clock()
        if now - self._complained >= _COMPLAIN_EVERY_S:
            self._complained = now
            _log.warning("report_results_dropped", count=self._lost, reason=reason)
            self._lost = 0
