"""The heartbeat of a process: each second it says that its event loop turns, every few seconds it shares its numbers.

`alive` tells the supervisor, who replaces a process that it has not heard of for too long. `sources` are asked for slow
gauges (disk, queue) in a thread, apart: one that is stuck stops neither the heart nor the sharing.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Coroutine, Sequence

from pymx import log, metrics
from pymx.metrics.shared import Share

BEAT_S = 1.0
_SHARE_EVERY = 5  # beats
_CLOSE_S = 2.0

_log = log.get("metrics")
Measure = Callable[[], None]


class Pulse:
    """`start` in the running loop; `close` shares the last numbers."""

    def __init__(self, share: Share, alive: Callable[[], None], measures: Sequence[Measure] = ()) -> None:
        self._share = share
        self._alive = alive
        self.measures = list(measures)
        self._lag_s = 0.0
        self._beating: asyncio.Task[None] | None = None
        self._working: dict[str, asyncio.Task[None]] = {}
        self._failed = False
        self._cpu_s = 0.0

    def start(self) -> None:
        self._share.take_over()
        labels = (("process", self._share.process),)
        metrics.gauge("event_loop_lag_seconds", lambda: {labels: self._lag_s})
        metrics.gauge("memory_octets", lambda: {labels: _memory()})
        metrics.gauge("open_files", lambda: {labels: _open_files()})
        self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def close(self) -> None:
        if self._beating is None:
            return
        self._beating.cancel()
        # a thread that writes can't be cancelled: two would get in each other's way
        await asyncio.wait({self._beating, *self._working.values()}, timeout=_CLOSE_S)
        for task in self._working.values():
            task.cancel()
        await self._tell()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        beats = 0
        while True:
            due = loop.time() + BEAT_S
            self._alive()
            if beats % _SHARE_EVERY == 0 or beats < _SHARE_EVERY:  # more often while the rooms are started
                self._begin("tell", self._tell)
                self._begin("measure", self._measure)
            beats += 1
            await asyncio.sleep(due - loop.time())
            self._lag_s = max(self._lag_s, loop.time() - due)

    def _begin(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """In a task of its own: the heart does not stand still for a disk. What still works at it is left to it."""
        if name not in self._working or self._working[name].done():
            self._working[name] = asyncio.get_running_loop().create_task(work())
            self._working[name].add_done_callback(_complain)

    async def _tell(self) -> None:
        """Share the numbers as they are now."""
        cpu_s = sum(os.times()[:2])
        metrics.add("cpu_seconds", cpu_s - self._cpu_s)
        self._cpu_s = cpu_s
        current = self._share.current()
        self._lag_s = 0.0
        try:
            await asyncio.to_thread(self._share.write, current)
        except OSError as e:
            if not self._failed:
                _log.warning("numbers_not_shared", path=e.filename, reason=e.strerror)
            self._failed = True
        else:
            self._failed = False

    async def _measure(self) -> None:
        for measure in self.measures:
            await asyncio.to_thread(measure)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("numbers_not_shared", reason=repr(error))


def _memory() -> float:
    with open("/proc/self/statm") as f:  # no disk behind it
        return int(f.read().split()[1]) * resource.getpagesize()


def _open_files() -> float:
    return len(os.listdir("/proc/self/fd"))
