"""Who is told when a message can't be delivered, is late, or has arrived (RFC 3461, RFC 5321 s. 6.1).

Only senders that logged in here get a notification: anybody else's MAIL FROM may be forged, and a report to it would
be backscatter. Failures of other mail (a copy for a mailbox here that could not be stored) go to the postmaster, save
one: the sender of mail that was forwarded hears that it failed if SPF or DMARC had proven its domain. When a mailbox
here has the message as well (NOTIFY=NEVER), a forward that fails is a line in the log.
Nothing is ever reported about a message with the null reverse-path; when one made here fails, the log is all there is.

The report is given to `submit` with the null reverse-path and must be durable when that returns. An error of `submit`
passes through: the queue then keeps the recipient and tries again. Only when there is nobody to tell any more, now or
later (5xx), the log is all there is.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pymx import log, metrics
from pymx.mail.address import Address
from pymx.mail.dsn import MAX_INCLUDED_OCTETS, Kind, Notice, Status, build
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.proto.smtp.reply import SmtpError
from pymx.queue.item import Outcome, Report
from pymx.spool import Content

Submit = Callable[[Envelope, Content], Awaitable[object]]

_log = log.get("mta")


class Bounce:
    """Makes and submits notifications. `postmaster`, by default the one of the host name, gets what senders may not."""

    def __init__(self, submit: Submit, *, hostname: str, postmaster: Address | None = None) -> None:
        self._submit = submit
        self._hostname = hostname
        self._postmaster = postmaster or Address("postmaster", hostname)
        self.original: Callable[[Address], Awaitable[Address | None]] | None = None  # the sender behind an SRS address

    async def gave_up(self, report: Report) -> None:
        """Recipients that are given up."""
        if _is_forwarded(report):
            report = _without_kept(report)
        to = await self._addressee(report)
        if to is None:
            self._drop(report, "the message has the null reverse-path")
            return
        if to == self._postmaster:
            report = replace(report, envelope=replace(report.envelope, ret="FULL"))  # nobody else may have it
        told: Sequence[Outcome] = _wanted(report.outcomes, "FAILURE", default=True)
        if to == self._postmaster and report.envelope.origin.listener is not Listener.LOCAL:
            told = report.outcomes  # a stranger's wishes are not for the postmaster; those of mail made here are
        await self._send(report, Kind.FAILED, told, to)

    async def delayed(self, report: Report) -> None:
        """Recipients that wait for longer than usual. Nobody but an authenticated sender wants to know."""
        envelope = report.envelope
        if envelope.mail_from is not None and envelope.origin.account:
            told = _wanted(report.outcomes, "DELAY", default=True)
            await self._send(report, Kind.DELAYED, told, envelope.mail_from)

    async def delivered(self, report: Report) -> None:
        """Recipients whose delivery the sender asked to be told of, and whom no other server reports on."""
        envelope = report.envelope
        if envelope.mail_from is not None and envelope.origin.account:
            told = _wanted(report.outcomes, "SUCCESS", default=False)
            await self._send(report, Kind.DELIVERED if report.local else Kind.RELAYED, told, envelope.mail_from)

    async def _addressee(self, report: Report) -> Address | None:
        envelope = report.envelope
        if envelope.mail_from is None:
            # RFC 5321 s. 6.1: no notification about a notification. Somebody else's that was taken here and can't be
            # stored is the postmaster's business; our own is not sent after itself.
            foreign = envelope.origin.listener is not Listener.LOCAL
            return self._postmaster if report.local and foreign else None
        if _is_forwarded(report) and envelope.origin.sender_proven:
            return await self._original(envelope.mail_from)
        return envelope.mail_from if envelope.origin.account else self._postmaster

    async def _original(self, mail_from: Address) -> Address:
        """Who sent a message that was forwarded."""
        try:
            return (await self.original(mail_from) if self.original else None) or mail_from
        except SmtpError as e:
            if e.reply.is_temporary:
                raise
            return self._postmaster

    def _drop(self, report: Report, reason: str) -> None:
        metrics.add("bounces_dropped", len(report.outcomes))
        for outcome in report.outcomes:
            _log.warning(
                "bounce_dropped",
                queue_id=report.queue_id,
                rcpt_to=str(outcome.recipient.address),
                reply=outcome.reply,
                reason=reason,
            )

    async def _send(self, report: Report, kind: Kind, outcomes: Sequence[Outcome], to: Address) -> None:
        if not outcomes:
            return
        content = report.content
        body = None
        # RFC 8689 s. 4.3: the sender's own wish for TLS holds for the content, so a report must not carry it elsewhere
        full = report.envelope.ret == "FULL" and not report.envelope.requiretls
        if full and content.size_octets <= MAX_INCLUDED_OCTETS:
            body = await asyncio.get_running_loop().run_in_executor(None, lambda: b"".join(content.body_chunks()))
        message_id = f"<{secrets.token_hex(12)}@{self._hostname}>"
        message = build(
            Notice(
                hostname=self._hostname,
                message_id=message_id,
                now=time.time(),
                arrived=report.arrived_s,
                to=to,
                statuses=[Status(o.recipient, kind, o.status, o.reply, o.mx) for o in outcomes],
                head=content.head,
                body=body,
                envid=report.envelope.envid,
                queue_id=report.queue_id,
                expires=report.expires_s,
            )
        )
        made = Content.from_bytes(message)
        envelope = Envelope(
            mail_from=None,
            recipients=(Recipient(to, frozenset({"NEVER"})),),
            origin=Origin(Listener.LOCAL, session=report.envelope.origin.session),
            body="7BIT" if message.isascii() else "8BITMIME",
            smtputf8=not (made.head.isascii() and to.is_ascii),
        )
        try:
            await self._submit(envelope, made)
        except SmtpError as e:
            if e.reply.is_temporary:
                raise
            # the account was removed meanwhile: trying again would be for ever
            if kind is Kind.FAILED:
                self._drop(report, f"{to} can't be told: {e.reason}")
            return
        metrics.add(f"notifications_{kind.value}")
        _log.info(
            "notification_sent",
            queue_id=report.queue_id,
            rcpt_to=str(to),
            verdict=kind.value,
            count=len(outcomes),
            message_id=message_id,
        )


def _is_forwarded(report: Report) -> bool:
    """Was it somebody else's, for somebody elsewhere?"""
    origin = report.envelope.origin
    return not report.local and not origin.account and origin.listener is not Listener.LOCAL


def _without_kept(report: Report) -> Report:
    """The report without recipients whose message a mailbox here has as well."""
    for outcome in report.outcomes:
        if "NEVER" in outcome.recipient.notify:
            _log.warning(
                "forward_failed",
                queue_id=report.queue_id,
                rcpt_to=str(outcome.recipient.address),
                reply=outcome.reply,
                reason="a mailbox here has the message, so nobody is told",
            )
    return replace(report, outcomes=tuple(o for o in report.outcomes if "NEVER" not in o.recipient.notify))


def _wanted(outcomes: Sequence[Outcome], what: str, *, default: bool) -> list[Outcome]:
    """Those whose NOTIFY asks for it (RFC 3461 s. 4.1); `default` when nothing was said."""
    return [o for o in outcomes if (what in o.recipient.notify if o.recipient.notify else default)]
