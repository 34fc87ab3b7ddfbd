"""What the runner has: the queue's manager with its deliveries, housekeeping, and the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pymx import log
from pymx.admin.control import Control
from pymx.app.certs import look_after_certificates
from pymx.app.errands import Errands
from pymx.app.fulltext import FullTexts
from pymx.app.pages import open_pages
from pymx.app.prerender import Prerendering
from pymx.app.reports import ReportsRunner
from pymx.app.rooms import INVALIDATE, Rooms
from pymx.config.listeners import endpoints
from pymx.config.model import Config
from pymx.ms.removed import purge
from pymx.ms.sweep import sweep
from pymx.mta.deliver import Deliver
from pymx.mta.rotate import Rotation
from pymx.mta.tls_lookup import TlsPolicies
from pymx.queue.item import Report
from pymx.queue.manager import Manager

_DAY_S = 86400
Status = Callable[[], Awaitable[dict[str, object]]]


class RunnerSide:
    """Queue, housekeeping and control socket of the one process that has them; calls `failed` when it can't go on."""

    def __init__(self, rooms: Rooms, failed: Callable[[], None], status: Status, *, reload: Callable[[], None]) -> None:
        self._reload = reload
        self._rooms = rooms
        self._config = rooms.config
        self._failed = failed
        self._sources: Callable[[], dict[str, object]] = dict
        self._show_status = status
        self._log = log.get("app").bind(role="runner")

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the manager and open the control socket; `stack` takes what has to be closed."""
        rooms, config = self._rooms, self._config
        tls = TlsPolicies(rooms.resolver, config.outbound, state=rooms.site.data_dir / "outbound-tls.sqlite")
        stack.push_async_callback(tls.close)
        tls.start()
        deliver = Deliver(
            rooms.resolver, config.outbound, config.hostname, own_addresses=_own_addresses(config), tls=tls
        )
        stack.push_async_callback(deliver.close)
        deliver.start()
        self._sources = deliver.sources.status
        manager = Manager(
            rooms.queue,
            rooms.forwarder.in_session.watched(deliver.attempt) if rooms.forwarder.in_session else deliver.attempt,
            self._gave_up,
            rooms.bounce.delayed,
            local_attempt=lambda attempt: rooms.dispatch.deliver_queued(
                attempt.queue_id, attempt.envelope, attempt.content
            ),
            delivered=rooms.bounce.delivered,
            find_place=deliver.place,
        )
        task = asyncio.get_running_loop().create_task(manager.run())
        task.add_done_callback(self._ended)
        stack.push_async_callback(self._stop_manager, manager, task)
        reports = ReportsRunner(stack, rooms)
        reports.start()
        tls.report = reports.tls_result
        await self._open_control(stack, manager, reports)
        FullTexts(rooms).start(stack)
        Prerendering(rooms).start(stack)
        housekeeping = asyncio.get_running_loop().create_task(self._keep_house())
        stack.callback(housekeeping.cancel)
        await open_pages(stack, rooms)
        look_after_certificates(stack, rooms)
        rotation = Rotation(rooms.resolver, rooms.site.data_dir / "dkim", config.dkim)
        rotating = asyncio.get_running_loop().create_task(rotation.run())
        stack.callback(rotating.cancel)

    async def _gave_up(self, report: Report) -> None:
        # a stranger's message for a mailbox here goes whole to the postmaster; our own users get a DSN
        if not await self._rooms.dispatch.gave_up(report):
            await self._rooms.forwarder.note_refusals(report)
            in_session = self._rooms.forwarder.in_session
            if in_session is None or not in_session.was_taken(report):
                await self._rooms.bounce.gave_up(report)

    async def _open_control(self, stack: contextlib.AsyncExitStack, manager: Manager, reports: ReportsRunner) -> None:
        rooms = self._rooms

        async def invalidate(_arguments: dict[str, object]) -> object:
            rooms.notices.tell(INVALIDATE)
            return None

        async def queue_changed(_arguments: dict[str, object]) -> object:
            manager.changed()
            return None

        async def reload(_arguments: dict[str, object]) -> object:
            self._reload()
            return None

        async def status(_arguments: dict[str, object]) -> object:
            return {**await self._show_status(), "source_addresses": self._sources()}

        control = Control(
            Path(self._config.control.socket),
            {
                "invalidate": invalidate,
                "queue_changed": queue_changed,
                "status": status,
                "reload": reload,
                "reports_send": reports.send,
                "send": Errands(rooms).send,
            },
        )
        await control.start()
        stack.push_async_callback(control.close)

    async def _keep_house(self) -> None:
        """Once at the start, then once a day."""
        root, keep_s = Path(self._config.mail.root), self._config.mail.keep_removed_days * _DAY_S
        while True:
            try:
                gone = await asyncio.to_thread(purge, root, now=time.time(), keep_s=keep_s)
            except OSError as e:
                self._log.error("removed_mail_not_purged", path=e.filename, reason=e.strerror)
            else:
                for path in gone:
                    self._log.info("removed_mail_purged", path=path)
            swept = await asyncio.to_thread(sweep, root, now=time.time())
            if swept:
                self._log.info("unfinished_deliveries_removed", count=swept)
            await self._rooms.forwarder.keep_house()
            await asyncio.sleep(_DAY_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The queue's manager never ends by itself: without it mail would be accepted and lie still."""
        if not task.cancelled() and task.exception() is not None:
            self._log.error("queue_manager_failed", reason=repr(task.exception()))
            self._failed()

    async def _stop_manager(self, manager: Manager, task: asyncio.Task[None]) -> None:
        manager.stop()
        _, pending = await asyncio.wait({task}, timeout=self._config.drain_s)
        for late in pending:
            late.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _own_addresses(config: Config) -> list[str]:
    """Where a remote would be ourselves: the addresses we listen on at the port that remotes are tried at."""
    return [host for host, port in endpoints(config.smtp.listen) if port == config.outbound.port]
