"""Work in the background of a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine


def run_until_closed(stack: contextlib.AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    """Run `work` as a task that is cancelled, and waited for, when `stack` is closed."""
    stack.push_async_callback(_end, asyncio.get_running_loop().create_task(work))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
