"""Full-text indexes kept up: who searched is noted, one child process at a time builds (`pymx.app.upkeep`).

An account whose search had to read many messages is built for at once; those that searched within 30 days are looked
at every 15 minutes, while the machine is not busy. Nothing here is in the way of mail: the child has the lowest
priority, and is killed when the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable

import msgspec

from pymx import log
from pymx.app.rooms import Rooms
from pymx.app.tasks import run_until_closed
from pymx.app.upkeep import Report, Task
from pymx.config.model import Mail
from pymx.ms.errors import InvalidName
from pymx.ms.fulltext import NAME, FullText
from pymx.ms.owner import Owner

WANTED = "fulltext"  # the notice: an account's address follows
_LOOK_S = 900.0
_AGAIN_S = 60.0  # between two builds of one account
_KEPT_UP_S = 30 * 86_400.0
_BUSY_WAIT_S = 30.0
_MAX_BUSY_WAITS = 20
_log = log.get("app")


def ask_for_builds(rooms: Rooms) -> None:
    """In a process with sessions: let searches tell the runner, in this process or another."""

    def wants(email: str) -> None:
        rooms.notices.tell(f"{WANTED} {email}")

    rooms.store.wants_fulltext = wants


class FullTexts:
    """The runner's part."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._mail = rooms.config.mail
        self._waiting: dict[str, None] = {}  # in the order they came
        self._built: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        if not self._mail.fulltext:
            return
        self._rooms.notices.on(WANTED, self._wanted)
        run_until_closed(stack, self._run())

    def _wanted(self, email: str) -> None:
        if time.monotonic() - self._built.get(email, -_AGAIN_S) >= _AGAIN_S:
            self._waiting[email] = None
            self._wake.set()

    async def _run(self) -> None:
        looked = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, looked + _LOOK_S - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            if time.monotonic() - looked >= _LOOK_S:
                await _until_idle()
                for email in await asyncio.to_thread(searchers, self._mail, time.time()):
                    self._waiting.setdefault(email)
                looked = time.monotonic()
            while self._waiting:
                email = next(iter(self._waiting))
                del self._waiting[email]
                await self._build(email)

    async def _build(self, email: str) -> None:
        started = time.monotonic()
        try:
            report = await in_child(Task(self._mail, self._rooms.config.hostname, email))
        except (OSError, msgspec.DecodeError) as error:
            report = Report(error=str(error))
        self._built[email] = time.monotonic()
        if len(self._built) > 1000:
            self._built = {e: at for e, at in self._built.items() if time.monotonic() - at < _AGAIN_S}
        if report.error:
            _log.warning("fulltext_not_built", account=email, reason=report.error)
        elif report.messages or report.dropped:
            _log.info(
                "fulltext_built",
                account=email,
                count=report.messages,
                size_octets=report.size_octets,
                duration_ms=round((time.monotonic() - started) * 1000),
            )


async def in_child(task: Task) -> Report:
    """Have a child process do it. Raises OSError, msgspec.DecodeError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "pymx.app.upkeep",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, complaint = await process.communicate(msgspec.json.encode(task))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if not output:
        said = complaint.decode("utf-8", "replace").strip()[-300:]
        return Report(error=said or f"the process ended with status {process.returncode}")
    return msgspec.json.decode(output, type=Report)


async def _until_idle(load: Callable[[], float] = lambda: os.getloadavg()[0]) -> None:
    """Wait while the machine has more to do than it has processors, though not for ever."""
    for _ in range(_MAX_BUSY_WAITS):
        if load() < (os.cpu_count() or 1):
            return
        await asyncio.sleep(_BUSY_WAIT_S)


def searchers(mail: Mail, now: float) -> list[str]:
    """Accounts that searched texts within 30 days, the latest first; blocks."""
    root = os.fsencode(mail.index_dir or mail.root)
    found: list[tuple[float, str]] = []
    for domain in _names(root):
        for local_part in _names(os.path.join(root, domain)):
            path = os.path.join(root, domain, local_part, NAME)
            if not os.path.exists(path):
                continue
            try:
                owner = Owner(domain.decode(), local_part.decode())
                owner.path(root)
            except (InvalidName, UnicodeDecodeError):
                continue
            searched = FullText(path, 0o600).searched_s()
            if now - searched < _KEPT_UP_S:
                found.append((searched, owner.email))
    return [email for _, email in sorted(found, reverse=True)]


def _names(directory: bytes) -> list[bytes]:
    try:
        return [name for name in os.listdir(directory) if not name.startswith(b".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
