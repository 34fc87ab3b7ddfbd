"""The composition root: builds every room, wires them, runs them.

`serve` binds the sockets and reads the certificate while it may (as root, or handed over by systemd), drops privileges,
and runs one process (`workers = 1`) or a supervisor with session workers and one runner. A process has a role:

- "session": the SMTP, submission, LMTP and IMAP listeners; accepts messages, delivers locally, enqueues the rest
- "runner": the queue with its deliveries, and the control socket
- "all": both

What processes share is on disk (accounts, Maildirs, queue); that caches have to be dropped goes round as droppable
notices (pymx.net.peers). SIGTERM drains. SIGHUP reads the configuration again and reloads the certificate; what can
only change with a restart is named in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pymx import __version__, log, metrics
from pymx.accounts.account import AccountsError
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.directory import Directory
from pymx.admin.control import Control
from pymx.admin.control_client import ControlError
from pymx.checks.build import build_pipeline
from pymx.checks.pipeline import Pipeline
from pymx.config.check import check
from pymx.config.load import ConfigError, load
from pymx.config.model import Config
from pymx.imapd.server import ImapServer
from pymx.mail.envelope import Envelope, Listener
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.dmarc.organization import load_suffixes
from pymx.mda.deliver import Mda
from pymx.ms.removed import purge
from pymx.ms.store import Store
from pymx.ms.sweep import sweep
from pymx.msa.submission import Submission
from pymx.mta.bounce import Bounce
from pymx.mta.deliver import Deliver
from pymx.mta.dispatch import Dispatch
from pymx.mta.inbound import Inbound
from pymx.net import notify
from pymx.net.listener import BindError, Caps, Server, handshake_caps
from pymx.net.peers import Peers
from pymx.net.sessions import Sessions
from pymx.net.tls import PemError, apply_asyncio_tls_buffer
from pymx.proto.imap.render import render
from pymx.queue.item import Report
from pymx.queue.manager import Manager
from pymx.queue.queue import Queue
from pymx.resolver.resolver import Resolver
from pymx.smtpd.engine import Engine
from pymx.spool import Content
from pymx.startup import Site, StartError, prepare
from pymx.supervisor import run_supervisor

_INVALIDATE = "invalidate"


def serve(path: Path) -> int:
    """Run the server with the configuration in `path` until SIGTERM. Returns the exit status.

    Raises ConfigError and OSError; what else keeps it from starting is said on standard error.
    """
    config = load(path)
    problems = check(config)
    if problems:
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {problem}" for problem in problems))
    try:
        site = prepare(path, config)
        workers = (os.cpu_count() or 1) if config.workers == "auto" else config.workers
        if config.checks.dmarc:
            load_suffixes()  # once, for all processes that are forked from this one
        if workers == 1:
            return _run_process(site, "all", _announce_ready)
        return run_supervisor(
            config,
            site.sockets,
            workers,
            lambda role, _number, ready: _run_process(site, role, ready),
            reload=lambda: _reload_certificates(site),
        )
    except (StartError, BindError, PemError) as e:
        print(f"pymx: {e}", file=sys.stderr)
        return 1


def _announce_ready() -> None:
    print("ready", flush=True)
    notify.ready()


def _run_process(site: Site, role: str, ready: Callable[[], None]) -> int:
    """Run one process of the server in this one, until SIGTERM."""
    config = site.config
    writer = log.setup(level=config.log.level, form=config.log.format, timestamps="JOURNAL_STREAM" not in os.environ)
    try:
        with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            return runner.run(Process(site, role).run(ready))
    except (AccountsError, ControlError, StartError) as e:
        log.get("app").error("start_failed", reason=str(e))
        return 1
    finally:
        writer.stop()


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.event_loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            log.get("app").warning("uvloop_missing", reason="asyncio's own event loop is used; it needs more memory")
        else:
            return uvloop.new_event_loop
    apply_asyncio_tls_buffer()
    return asyncio.new_event_loop


class Process:
    """One process: the rooms of its role, started in order and closed in the opposite one."""

    def __init__(self, site: Site, role: str) -> None:
        self._site = site
        self._config = site.config
        self._role = role
        self._sessions = Sessions()
        self._engines: list[Engine] = []
        self._imap_servers: list[ImapServer] = []
        self._servers: list[Server] = []
        self._stop = asyncio.Event()
        self._inbound: Inbound | None = None
        self._build_checks: Callable[[Config], Pipeline | None] = lambda config: None
        self._checks_settings = _checks_settings(self._config)
        self._pipelines: list[Pipeline] = []  # the last one is in use
        self._status = 0
        self._log = log.get("app").bind(role=role)

    async def run(self, ready: Callable[[], None]) -> int:
        """Start, say `ready`, serve until SIGTERM or SIGINT, drain."""
        config, site = self._config, self._site
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with contextlib.AsyncExitStack() as stack:
            directory = Directory(
                config.database,
                config.accounts,
                delimiter=config.mail.subaddress_delimiter,
                hostname=config.hostname,
                default_quota_octets=config.mail.default_quota_mb * 1024 * 1024,
            )
            stack.push_async_callback(directory.close)
            await directory.start()
            peers = Peers(site.runtime_dir, lambda notice: self._on_notice(notice, directory))
            peers.start()
            stack.callback(peers.close)
            store = Store(config.mail, render=render, runtime_dir=site.runtime_dir, hostname=config.hostname)
            stack.push_async_callback(store.close)
            await store.start()
            queue = Queue(site.data_dir / "queue", config.outbound, runtime_dir=site.runtime_dir)
            stack.push_async_callback(queue.close)
            await queue.start()
            mda = Mda(store, junk_mailbox=_junk_mailbox(config))
            dispatch = Dispatch(
                directory, mda, queue, hostname=config.hostname, delimiter=config.mail.subaddress_delimiter
            )

            async def submit(envelope: Envelope, content: Content) -> None:
                await dispatch.submit(envelope, content)

            bounce = Bounce(submit, hostname=config.hostname)
            dispatch.delivered = bounce.delivered
            resolver = Resolver(config.dns)
            if self._role in ("all", "runner"):
                await self._start_runner(stack, directory, peers, queue, dispatch, bounce, resolver)
            if self._role in ("all", "session"):
                await self._start_sessions(stack, directory, store, mda, dispatch, resolver)
            self._log.info("process_started", version=__version__, event_loop=type(loop).__module__.split(".")[0])
            ready()
            await self._serve()
            notify.stopping()
            await self._drain()
        self._log.info("process_stopped")
        return self._status

    async def _serve(self) -> None:
        """Until SIGTERM; the watchdog of systemd hears from us meanwhile."""
        interval_s = notify.heartbeat_interval_s()
        while not self._stop.is_set():
            notify.heartbeat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._stop.wait()

    async def _start_sessions(
        self,
        stack: contextlib.AsyncExitStack,
        directory: Directory,
        store: Store,
        mda: Mda,
        dispatch: Dispatch,
        resolver: Resolver,
    ) -> None:
        config, site = self._config, self._site
        authenticator = Authenticator(directory, config.accounts)
        stack.callback(authenticator.close)
        signer = Signer(site.data_dir / "dkim", complain=self._complain_of_key)
        stack.push_async_callback(self._close_checks)
        self._build_checks = lambda config: self._keep_checks(build_pipeline(config, resolver))
        try:
            checks = self._build_checks(config)
        except OSError as e:
            raise StartError(f"[rspamd] password_file: {e.strerror}") from None
        inbound = Inbound(directory, mda, dispatch, smtp=config.smtp, hostname=config.hostname, checks=checks)
        self._inbound = inbound
        submission = Submission(
            directory, authenticator, mda, dispatch, signer, submission=config.submission, hostname=config.hostname
        )
        stack.callback(submission.close)
        tls = site.certificates.context() if site.certificates.configured else None
        mx_tls = site.certificates.mx_context() if site.certificates.configured else None
        engines = {
            "smtp": self._engine(inbound, Listener.SMTP, tls=mx_tls),
            "lmtp": self._engine(inbound, Listener.LMTP, tls=None),
            "submissions": self._engine(submission, Listener.SUBMISSION, tls=tls, implicit_tls=True),
            "submission": self._engine(submission, Listener.SUBMISSION, tls=tls),
        }
        self._engines = list(engines.values())
        for name, engine in engines.items():
            self._listen(name, engine.factory, tls if engine.implicit_tls else None)
        for name, implicit in (("imaps", True), ("imap", False)):
            caps = Caps(config.imap.max_connections, config.imap.max_connections_per_ip, config.limits.trusted)
            imap = ImapServer(
                store, authenticator, imap=config.imap, mail=config.mail, hostname=config.hostname,
                tls=tls, implicit_tls=implicit, caps=caps, sessions=self._sessions,
                spool_dir=site.data_dir / "spool",
            )  # fmt: skip
            self._imap_servers.append(imap)
            self._listen(name, imap.factory, tls if implicit else None)
        self._sessions.start()
        stack.callback(self._sessions.stop)
        for server in self._servers:
            await server.start()

    def _engine(
        self,
        handler: Inbound | Submission,
        listener: Listener,
        *,
        tls: ssl.SSLContext | None,
        implicit_tls: bool = False,
    ) -> Engine:
        config = self._config
        submission = listener is Listener.SUBMISSION
        return Engine(
            handler,
            listener=listener,
            hostname=config.hostname,
            smtp=config.smtp,
            max_message_octets=config.mail.max_message_octets,
            spool_dir=self._site.data_dir / "spool",
            sessions=self._sessions,
            tls=tls,
            implicit_tls=implicit_tls,
            auth=submission,
            repair_newlines=submission and config.submission.repair,
            caps=Caps(config.smtp.max_connections, config.smtp.max_connections_per_ip, config.limits.trusted),
        )

    def _listen(self, name: str, factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
        handshakes = handshake_caps(self._config.tls, self._config.limits.trusted)
        self._servers += [
            Server(name, sock, factory, ssl=tls, handshakes=handshakes) for sock in self._site.sockets.get(name, ())
        ]

    async def _start_runner(
        self,
        stack: contextlib.AsyncExitStack,
        directory: Directory,
        peers: Peers,
        queue: Queue,
        dispatch: Dispatch,
        bounce: Bounce,
        resolver: Resolver,
    ) -> None:
        config = self._config
        deliver = Deliver(resolver, config.outbound, config.hostname, own_addresses=_own_addresses(config))
        stack.push_async_callback(deliver.close)

        async def gave_up(report: Report) -> None:
            # a stranger's message for a mailbox here goes whole to the postmaster; our own users get a DSN
            if not await dispatch.gave_up(report):
                await bounce.gave_up(report)

        manager = Manager(
            queue,
            deliver.attempt,
            gave_up,
            bounce.delayed,
            local_attempt=lambda attempt: dispatch.deliver_queued(attempt.queue_id, attempt.envelope, attempt.content),
            delivered=bounce.delivered,
        )
        task = asyncio.get_running_loop().create_task(manager.run())
        task.add_done_callback(self._runner_ended)
        stack.push_async_callback(self._stop_manager, manager, task)

        async def invalidate(_arguments: dict[str, object]) -> object:
            directory.invalidate()
            peers.broadcast(_INVALIDATE)
            return None

        async def queue_changed(_arguments: dict[str, object]) -> object:
            manager.changed()
            return None

        async def status(_arguments: dict[str, object]) -> object:
            return {"version": __version__, "pid": os.getpid(), "counts": metrics.snapshot()}

        control = Control(
            Path(config.control.socket),
            {"invalidate": invalidate, "queue_changed": queue_changed, "status": status},
        )
        await control.start()
        stack.push_async_callback(control.close)
        housekeeping = asyncio.get_running_loop().create_task(self._keep_house())
        stack.callback(housekeeping.cancel)

    async def _keep_house(self) -> None:
        """Once at the start, then once a day."""
        root, keep_s = Path(self._config.mail.root), self._config.mail.keep_removed_days * 86400
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
            await asyncio.sleep(86400)

    def _runner_ended(self, task: asyncio.Task[None]) -> None:
        """The queue's manager never ends by itself: without it mail would be accepted and lie still."""
        if not task.cancelled() and task.exception() is not None:
            self._log.error("queue_manager_failed", reason=repr(task.exception()))
            self._status = 1
            self._stop.set()

    async def _stop_manager(self, manager: Manager, task: asyncio.Task[None]) -> None:
        manager.stop()
        _, pending = await asyncio.wait({task}, timeout=self._config.drain_s)
        for late in pending:
            late.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _on_notice(self, notice: str, directory: Directory) -> None:
        if notice == _INVALIDATE:
            directory.invalidate()

    async def _drain(self) -> None:
        """Stop accepting; let sessions end at their next convenient point, deliveries in progress too."""
        for server in self._servers:
            server.close()
        left = await self._sessions.drain(self._config.drain_s)
        if left:
            self._log.warning("sessions_cut", count=left, reason=f"still open after drain_s = {self._config.drain_s}")

    def _keep_checks(self, pipeline: Pipeline | None) -> Pipeline | None:
        if pipeline is not None:
            self._pipelines.append(pipeline)
        return pipeline

    async def _close_checks(self) -> None:
        for pipeline in self._pipelines:
            await pipeline.close()

    def _reload(self) -> None:
        """SIGHUP: certificate, log level, checks, limits of SMTP and IMAP. The rest is named in the log."""
        try:
            config = load(self._site.path)
            problems = check(config)
            if problems:
                raise ConfigError("; ".join(problems))
            if self._site.certificates.configured:
                self._site.certificates.reload()
            checks = self._build_checks(config) if _checks_settings(config) != self._checks_settings else None
        except (ConfigError, PemError, OSError) as e:
            self._log.error("reload_failed", reason=f"{e}; everything stays as it was")
            return
        if self._inbound is not None and _checks_settings(config) != self._checks_settings:
            self._inbound.checks = checks  # messages being checked keep the old ones
            self._checks_settings = _checks_settings(config)
        logging.getLogger("pymx").setLevel(config.log.level.upper())
        for engine in self._engines:
            engine.smtp = config.smtp
        for server in self._imap_servers:
            server.imap = config.imap
        self._log.info("configuration_reloaded", needs_restart=",".join(_needs_restart(self._config, config)))

    def _complain_of_key(self, path: Path, reason: str) -> None:
        self._log.error("dkim_key_unusable", path=path, reason=reason)


def _checks_settings(config: Config) -> tuple[object, ...]:
    """What the checks are made of."""
    return (config.checks, config.rspamd, config.limits.trusted)


def _junk_mailbox(config: Config) -> str:
    """The folder whose special use is \\Junk."""
    return next((name for name, use in config.mail.folders.items() if use == "\\Junk"), "Junk")


def _reload_certificates(site: Site) -> None:
    """In the supervisor: processes that are forked later start with the new certificate."""
    if site.certificates.configured:
        try:
            site.certificates.reload()
        except PemError as e:
            log.get("app").error("reload_failed", reason=f"{e}; everything stays as it was")


def _own_addresses(config: Config) -> list[str]:
    """Where a remote would be ourselves: the addresses we listen on at the port that remotes are tried at."""
    found = []
    for spec in config.smtp.listen:
        host, _, port = spec.rpartition(":")
        if port == str(config.outbound.port):
            found.append(host.strip("[]"))
    return found


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
            reloaded = section.name in ("smtp", "imap", "checks", "rspamd") and not key.name.startswith("listen")
            if getattr(before, key.name) != getattr(after, key.name) and not reloaded:
                changed.append(f"{section.encode_name}.{key.encode_name}")
    return changed
