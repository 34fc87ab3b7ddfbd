"""Policy of port 25 and of LMTP: mail from elsewhere for mailboxes here (RFC 5321, RFC 2033).

Stages, in this order, and what each may say besides the checks:

    MAIL     nothing of its own (syntax, SIZE and limits are the engine's)
    RCPT     foreign domain 550 5.7.1; unknown 550 5.1.1; mailbox full 452 4.2.2; directory down 451 4.3.0
    RCPT     for an alias that leads only to other servers, all of which refused it lately: 550 with their status code
    DATA     more than `max_received` hops, or delivered to one of the recipients before: 554 5.4.6; must not be
             forwarded, but a recipient has no mailbox here: 550 5.7.1; SRS address, but no bounce: 550 5.7.1

The checks (pymx.checks) judge what comes to port 25 from hosts that are not trusted: refused at RCPT or after the data,
marked as junk, or taken with their results in front. They are asked after everything else, since they cost most.

A bounce (null sender) may have several recipients: RFC 5321 s. 4.5.5 asks for one but forbids nothing. A message
without a valid header is taken as it came. Authentication-Results that claim to be this host's are removed (RFC 8601
s. 5), and at final delivery a Return-Path that came with the message; every other octet stays.

Mail for an alias that leads to another server is forwarded (`mta.forward`), unless it fails DMARC or is junk: then a
mailbox here keeps it if the alias leads to one, else the whole message is refused. What the next server refuses at once
is refused here, where that can be (`mta.insession`). SRS addresses are recipients too,
for the null sender and for automatic answers: what comes there goes to the original sender.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

from pymx import log
from pymx.accounts.account import Account, DirectoryUnavailable, Resolution
from pymx.checks.check import Facts
from pymx.checks.pipeline import Inspection, Pipeline
from pymx.config.model import Smtp
from pymx.mail import authres, spam, trace
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Origin, Recipient
from pymx.mda.deliver import Failure, MailboxUnavailable
from pymx.mta.dispatch import Accepted, Target
from pymx.mta.forward import Forwarder, Passport, is_automatic, passport
from pymx.mta.insession import Waiting
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.queue.item import QueueId, new_queue_id
from pymx.smtpd.handler import MailParameters, SessionFacts
from pymx.spool import Content

_log = log.get("mta")

_REFUSED_ELSEWHERE = "The server that this address leads to refused the message"
_NOT_A_BOUNCE = Reply(550, "5.7.1", "This address takes bounces only")
_NOT_FORWARDED = Reply(550, "5.7.1", "Can't be forwarded to its recipient: it fails DMARC or looks like spam")
_FULL = {
    Failure.OVER_QUOTA: replies.OVER_QUOTA,
    Failure.STORAGE_FULL: replies.STORAGE_FULL,
}


class Directory(Protocol):
    """What is used of `accounts.directory.Directory`."""

    async def is_local(self, domain: str) -> bool: ...


class Door(Protocol):
    """What is used of `mta.dispatch.Dispatch`."""

    forwarder: Forwarder | None

    async def resolve(self, address: Address) -> Resolution: ...

    async def returning(self, address: Address) -> Resolution | None: ...

    def delivered_to(self, recipient: Recipient, account: Account) -> Address: ...

    async def accept(
        self,
        envelope: Envelope,
        content: Content,
        targets: Sequence[Target],
        *,
        queue_id: QueueId | None = None,
        passport: Passport | None = None,
    ) -> Accepted: ...

    async def accept_each(
        self, envelope: Envelope, content: Content, targets: Sequence[Target], *, passport: Passport | None = None
    ) -> list[Reply]: ...


class Room(Protocol):
    """What is used of `mda.deliver.Mda`."""

    async def check(self, account: Account, octets: int) -> None: ...


class Inbound:
    """Handler of the port 25 and LMTP listeners."""

    def __init__(
        self,
        directory: Directory,
        mda: Room,
        dispatch: Door,
        *,
        smtp: Smtp,
        hostname: str,
        checks: Pipeline | None = None,
    ) -> None:
        self.directory = directory
        self.mda = mda
        self.dispatch = dispatch
        self.max_received = smtp.max_received
        self.hostname = hostname
        self.checks = checks
        self._under_way: dict[str, InboundTransaction] = {}  # by session

    async def connected(self, session: SessionFacts) -> None:
        """Everybody may try."""

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        """No logins here: they belong to the submission ports."""
        raise SmtpError(replies.NOT_IMPLEMENTED, "AUTH on a listener without logins")

    async def mail(
        self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters
    ) -> InboundTransaction:
        self._abandon(session)
        transaction = self._under_way[session.id] = InboundTransaction(self, session.origin(), mail_from, parameters)
        return transaction

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        self._abandon(session)

    def _abandon(self, session: SessionFacts) -> None:
        """End the checks of a transaction without a message: a peer that begins thousands would have us ask for all."""
        transaction = self._under_way.pop(session.id, None)
        if transaction is not None:
            transaction.abandon()


class InboundTransaction:
    """One message from elsewhere."""

    __slots__ = ("_inbound", "_inspection", "_mail_from", "_origin", "_parameters", "_queue_id", "_targets")

    def __init__(self, inbound: Inbound, origin: Origin, mail_from: Address | None, parameters: MailParameters) -> None:
        self._inbound = inbound
        self._origin = origin
        self._mail_from = mail_from
        self._parameters = parameters
        self._queue_id = new_queue_id()
        self._inspection: Inspection | None = None
        self._targets: list[Target] = []

    def abandon(self) -> None:
        """There will be no message, or it is done with."""
        if self._inspection is not None:
            self._inspection.abandon()

    async def rcpt(self, recipient: Recipient) -> None:
        address = recipient.address
        returning = await self._inbound.dispatch.returning(address)
        if returning is not None:
            await self._take(Target(recipient, returning, returning=True))
            return
        try:
            local = not address.domain or await self._inbound.directory.is_local(address.domain)
        except DirectoryUnavailable as e:
            raise SmtpError(replies.DIRECTORY_UNAVAILABLE, e.reason) from None
        if not local:
            raise SmtpError(replies.RELAY_DENIED, f"{address.domain} is not a domain of ours")
        resolution = await self._inbound.dispatch.resolve(address)
        await self._take(Target(recipient, resolution))

    async def _take(self, target: Target) -> None:
        """Accept the recipient, if there is room and the checks at RCPT have nothing against it. Raises SmtpError."""
        await require_room(self._inbound.mda, target.resolution, self._parameters.size or 0)
        forwarder = self._inbound.dispatch.forwarder
        if forwarder is not None and target.resolution.external:
            await forwarder.require_open(target.resolution)
        checks = self._inbound.checks
        if checks is not None and checks.concerns(self._origin):
            await self._inspect(checks, target.recipient)
        self._targets.append(target)

    def body(self, head: bytes) -> Callable[[bytes], None] | None:
        return None if self._inspection is None else self._inspection.body(head)

    async def data(self, content: Content) -> Reply:
        self._count_hops(content)
        if looping := self._looping(content):
            raise SmtpError(replies.ROUTING_LOOP, f"delivered to {looping[0].recipient.address} before")
        for target in self._targets:
            self._require_automatic(target, content)
        content, passport = await self._checked(content)
        targets = [self._kept(target, passport) for target in self._targets]
        with self._expected(targets) as waiting:
            accepted = await self._inbound.dispatch.accept(
                self._envelope(), content, targets, queue_id=self._queue_id, passport=passport
            )
            status = await waiting.status() if waiting is not None else ""
        if status:
            raise SmtpError(Reply(550, status, _REFUSED_ELSEWHERE), "the server that the alias leads to refused it")
        return accepted.reply

    def _expected(self, targets: Sequence[Target]) -> AbstractContextManager[Waiting | None]:
        """What the next server says, where the answer can still be given in the session."""
        forwarder = self._inbound.dispatch.forwarder
        in_session = forwarder.in_session if forwarder is not None else None
        resolutions = [target.resolution for target in targets]
        if in_session is None or len(targets) != 1 or resolutions[0].accounts or len(resolutions[0].external) != 1:
            return nullcontext()
        return in_session.expect(self._queue_id)

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        self._count_hops(content)
        looping = self._looping(content)
        content, passport = await self._checked(content)
        refused = {id(target): replies.ROUTING_LOOP for target in looping}
        wanted = []
        for target in self._targets:
            if id(target) not in refused:
                try:
                    self._require_automatic(target, content)
                    wanted.append(self._kept(target, passport))
                except SmtpError as e:
                    refused[id(target)] = e.reply
        dispatch = self._inbound.dispatch
        given = await dispatch.accept_each(self._envelope(), content, wanted, passport=passport) if wanted else []
        answers = iter(given)
        return [refused.get(id(target)) or next(answers) for target in self._targets]

    def _require_automatic(self, target: Target, content: Content) -> None:
        """People do not write to SRS addresses, and nobody may reach others through them. Raises SmtpError."""
        if target.returning and self._mail_from is not None and not is_automatic(content.head):
            raise SmtpError(_NOT_A_BOUNCE, f"{target.recipient.address} from {self._mail_from}")

    def _kept(self, target: Target, passport: Passport) -> Target:
        """The recipient without the places elsewhere that must not have the message. Raises SmtpError."""
        resolution = target.resolution
        if not passport.withheld or not resolution.external:
            return target
        if not resolution.accounts:
            raise SmtpError(_NOT_FORWARDED, f"not forwarded to {resolution.external[0]}: {passport.withheld}")
        _log.info(
            "forward_withheld",
            session=self._origin.session,
            queue_id=self._queue_id,
            rcpt_to=",".join(str(address) for address in resolution.external),
            reason=passport.withheld,
        )
        return replace(target, resolution=Resolution(resolution.accounts))

    async def _inspect(self, checks: Pipeline, recipient: Recipient) -> None:
        """Begin the checks with the first recipient, and ask those that judge recipients. Raises SmtpError."""
        if self._inspection is None:
            self._inspection = checks.begin(Facts(self._origin, self._queue_id, self._mail_from))
        recipients = self._inspection.facts.recipients
        recipients.append(recipient)
        try:
            await self._inspection.recipient()
        except SmtpError:
            recipients.pop()
            raise

    def _count_hops(self, content: Content) -> None:
        hops = trace.count_received(content.head)
        if hops > self._inbound.max_received:
            raise SmtpError(replies.ROUTING_LOOP, f"{hops} Received fields")
        forwarder = self._inbound.dispatch.forwarder
        if forwarder is not None and any(target.resolution.external for target in self._targets):
            passes = trace.count_received_by(content.head, self._inbound.hostname)
            if passes > forwarder.settings.max_passes:
                raise SmtpError(replies.ROUTING_LOOP, f"passed this server {passes} times")

    async def _checked(self, content: Content) -> tuple[Content, Passport]:
        """The message as it will be stored, and as it may be forwarded. Raises SmtpError."""
        if self._inspection is None:
            content = content.with_head(authres.without_claims(content.head, self._inbound.hostname))
            return content, Passport(content, withheld="it is marked as spam" if spam.is_junk(content.head) else "")
        found = await self._inspection.message(content)
        self._origin = replace(self._origin, peer_name=found.peer_name, sender_proven=found.sender_proven)
        forwarder = self._inbound.dispatch.forwarder
        return found.content, passport(found, forwarder.settings) if forwarder else Passport(found.as_received)

    def _looping(self, content: Content) -> list[Target]:
        """The recipients with a mailbox that has had the message before (RFC 9228 s. 4), or that forwarded it."""
        been = trace.was_delivered_to(content.head)
        if not been:
            return []
        return [
            target
            for target in self._targets
            if any(
                self._inbound.dispatch.delivered_to(target.recipient, account).key in been
                for account in target.resolution.accounts
            )
            or (target.resolution.external and target.recipient.address.key in been)
        ]

    def _envelope(self) -> Envelope:
        return Envelope(
            self._mail_from,
            tuple(target.recipient for target in self._targets),
            self._origin,
            body=self._parameters.body,
            smtputf8=self._parameters.smtputf8,
            ret=self._parameters.ret,
            envid=self._parameters.envid,
            requiretls=self._parameters.requiretls,
        )


async def require_room(mda: Room, resolution: Resolution, octets: int) -> None:
    """Refuse a recipient none of whose mailboxes has room for `octets`. Raises SmtpError (452, 451)."""
    refusal: MailboxUnavailable | None = None
    for account in resolution.accounts:
        try:
            await mda.check(account, octets)
        except MailboxUnavailable as e:
            refusal = e
        else:
            return
    if refusal is not None and not resolution.external:
        raise SmtpError(_FULL.get(refusal.failure, replies.TEMPORARY_FAILURE), str(refusal))
