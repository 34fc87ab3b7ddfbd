"""Reports, wired: what sessions count and copy, what the runner sends and reads (pymx.reports)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from pymx import log
from pymx.accounts.account import DirectoryUnavailable
from pymx.app.rooms import Rooms
from pymx.app.tasks import run_until_closed
from pymx.checks.check import Facts
from pymx.checks.verdict import Level
from pymx.config.model import Reports
from pymx.mail.address import Address, AddressError
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mail.report import is_report
from pymx.mail.tls_result import TlsResult
from pymx.mailauth.dkim.sign import Signer
from pymx.proto.smtp.reply import SmtpError
from pymx.reports.error import NotTaken, StoreUnavailable
from pymx.reports.inbox import Collector, Inbox
from pymx.reports.outcome import Judged, dmarc_key, tls_key
from pymx.reports.recorder import Recorder
from pymx.reports.reporter import Reporter
from pymx.reports.store import Store
from pymx.spool import Content
from pymx.startup import StartError

_log = log.get("app")


def open_inbox(stack: contextlib.AsyncExitStack, rooms: Rooms) -> None:
    """Copy reports about our domains that this process accepts."""
    settings = rooms.config.reports
    if not settings.receive:
        return
    inbox = Inbox(_incoming(rooms), settings.addresses)
    stack.push_async_callback(inbox.close)

    def arrived(queue_id: str, recipients: Sequence[Address], content: Content) -> None:
        inbox.offer(queue_id, recipients, content)

    rooms.dispatch.arrived = arrived


def count_judged(stack: contextlib.AsyncExitStack, rooms: Rooms) -> Callable[[Facts, Level], None] | None:
    """What a session process tells of each message that was checked; None when nobody counts."""
    if not (rooms.config.reports.dmarc and rooms.config.checks.dmarc):
        return None
    store = _store(stack, rooms)
    recorder = Recorder(store, Store.add_dmarc)
    recorder.start()
    stack.push_async_callback(recorder.close)

    def judged(facts: Facts, level: Level) -> None:
        # what is deferred comes again; a report about a report would be answered by another one
        if facts.dmarc is None or level is Level.DEFER or facts.content is None or is_report(facts.content.head):
            return
        key = dmarc_key(
            Judged(
                peer_ip=facts.origin.peer_ip,
                mail_from=facts.mail_from,
                dmarc=facts.dmarc,
                spf=facts.spf,
                dkim=facts.dkim or (),
                refused=level is Level.REJECT,
                voucher=facts.voucher,
            ),
            time.time(),
        )
        if key is not None:
            recorder.add(key)

    return judged


class ReportsRunner:
    """The runner's part. `tls_result` is for whoever delivers. Raises StartError."""

    def __init__(self, stack: contextlib.AsyncExitStack, rooms: Rooms) -> None:
        settings, config = rooms.config.reports, rooms.config
        self._rooms = rooms
        self._stack = stack
        store = _store(stack, rooms)
        self._tls = Recorder(store, Store.add_tls)
        signer = Signer(rooms.site.data_dir / "dkim", complain=_complain_of_key)
        try:
            self._reporter = Reporter(
                store, rooms.resolver, signer, self._submit, settings,
                hostname=config.hostname, allow_private=config.outbound.allow_private,
            )  # fmt: skip
        except AddressError as e:
            raise StartError(f"[reports] sender: {e}") from None
        self._collector = Collector(_incoming(rooms), store, self._is_ours, hostname=config.hostname)

    def start(self) -> None:
        self._tls.start()
        self._stack.push_async_callback(self._tls.close)
        self._run(self._reporter.run())
        if self._rooms.config.reports.receive:
            self._run(self._collector.run())

    def tls_result(self, result: TlsResult) -> None:
        """Count a connection. Neither waits nor raises."""
        self._tls.add(tls_key(result, time.time()))

    async def send(self, _arguments: dict[str, object]) -> object:
        """For `pymxctl reports send`."""
        try:
            return await self._reporter.send()
        except StoreUnavailable as e:
            return {"error": str(e)}

    async def _submit(self, sender: Address, to: Address, message: bytes) -> None:
        envelope = Envelope(
            sender,
            # nobody is told when it can't be delivered: the log has it, and there is nothing to be done about it
            (Recipient(to, frozenset({"NEVER"})),),
            Origin(Listener.LOCAL),
            smtputf8=not to.is_ascii,
        )
        try:
            await self._rooms.dispatch.submit(envelope, Content.from_bytes(message))
        except SmtpError as e:
            raise NotTaken(e.reason or e.reply.text, temporary=e.reply.is_temporary) from e

    async def _is_ours(self, domain: str) -> bool | None:
        """The domain, one above it, or the host's: subdomains have reports of their own."""
        labels = domain.split(".")
        own = self._rooms.config.hostname.lower()
        if len(labels) > 1 and (own == domain or own.endswith("." + domain)):
            return True
        try:
            for i in range(len(labels) - 1):
                if await self._rooms.directory.is_local(".".join(labels[i:])):
                    return True
        except DirectoryUnavailable:
            return None
        return False

    def _run(self, work: Coroutine[object, object, None]) -> None:
        run_until_closed(self._stack, work)


def _store(stack: contextlib.AsyncExitStack, rooms: Rooms) -> Store:
    settings: Reports = rooms.config.reports
    store = Store(database(rooms.site.data_dir), max_octets=settings.max_mb << 20)
    stack.push_async_callback(store.aclose)
    return store


def database(data_dir: Path) -> Path:
    return data_dir / "reports" / "reports.sqlite"


def _incoming(rooms: Rooms) -> Path:
    return rooms.site.data_dir / "reports" / "incoming"


def _complain_of_key(path: Path, reason: str) -> None:
    _log.error("dkim_key_unusable", path=path, reason=reason)
