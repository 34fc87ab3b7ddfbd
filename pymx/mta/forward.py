"""Mail for aliases that lead to other servers, and its way back.

The message is not modified: what it is signed with stays valid. In front of it go Received, Delivered-To with the
address that forwards (the next pass finds it there and stops the loop), and an ARC set (RFC 8617) with what the checks
found. The envelope sender becomes one of ours (`mta.srs`) unless it is the null one, a domain of ours, or a user's who
logged in; the last is no forwarding at all.

`withheld` says why a message must not leave: it fails DMARC, or the checks send it to Junk. A mailbox here may have it.

`returning` is the way back: an SRS address is taken from the null sender or from a program's answer
(`is_automatic`), and leads to the original sender.

A destination that refused as unknown is remembered, and for a while an alias that leads nowhere else refuses in the
session (`require_open`). When a destination refuses and a mailbox here has the message too, nobody is told
(`Dispatch` marks such recipients NOTIFY=NEVER).

Errors: SmtpError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pymx import log, metrics
from pymx.accounts.account import DirectoryUnavailable, Resolution
from pymx.accounts.senders import Senders, SendersUnavailable
from pymx.checks.pipeline import Finding
from pymx.config.model import Forwarding
from pymx.config.secret import credential_path
from pymx.mail import header, spam, trace
from pymx.mail.address import Address, AddressError, parse_address
from pymx.mail.envelope import Envelope, Recipient
from pymx.mailauth.arc.seal import Sealer
from pymx.mailauth.arc.verify import ArcResult
from pymx.mailauth.dkim.keys import KeyUnusable
from pymx.mta.insession import InSession
from pymx.mta.srs import Secrets, Srs, SrsError, Stored, is_srs
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.queue.item import Outcome, Report
from pymx.spool import Content

_DAY_S = 86400
_BAD_SENDER_DOMAIN = Reply(550, "5.1.8", "Sender address can't be forwarded")
_REFUSED_BEFORE = "The address that this one leads to does not exist"
_UNKNOWN_STATUSES = ("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1")

_log = log.get("mta")


class Directory(Protocol):
    """What is used of `accounts.directory.Directory`."""

    async def is_local(self, domain: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Passport:
    """A message as it may leave, and what was found when it came. `chain` None: nothing was, so nothing is sealed."""

    content: Content
    results: str = ""
    chain: ArcResult | None = None
    withheld: str = ""


def passport(found: Finding, settings: Forwarding) -> Passport:
    """What a checked message needs to be forwarded."""
    facts = found.facts
    withheld = ""
    if spam.is_junk(found.content.head):
        withheld = "it looks like spam"
    elif settings.refuse_dmarc_fail and facts.dmarc is not None and facts.dmarc.result == "fail" and not facts.voucher:
        withheld = f"{facts.dmarc.header_from} has not sent it (DMARC)"
    return Passport(found.as_received, found.results, facts.arc, withheld)


def is_automatic(head: bytes) -> bool:
    """Did a program write this (RFC 3834 s. 5)?"""
    field = header.first(head, "auto-submitted")
    return field is not None and field.value.partition(b";")[0].strip().lower() not in (b"", b"no")


def expanded(recipient: Recipient, address: Address) -> Recipient:
    """The recipient an alias leads to; DSN parameters go along (RFC 3461 s. 5.2.7)."""
    if address == recipient.address:
        return recipient
    orcpt = recipient.orcpt
    if not orcpt and recipient.address.is_ascii:
        orcpt = f"rfc822;{recipient.address}"
    return Recipient(address, recipient.notify, orcpt)


class Forwarder:
    """One per process. `close()` gives back its database and its thread."""

    def __init__(
        self,
        directory: Directory,
        settings: Forwarding,
        *,
        data_dir: Path,
        hostname: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._directory = directory
        self._hostname = hostname
        self._clock = clock
        self._srs = Srs(_secrets(settings, data_dir), lifetime_days=settings.srs_days)
        self._senders = Senders(data_dir / "forwarding.sqlite", max_senders=settings.max_senders)
        self.in_session: InSession | None = None  # set by whoever connects sessions and runner
        self._sealer = Sealer(data_dir / "dkim", clock=clock, complain=_complain)

    def close(self) -> None:
        self._senders.close()

    # --- out -------------------------------------------------------------------------------------------------------

    async def leaving(
        self, envelope: Envelope, alias: Address, recipients: Sequence[Recipient], passport: Passport, received: bytes
    ) -> tuple[Envelope, Content]:
        """What the queue gets for the recipients that `alias` leads to."""
        domain = self._domain(alias)
        mail_from = await self.sender(envelope.mail_from, domain)
        seal = await self._seal(domain, passport, envelope)
        delivered_to = b"" if is_srs(alias) else trace.delivered_to(alias)
        content = passport.content.prepended(received + delivered_to + seal)
        return replace(envelope, mail_from=mail_from, recipients=tuple(recipients)), content

    async def sender(self, mail_from: Address | None, domain: str) -> Address | None:
        """The envelope sender with which a message from `mail_from` goes on, in `domain`."""
        if mail_from is None or not mail_from.domain or not self.settings.srs:
            return mail_from
        now = self._clock()
        try:
            if await self._directory.is_local(mail_from.domain):
                return mail_from
            made = self._srs.forward(mail_from, domain, now=now)
            if made is None:
                made, token = self._srs.shortened(mail_from, domain, now=now)
                await self._senders.keep(token, str(mail_from), int(now // _DAY_S))
        except (SrsError, AddressError) as e:
            raise SmtpError(_BAD_SENDER_DOMAIN, str(e)) from None
        except (DirectoryUnavailable, SendersUnavailable) as e:
            raise SmtpError(replies.TEMPORARY_FAILURE, e.reason) from None
        except OSError as e:
            _log.error("srs_secret_unusable", path=self._srs.secrets.path, reason=str(e))
            raise SmtpError(replies.TEMPORARY_FAILURE, f"srs: {e}") from None
        return made

    def _domain(self, alias: Address) -> str:
        try:
            return self.settings.srs_domain or alias.ascii_domain or self._hostname
        except AddressError:
            return self._hostname

    async def _seal(self, domain: str, passport: Passport, envelope: Envelope) -> bytes:
        chain = passport.chain
        if chain is None or not self.settings.arc_seal:
            return b""

        def run() -> bytes:
            assert chain is not None
            return self._sealer.seal(domain, passport.content, results=passport.results, chain=chain)

        try:
            return await asyncio.get_running_loop().run_in_executor(None, run)
        except (KeyUnusable, OSError) as e:
            # the seal is a help, not a condition: the message goes without
            _log.error("dkim_key_unusable", session=envelope.origin.session, reason=str(e))
            return b""

    # --- back ------------------------------------------------------------------------------------------------------

    async def original(self, address: Address) -> Address | None:
        """The sender that one of our SRS addresses stands for; None when it is no SRS address."""
        if not is_srs(address):
            return None
        if address.domain != self.settings.srs_domain:
            try:
                if not await self._directory.is_local(address.domain):
                    return None
            except DirectoryUnavailable as e:
                raise SmtpError(replies.DIRECTORY_UNAVAILABLE, e.reason) from None
        try:
            found = self._srs.reverse(address, now=self._clock())
            if not isinstance(found, Stored):
                return found
            text = await self._senders.find(found.token)
            if text is None:
                raise SrsError("the sender behind the SRS address is forgotten")
            return parse_address(text)
        except (SrsError, AddressError) as e:
            raise SmtpError(replies.UNKNOWN_RECIPIENT, str(e)) from None
        except SendersUnavailable as e:
            raise SmtpError(replies.TEMPORARY_FAILURE, e.reason) from None
        except OSError as e:
            _log.error("srs_secret_unusable", path=self._srs.secrets.path, reason=str(e))
            raise SmtpError(replies.TEMPORARY_FAILURE, f"srs: {e}") from None

    # --- destinations that refuse ----------------------------------------------------------------------------------

    async def require_open(self, resolution: Resolution) -> None:
        """Refuse an alias that leads only to addresses which have just been refused as unknown. Raises SmtpError."""
        if resolution.accounts or not self.settings.remember_refusal_s:
            return
        status = ""
        for address in resolution.external:
            try:
                found = await self._senders.refusal(address.key, self._clock())
            except SendersUnavailable as e:
                _log.warning("forwarding_store_unavailable", reason=e.reason)
                return
            if found is None:
                return
            status = found
        raise SmtpError(Reply(550, status, _REFUSED_BEFORE), f"{resolution.external[0]} was refused before")

    async def note_refusals(self, report: Report) -> None:
        """Remember what destinations of forwarded mail have said for good."""
        if report.local or report.envelope.origin.account or not self.settings.remember_refusal_s:
            return
        for outcome in report.outcomes:
            if _is_unknown(outcome):
                metrics.add("forwards_refused")
                until_s = self._clock() + self.settings.remember_refusal_s
                try:
                    await self._senders.refused(outcome.recipient.address.key, outcome.status, until_s)
                except SendersUnavailable as e:
                    _log.warning("forwarding_store_unavailable", reason=e.reason)

    async def keep_house(self) -> None:
        """Forget what is over; once a day."""
        now = self._clock()
        try:
            await self._senders.purge(int(now // _DAY_S) - self.settings.srs_days - 1, now)
        except SendersUnavailable as e:
            _log.warning("forwarding_store_unavailable", reason=e.reason)
        secrets = self._srs.secrets
        if not await asyncio.to_thread(secrets.is_private):
            _log.warning("srs_secret_readable", path=secrets.path, reason="others may read it: chmod 600")


def _is_unknown(outcome: Outcome) -> bool:
    """Would any message have been refused, not just this one?"""
    return bool(outcome.mx) and outcome.status in _UNKNOWN_STATUSES


def _complain(path: Path, reason: str) -> None:
    _log.error("dkim_key_unusable", path=path, reason=reason)


def _secrets(settings: Forwarding, data_dir: Path) -> Secrets:
    if settings.srs_secret_credential:
        name = settings.srs_secret_credential
        return Secrets(credential_path(name), credential=name)
    return Secrets(Path(settings.srs_secret_file) if settings.srs_secret_file else data_dir / "srs.secret")
