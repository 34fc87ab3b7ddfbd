"""What a process with sessions has: the listeners for SMTP, submission, LMTP and IMAP, and the policies behind them."""

from __future__ import annotations

import contextlib
import ssl
from asyncio import Protocol
from collections.abc import Callable
from pathlib import Path

from pymx import log
from pymx.accounts.authenticate import Authenticator
from pymx.app.checks import CurrentChecks
from pymx.app.fulltext import ask_for_builds
from pymx.app.lean import give_memory_back
from pymx.app.limits import ProcessLimits, Watch
from pymx.app.prerender import ask_for_rendering
from pymx.app.reports import count_judged
from pymx.app.rooms import Rooms
from pymx.config.model import Config
from pymx.config.secret import SecretUnavailable
from pymx.imapd.server import ImapServer
from pymx.mail.envelope import Listener
from pymx.mailauth.dkim.sign import Signer
from pymx.msa.capnotice import CapNotice
from pymx.msa.submission import Submission
from pymx.mta.inbound import Inbound
from pymx.mta.rates import RateLimited
from pymx.net.listener import Caps, Server, handshake_caps
from pymx.net.sessions import Sessions
from pymx.smtpd.engine import Engine
from pymx.smtpd.handler import Handler
from pymx.startup import StartError


class SessionSide:
    """The listeners of one process. `start` opens them, `drain` lets the sessions end."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._config = rooms.config
        self.sessions = self._sessions = Sessions()
        self._engines: list[Engine] = []
        self._imap_servers: list[ImapServer] = []
        self._servers: list[Server] = []
        self._inbound: Inbound | None = None
        self._checks: CurrentChecks | None = None
        self._limits: ProcessLimits | None = None
        self._rate_limited: RateLimited | None = None
        self._log = log.get("app").bind(role="session")

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Build the policies, open the listeners; `stack` takes what has to be closed. Raises StartError."""
        rooms, config, site = self._rooms, self._config, self._rooms.site
        ask_for_builds(rooms)
        ask_for_rendering(rooms)
        limits = self._limits = ProcessLimits(rooms)
        await limits.start(stack)
        authenticator = Authenticator(
            rooms.directory, config.accounts, limits=limits.logins, ended=self._sessions.dismiss
        )
        stack.callback(authenticator.close)
        Watch(rooms, authenticator, self._sessions).start(stack)
        signer = Signer(site.data_dir / "dkim", complain=self._complain_of_key)
        checks = self._checks = CurrentChecks(rooms.resolver, count_judged(stack, rooms))
        stack.push_async_callback(checks.close)
        try:
            checks.go_by(config)
        except SecretUnavailable as e:
            raise StartError(str(e)) from None
        inbound = Inbound(
            rooms.directory, rooms.mda, rooms.dispatch,
            smtp=config.smtp, hostname=config.hostname, checks=checks.pipeline,
        )  # fmt: skip
        self._inbound = inbound
        submission = Submission(
            rooms.directory, authenticator, rooms.mda, rooms.dispatch, signer,
            submission=config.submission, hostname=config.hostname, limits=limits.logins, sending=limits.sending,
            notify=CapNotice(rooms.dispatch.submit, hostname=config.hostname),
        )  # fmt: skip
        stack.callback(submission.close)
        if rooms.own_filter is not None:
            submission.sent = rooms.own_filter.wrote_to
        tls = site.certificates.context() if site.certificates.configured else None
        mx_tls = site.certificates.mx_context() if site.certificates.configured else None
        self._rate_limited = RateLimited(inbound, limits.rates, greeting_wait_s=config.smtp.greeting_wait_ms / 1000)
        engines = {
            "smtp": self._engine(self._rate_limited, Listener.SMTP, tls=mx_tls),
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
                rooms.store, authenticator, imap=config.imap, mail=config.mail, hostname=config.hostname,
                tls=tls, implicit_tls=implicit, caps=caps, sessions=self._sessions, limits=limits.logins,
                spool_dir=site.data_dir / "spool",
            )  # fmt: skip
            self._imap_servers.append(imap)
            self._listen(name, imap.factory, tls if implicit else None)
        self._sessions.thinned = give_memory_back
        self._sessions.start()
        stack.callback(self._sessions.stop)
        for server in self._servers:
            await server.start()

    def _engine(
        self,
        handler: Handler,
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
            spool_dir=self._rooms.site.data_dir / "spool",
            sessions=self._sessions,
            tls=tls,
            implicit_tls=implicit_tls,
            auth=submission,
            repair_newlines=submission and config.submission.repair,
            caps=Caps(config.smtp.max_connections, config.smtp.max_connections_per_ip, config.limits.trusted),
        )

    def _listen(self, name: str, factory: Callable[[], Protocol], tls: ssl.SSLContext | None) -> None:
        handshakes = handshake_caps(self._config.tls, self._config.limits.trusted)
        self._servers += [
            Server(name, sock, factory, ssl=tls, handshakes=handshakes)
            for sock in self._rooms.site.sockets.get(name, ())
        ]

    async def drain(self) -> None:
        """Stop accepting; let sessions end at their next convenient point, deliveries in progress too."""
        for server in self._servers:
            server.close()
        if self._limits is not None:
            self._limits.logins.hurry()
        left = await self._sessions.drain(self._config.drain_s)
        if left:
            self._log.warning("sessions_cut", count=left, reason=f"still open after drain_s = {self._config.drain_s}")

    def reload(self, config: Config) -> None:
        """Take over what a running process can: checks, limits of SMTP and IMAP. Raises OSError, with all as it was."""
        if self._checks is not None and self._inbound is not None:
            self._checks.go_by(config)
            self._inbound.checks = self._checks.pipeline  # messages being checked keep the old ones
        if self._limits is not None:
            self._limits.reload(config.limits)
        for engine in self._engines:
            engine.smtp = config.smtp
        if self._rate_limited is not None:
            self._rate_limited.greeting_wait_s = config.smtp.greeting_wait_ms / 1000
        for server in self._imap_servers:
            server.imap = config.imap

    def _complain_of_key(self, path: Path, reason: str) -> None:
        self._log.error("dkim_key_unusable", path=path, reason=reason)
