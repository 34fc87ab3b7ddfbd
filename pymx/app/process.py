"""One process of the server, from its first room to its last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable

import msgspec

from pymx import __version__, log
from pymx.accounts.directory import Directory
from pymx.app.lessons import Lessons, mail_home
from pymx.app.monitoring import Monitoring
from pymx.app.reports import open_inbox
from pymx.app.rooms import INVALIDATE, Notices, Rooms
from pymx.app.runner import RunnerSide
from pymx.app.sessions import SessionSide
from pymx.config.check import check
from pymx.config.load import ConfigError, load
from pymx.config.model import Config
from pymx.config.secret import SecretUnavailable
from pymx.junk.build import build_filter, build_teacher
from pymx.junk.filter import Filter
from pymx.mail.envelope import Envelope
from pymx.mda.deliver import Mda
from pymx.mda.quotanotice import QuotaNotices
from pymx.ms.store import Store
from pymx.mta.bounce import Bounce
from pymx.mta.dispatch import Dispatch
from pymx.mta.forward import Forwarder
from pymx.mta.insession import NOTICE, InSession
from pymx.net import notify
from pymx.net.peers import Peers
from pymx.net.tls import PemError
from pymx.proto.imap.render import render
from pymx.queue.queue import Queue
from pymx.resolver.resolver import Resolver
from pymx.spool import Content
from pymx.startup import Site, StartError


class Process:
    """The rooms of a role ("session", "runner" or "all"), started in order and closed in the opposite one."""

    def __init__(self, site: Site, role: str, number: int = 0) -> None:
        self._site = site
        self._role = role
        self._number = number
        self._stop = asyncio.Event()
        self._sessions: SessionSide | None = None
        self._status = 0
        self._log = log.get("app").bind(role=role)

    async def run(self, ready: Callable[[], None], alive: Callable[[], None] = lambda: None) -> int:
        """Start, say `ready`, serve until SIGTERM or SIGINT, drain. Returns the exit status. `alive` is called each
        second in which the event loop turns."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with contextlib.AsyncExitStack() as stack:
            monitoring = Monitoring(self._site, self._role, self._number, alive)
            monitoring.start(stack)
            rooms = await self._build(stack)
            open_inbox(stack, rooms)
            if self._role in ("all", "runner"):
                await monitoring.show_server(stack)
                await RunnerSide(rooms, self._fail, monitoring.status, reload=self._reload_server).start(stack)
            if self._role in ("all", "session"):
                self._sessions = SessionSide(rooms)
                await self._sessions.start(stack)
                monitoring.show_sessions(self._sessions.sessions)
            self._log.info("process_started", version=__version__, event_loop=type(loop).__module__.split(".")[0])
            ready()
            await self._serve()
            notify.stopping()
            if self._sessions is not None:
                await self._sessions.drain()
        self._log.info("process_stopped")
        return self._status

    async def _build(self, stack: contextlib.AsyncExitStack) -> Rooms:
        """What every role has."""
        site, config = self._site, self._site.config
        delimiter = config.mail.subaddress_delimiter
        directory = Directory(
            config.database,
            config.accounts,
            delimiter=delimiter,
            hostname=config.hostname,
            default_quota_octets=config.mail.default_quota_mb * 1024 * 1024,
            default_quota_messages=config.mail.default_quota_messages,
        )
        stack.push_async_callback(directory.close)
        await directory.start()
        notices = Notices()
        notices.on(INVALIDATE, lambda _argument: directory.invalidate())
        peers = Peers(site.runtime_dir, notices.heard)
        peers.start()
        notices.broadcast = peers.broadcast
        stack.callback(peers.close)
        own_filter = build_filter(config, functools.partial(mail_home, config.mail.root))
        if own_filter is not None:
            stack.push_async_callback(own_filter.close)
        lessons = self._build_lessons(own_filter)
        store = Store(
            config.mail,
            render=render,
            runtime_dir=site.runtime_dir,
            hostname=config.hostname,
            changed=lessons.changed if lessons is not None else None,
        )
        stack.push_async_callback(store.close)
        await store.start()
        stack.push_async_callback(QuotaNotices(store, hostname=config.hostname).close)
        if lessons is not None:
            lessons.start(store)
            stack.push_async_callback(lessons.close)
        queue = Queue(site.data_dir / "queue", config.outbound, runtime_dir=site.runtime_dir)
        stack.push_async_callback(queue.close)
        await queue.start()
        mda = Mda(store, junk_mailbox=_junk_mailbox(config), judge=own_filter)
        dispatch = Dispatch(directory, mda, queue, hostname=config.hostname, delimiter=delimiter)

        async def submit(envelope: Envelope, content: Content) -> None:
            await dispatch.submit(envelope, content)

        forwarder = Forwarder(directory, config.forwarding, data_dir=site.data_dir, hostname=config.hostname)
        stack.callback(forwarder.close)
        dispatch.forwarder = forwarder
        if config.forwarding.in_session_s:
            forwarder.in_session = InSession(config.forwarding.in_session_s, notices.tell)
            notices.on(NOTICE, forwarder.in_session.heard)
        bounce = Bounce(submit, hostname=config.hostname)
        bounce.original = forwarder.original
        dispatch.delivered = bounce.delivered
        return Rooms(
            site=site, directory=directory, store=store, queue=queue, mda=mda, dispatch=dispatch,
            bounce=bounce, forwarder=forwarder, resolver=Resolver(config.dns), notices=notices,
            own_filter=own_filter,
        )  # fmt: skip

    def _build_lessons(self, own_filter: Filter | None) -> Lessons | None:
        """What learns from moves to and from Junk, where there are sessions. Raises StartError."""
        config = self._site.config
        if self._role == "runner":
            return None
        try:
            teacher = own_filter or build_teacher(config)
        except SecretUnavailable as e:
            raise StartError(str(e)) from None
        return None if teacher is None else Lessons(teacher, junk_mailbox=_junk_mailbox(config))

    async def _serve(self) -> None:
        """Until SIGTERM; the watchdog of systemd hears from us meanwhile."""
        interval_s = notify.heartbeat_interval_s()
        while not self._stop.is_set():
            notify.heartbeat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._stop.wait()

    def _fail(self) -> None:
        self._status = 1
        self._stop.set()

    def _reload_server(self) -> None:
        """SIGHUP for all processes of the server: the supervisor passes it on."""
        os.kill(os.getppid() if self._role == "runner" else os.getpid(), signal.SIGHUP)

    def _reload(self) -> None:
        """SIGHUP: certificate, log level, checks, limits of SMTP and IMAP. The rest is named in the log."""
        try:
            # first: a certificate is renewed at night, when nobody looks at what is wrong with the file
            if self._site.certificates.configured:
                self._site.certificates.reload()
            config = load(self._site.path)
            problems = check(config)
            if problems:
                raise ConfigError("; ".join(problems))
            if self._sessions is not None:
                self._sessions.reload(config)
        except (ConfigError, PemError, OSError) as e:
            self._log.error("reload_failed", reason=f"{e}; everything stays as it was")
            return
        logging.getLogger("pymx").setLevel(config.log.level.upper())
        self._log.info("configuration_reloaded", needs_restart=",".join(_needs_restart(self._site.config, config)))


def _junk_mailbox(config: Config) -> str:
    """The folder whose special use is \\Junk."""
    return next((name for name, use in config.mail.folders.items() if use == "\\Junk"), "Junk")


def _needs_restart(old: Config, new: Config) -> list[str]:
    """Keys whose change is not taken over by a reload."""
    changed = []
    for section in msgspec.structs.fields(Config):
        before, after = getattr(old, section.name), getattr(new, section.name)
        if before == after or section.name == "log":
            continue
        if not isinstance(before, msgspec.Struct):
            changed.append(section.encode_name)
            continue
        for key in msgspec.structs.fields(type(before)):
            reloaded = section.name in ("smtp", "imap", "checks", "rspamd", "limits")
            # trusted hosts: the caps on connections keep the old ones
            reloaded = reloaded and not key.name.startswith("listen") and key.name != "trusted"
            if section.name == "rspamd":
                # who filters and who learns is settled at the start
                reloaded = key.name != "controller_url" and (
                    key.name != "url" or bool(old.rspamd.url) == bool(new.rspamd.url)
                )
            if getattr(before, key.name) != getattr(after, key.name) and not reloaded:
                changed.append(f"{section.encode_name}.{key.encode_name}")
    return changed
