"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_STEP_S = 0.01


def wait_for(condition: Callable[[], T], *, timeout_s: float = 30.0, what: str = "") -> T:
    """The first true value of `condition()`; AssertionError after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(_STEP_S)


async def wait_until(
    condition: Callable[[], T] | Callable[[], Awaitable[T]], *, timeout_s: float = 30.0, what: str = ""
) -> T:
    """`wait_for` for async tests: the loop runs on; the condition may be a coroutine function."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(_STEP_S)
