"""Large mailboxes that came from elsewhere are rendered by a child process, one at a time (`pymx.app.upkeep`)."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from pymx import log
from pymx.app.fulltext import in_child
from pymx.app.rooms import Rooms
from pymx.app.tasks import run_until_closed
from pymx.app.upkeep import Report, Task

WANTED = "render"  # the notice: an account's address and a mailbox's GUID follow
_AGAIN_S = 300.0
_MOST = 100  # mailboxes that wait
_log = log.get("app")


def ask_for_rendering(rooms: Rooms) -> None:
    """In a process with sessions: let mailboxes tell the runner, in this process or another."""

    def wants(email: str, guid: str) -> None:
        rooms.notices.tell(f"{WANTED} {email} {guid}")

    rooms.store.wants_rendering = wants


class Prerendering:
    """The runner's part."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._waiting: dict[tuple[str, str], None] = {}
        self._done: dict[tuple[str, str], float] = {}
        self._wake = asyncio.Event()

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        self._rooms.notices.on(WANTED, self._wanted)
        run_until_closed(stack, self._run())

    def _wanted(self, argument: str) -> None:
        email, _, guid = argument.rpartition(" ")
        key, now = (email, guid), time.monotonic()
        if now - self._done.get(key, -_AGAIN_S) >= _AGAIN_S and len(self._waiting) < _MOST:
            self._waiting[key] = None
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                key = next(iter(self._waiting))
                del self._waiting[key]
                now = time.monotonic()
                self._done = {k: at for k, at in self._done.items() if now - at < _AGAIN_S} | {key: now}
                await self._render(*key)

    async def _render(self, email: str, guid: str) -> None:
        started = time.monotonic()
        try:
            report = await in_child(Task(self._rooms.config.mail, self._rooms.config.hostname, email, guid))
        except (OSError, msgspec.DecodeError) as error:
            report = Report(error=str(error))
        if report.error:
            _log.warning("mailbox_not_rendered", account=email, reason=report.error)
        else:
            _log.info(
                "mailbox_rendered",
                account=email,
                count=report.messages,
                duration_ms=round((time.monotonic() - started) * 1000),
            )
