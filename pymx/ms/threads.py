"""Threads for the short calls of the mail path: one hop there, one wake-up back for all that is done.

The standard executor wraps each call in two futures and a condition and wakes the loop for each; with several threads
that was a fifth of the time in which a busy server held the interpreter lock. Here a call is a tuple on a C queue, and
results travel back in a deque that one callback empties.

A cancelled call that has not begun is not made; one that has begun ends, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")
_Call = tuple["asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """`size` threads serving one event loop. They begin with the first call and end with `close`."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._waking = False
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """The future result of `function()` in a thread."""
        if self._loop is None:
            self._start()
        future: asyncio.Future[T] = cast("asyncio.AbstractEventLoop", self._loop).create_future()
        self._calls.put((future, function))
        return future

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = [threading.Thread(target=self._work, name=f"{self._name}-{n}") for n in range(self._size)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = function()
            except BaseException as e:  # it belongs to whoever awaits the call
                error = e
            self._done.append((future, result, error))
            del call, future, function, result, error  # an idle thread keeps nothing alive
            # Appended before this look, emptied after the flag goes down: none is left behind.
            if not self._waking:
                self._waking = True
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False
        while self._done:
            future, result, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

    async def close(self) -> None:
        """Make the calls that wait, then end the threads."""
        if self._loop is None:
            return
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            await self._loop.run_in_executor(None, thread.join)
        self._deliver()
        self._threads = []
        self._loop = None
