"""Certificates, wired: the runner renews them and says when they expire."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine

from pymx.app.rooms import INVALIDATE, Rooms
from pymx.certs.expiry import watch
from pymx.certs.renewal import Renewal


def look_after_certificates(stack: contextlib.AsyncExitStack, rooms: Rooms) -> None:
    """In the runner."""
    site, config = rooms.site, rooms.config
    if site.certificates.configured:
        _run(stack, watch(site.certificates.in_use))
    if config.acme.enabled:
        command = (sys.executable, "-m", "pymx.admin.ctl", "--config", str(site.path), "--json")
        renewal = Renewal(config.acme, (*command, "cert", "renew", "--patient"))
        rooms.notices.on(INVALIDATE, lambda _argument: renewal.poke())
        _run(stack, renewal.run())


def _run(stack: contextlib.AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    stack.push_async_callback(_end, asyncio.get_running_loop().create_task(work))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
