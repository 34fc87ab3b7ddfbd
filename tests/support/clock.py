"""The event loop's clock, to be set forward: for what is said or kept for a minute or an hour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def loop_clock() -> Iterator[Callable[[float], None]]:
    """Gives what sets the running loop's clock forward by so many seconds. What waits for a time then is due."""
    loop = asyncio.get_running_loop()
    real, passed = loop.time, [0.0]
    loop.time = lambda: real() + passed[0]  # type: ignore[method-assign]

    def forward(seconds: float) -> None:
        passed[0] += seconds

    try:
        yield forward
    finally:
        loop.time = real  # type: ignore[method-assign]
