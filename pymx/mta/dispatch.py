"""The only door through which a message is accepted: local mailboxes, the queue, then 250.

Order, so that nothing acknowledged is ever lost and as little as possible is doubled:

1. the message gets its queue id and its Received field;
2. mailboxes here are tried, all in parallel; what is stored is durable;
3. in one commit of the queue: the copy for recipients elsewhere, and a copy for each mailbox that could not take the
   message now, which is tried again from the queue;
4. the 250.

A crash before 4 leaves an unacknowledged message: the client sends it again, and what step 2 or 3 had stored is there
twice. If nobody at all could be stored in step 2 and there is nobody elsewhere, the answer is the mailbox's own
(452, 451 or 5xx) and nothing is queued, unless the message was made here. If step 3 fails the answer is 452 although
a mailbox may have the message.

What comes from elsewhere for aliases that lead elsewhere is forwarded (`mta.forward`), a copy for each alias.

Over LMTP (RFC 2033) each recipient has a reply of its own, and one whose mailboxes all refused gets that refusal.

After the 250 a mailbox that fails for good makes no DSN to strangers (the sender may be forged): the message goes to
the postmaster, whole. Only a sender who logged in here is told himself, by the queue's DSN.

`delivered` (an attribute, set by whoever wires the rooms) is called for users who asked to be told of a delivery;
`arrived`, with the queue id, the recipients with mailboxes here and the message, for everything that was taken. It must
neither wait nor raise.

Errors: SmtpError. One line per transaction: `message_accepted`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pymx import log, metrics
from pymx.accounts.account import Account, AliasLoop, DirectoryUnavailable, Resolution, UnknownRecipient
from pymx.mail import header, trace
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener, Recipient
from pymx.mda.deliver import Failure, LocalRecipient, Outcome
from pymx.mta.forward import Forwarder, Passport, expanded
from pymx.mta.mailboxreply import queued_outcome, refusal
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.queue import item
from pymx.queue.item import Copy, QueueId, Report, Result, new_queue_id
from pymx.queue.queue import QueueFull
from pymx.spool import Content

_log = log.get("mta")

_QUEUE_FULL = Reply(452, "4.3.1", "Insufficient system storage, try again later")


class Directory(Protocol):
    """What is used of `accounts.directory.Directory`."""

    async def account(self, email: str) -> Account | None: ...

    async def is_local(self, domain: str) -> bool: ...

    async def resolve(self, address: Address) -> Resolution: ...


class DeliveryAgent(Protocol):
    """What is used of `mda.deliver.Mda`."""

    async def deliver(
        self, queue_id: str, envelope: Envelope, content: Content, recipients: Sequence[LocalRecipient]
    ) -> list[Outcome]: ...


class Enqueue(Protocol):
    """What is used of `queue.queue.Queue`."""

    async def enqueue(self, copies: Sequence[Copy]) -> list[QueueId]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """A recipient that was accepted, and where its mail goes."""

    recipient: Recipient
    resolution: Resolution
    returning: bool = False  # an SRS address: the way back to an original sender


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that is ours now; `reply` is the 250."""

    queue_id: QueueId
    reply: Reply


@dataclass(slots=True)
class _Group:
    """Recipients that share one reply: all of a transaction, or over LMTP each alone."""

    targets: Sequence[Target]
    local: list[LocalRecipient] = field(default_factory=list)
    external: list[Recipient] = field(default_factory=list)


class Dispatch:
    """Takes messages: `accept` and `accept_each` from sessions, `submit` from the server itself."""

    def __init__(
        self, directory: Directory, mda: DeliveryAgent, queue: Enqueue, *, hostname: str, delimiter: str = "+"
    ) -> None:
        self._directory = directory
        self._mda = mda
        self._queue = queue
        self._hostname = hostname
        self._delimiter = delimiter
        self.forwarder: Forwarder | None = None  # without one, mail for aliases that lead elsewhere goes as it came
        self.delivered: Callable[[Report], Awaitable[None]] | None = None  # tells a user who asked for it (RFC 3461)
        self.arrived: Callable[[str, Sequence[Address], Content], None] | None = None  # what came for mailboxes here

    async def accept(
        self,
        envelope: Envelope,
        content: Content,
        targets: Sequence[Target],
        *,
        queue_id: QueueId | None = None,
        passport: Passport | None = None,
    ) -> Accepted:
        """Take the message for all `targets`, under an id if it has one. At return it is durable. Raises SmtpError.

        `passport` is the message as it may be forwarded.
        """
        queue_id = queue_id or new_queue_id()
        outcome = (await self._commit(queue_id, envelope, content, [self._group(targets)], passport=passport))[0]
        if isinstance(outcome, SmtpError):
            raise outcome
        return Accepted(queue_id, outcome)

    async def accept_each(
        self, envelope: Envelope, content: Content, targets: Sequence[Target], *, passport: Passport | None = None
    ) -> list[Reply]:
        """As `accept`, with a reply for each target in order (RFC 2033 s. 4.2)."""
        groups = [self._group([t]) for t in targets]
        outcomes = await self._commit(new_queue_id(), envelope, content, groups, passport=passport)
        return [outcome.reply if isinstance(outcome, SmtpError) else outcome for outcome in outcomes]

    async def submit(self, envelope: Envelope, content: Content) -> Accepted:
        """Take a message that was made here (a DSN, a notice). Raises SmtpError; 550 when nobody is left to get it."""
        targets: list[Target] = []
        for recipient in envelope.recipients:
            try:
                returning = await self.returning(recipient.address)
                targets.append(Target(recipient, returning or await self.resolve(recipient.address)))
            except SmtpError as e:
                if e.reply.is_temporary:
                    raise
                _log.warning("notice_undeliverable", rcpt_to=str(recipient.address), reason=e.reason)
        if not targets:
            raise SmtpError(replies.UNKNOWN_RECIPIENT, "no recipient of a message made here can be reached")
        queue_id = new_queue_id()
        # nobody would send it again, so it waits in the queue for a mailbox that is full or can't be had now
        outcome = (await self._commit(queue_id, envelope, content, [self._group(targets)], keep=True))[0]
        if isinstance(outcome, SmtpError):
            raise outcome
        return Accepted(queue_id, outcome)

    async def resolve(self, address: Address) -> Resolution:
        """Where mail for `address` goes, here or elsewhere. Raises SmtpError (550 5.1.1, 451 4.3.0)."""
        try:
            if address.domain and not await self._directory.is_local(address.domain):
                return Resolution((), (address,))
            return await self._directory.resolve(address)
        except UnknownRecipient as e:
            raise SmtpError(replies.UNKNOWN_RECIPIENT, e.reason) from None
        except AliasLoop as e:
            # the administrator can mend it: temporary
            raise SmtpError(replies.TEMPORARY_FAILURE, f"alias loop: {e.reason}") from None
        except DirectoryUnavailable as e:
            raise SmtpError(replies.DIRECTORY_UNAVAILABLE, e.reason) from None

    async def returning(self, address: Address) -> Resolution | None:
        """Where mail for an SRS address of ours goes; None for any other address. Raises SmtpError."""
        original = await self.forwarder.original(address) if self.forwarder is not None else None
        return None if original is None else await self.resolve(original)

    def delivered_to(self, recipient: Recipient, account: Account) -> Address:
        """What Delivered-To says: the account's address, with the subaddress that the mail came by."""
        address = recipient.address
        plain = address.without_detail(self._delimiter) if self._delimiter else address
        return address if plain.key == account.email else Address(account.local_part, account.domain)

    def _group(self, targets: Sequence[Target]) -> _Group:
        group = _Group(targets)
        for target in targets:
            group.local += [
                LocalRecipient(account, self.delivered_to(target.recipient, account))
                for account in target.resolution.accounts
            ]
            group.external += [expanded(target.recipient, address) for address in target.resolution.external]
        return group

    async def _commit(
        self,
        queue_id: QueueId,
        envelope: Envelope,
        content: Content,
        groups: Sequence[_Group],
        *,
        keep: bool = False,
        passport: Passport | None = None,
    ) -> list[Reply | SmtpError]:
        """Steps 1 to 4 for all groups at once; what each group's reply is. `keep`: queue it also if nobody has it."""
        started = time.monotonic()
        single = envelope.recipients[0].address if len(envelope.recipients) == 1 else None
        stamp = trace.received(
            hostname=self._hostname, origin=envelope.origin, queue_id=queue_id, now=time.time(), recipient=single
        )
        stamped = content.prepended(stamp)
        try:
            elsewhere = await self._elsewhere(envelope, stamp, stamped, groups, passport or Passport(content))
        except SmtpError as e:
            return [e for _ in groups]
        local: dict[int, LocalRecipient] = {}
        for group in groups:
            for recipient in group.local:
                local.setdefault(recipient.account.id, recipient)
        outcomes = await self._mda.deliver(queue_id, envelope, stamped, list(local.values())) if local else []
        failed = {o.recipient.account.id: o for o in outcomes if not o.is_stored}
        retried = {
            r.account.id: r
            for group in groups
            if keep or group.external or any(r.account.id not in failed for r in group.local)
            for r in group.local
            if r.account.id in failed
        }
        copies = _copies(queue_id, elsewhere, envelope, stamped, _waiting(groups, retried))
        trouble = await self._enqueue(queue_id, copies)
        if trouble is None and _is_forwarded(envelope):
            _write_forwarded(queue_id, copies)
        results = [_result(queue_id, group, failed, retried, trouble) for group in groups]
        if any(isinstance(result, Reply) for result in results):
            self._write_line(queue_id, envelope, stamped, started)
            if self.arrived is not None:
                here = [t.recipient.address for group in groups for t in group.targets if t.resolution.accounts]
                self.arrived(queue_id, here, stamped)
        await self._tell_delivered(queue_id, envelope, stamped, groups, failed)
        return results

    async def _elsewhere(
        self, envelope: Envelope, stamp: bytes, stamped: Content, groups: Sequence[_Group], passport: Passport
    ) -> list[tuple[Envelope, Content]]:
        """What goes to other servers: one message, or one for each address here that forwards. Raises SmtpError."""
        waiting = {r.address.key: r for group in groups for r in group.external}
        if not waiting:
            return []
        if self.forwarder is None or not _is_forwarded(envelope):
            return [(envelope.with_recipients(tuple(waiting.values())), stamped)]
        out = []
        for target in (target for group in groups for target in group.targets):
            # each destination once, also if several aliases lead there
            recipients = [r for a in target.resolution.external if (r := waiting.pop(a.key, None)) is not None]
            if target.resolution.accounts:
                # a mailbox here has it: what becomes of the other copies is nobody's worry
                recipients = [replace(r, notify=frozenset({"NEVER"})) for r in recipients]
            if recipients:
                alias = target.recipient.address
                out.append(await self.forwarder.leaving(envelope, alias, recipients, passport, stamp))
        return out

    async def _enqueue(self, queue_id: QueueId, copies: Sequence[Copy]) -> SmtpError | None:
        """Step 3. The error when the queue can't take the message."""
        if not copies:
            return None
        try:
            await self._queue.enqueue(copies)
        except QueueFull:
            return SmtpError(_QUEUE_FULL, "the queue is full")
        except OSError as e:
            return SmtpError(replies.STORAGE_FULL, f"queue: {e}")
        for copy in copies:
            if copy.local:
                _log.warning(
                    "local_delivery_queued",
                    session=copy.envelope.origin.session,
                    queue_id=copy.queue_id,
                    copy_of=queue_id,
                    rcpt_to=",".join(str(r.address) for r in copy.envelope.recipients),
                )
        return None

    async def _tell_delivered(
        self,
        queue_id: QueueId,
        envelope: Envelope,
        content: Content,
        groups: Sequence[_Group],
        failed: Mapping[int, Outcome],
    ) -> None:
        """A user who asked with NOTIFY=SUCCESS hears what is in mailboxes now; the queue reports on the rest."""
        if self.delivered is None or not _is_from_user(envelope):
            return
        arrived = [
            item.Outcome(target.recipient, Result.DELIVERED, "2.1.5", "Delivered to the mailbox")
            for group in groups
            for target in group.targets
            if "SUCCESS" in target.recipient.notify
            and not target.resolution.external
            and not any(account.id in failed for account in target.resolution.accounts)
        ]
        if not arrived:
            return
        now = time.time()
        try:
            await self.delivered(Report(queue_id, envelope, content, True, now, tuple(arrived), now))
        except SmtpError as e:
            _log.warning("notice_undeliverable", queue_id=queue_id, rcpt_to=str(envelope.mail_from), reason=e.reason)

    def _write_line(self, queue_id: QueueId, envelope: Envelope, content: Content, started: float) -> None:
        metrics.add("mta_messages_accepted")
        message_id = header.first(content.head, "message-id")
        _log.info(
            "message_accepted",
            session=envelope.origin.session,
            queue_id=queue_id,
            listener=envelope.origin.listener.value,
            peer_ip=envelope.origin.peer_ip,
            account=envelope.origin.account,
            mail_from=str(envelope.mail_from or "<>"),
            rcpt_to=",".join(str(r.address) for r in envelope.recipients),
            message_id=message_id.value.decode("utf-8", "replace")[:250] if message_id else "",
            size_octets=content.size_octets,
            duration_ms=round((time.monotonic() - started) * 1000, 1),
        )

    # --- copies that wait in the queue for a mailbox here ------------------------------------------------------------

    async def deliver_queued(self, queue_id: QueueId, envelope: Envelope, content: Content) -> list[item.Outcome]:
        """Try the mailboxes again that could not take a message when it came; one outcome per recipient, in order.

        A recipient that fails for good counts as delivered once the postmaster has the message, unless a user of ours
        sent it.
        """
        accounts: list[Account | None] = []
        for recipient in envelope.recipients:
            try:
                accounts.append(await self._account(recipient.address))
            except DirectoryUnavailable as e:
                return [queued_outcome(r, Failure.UNAVAILABLE, e.reason) for r in envelope.recipients]
        local = [
            LocalRecipient(account, recipient.address)
            for recipient, account in zip(envelope.recipients, accounts, strict=True)
            if account is not None
        ]
        tried = iter(await self._mda.deliver(queue_id, envelope, content, local) if local else [])
        outcomes: list[item.Outcome] = []
        for recipient, account in zip(envelope.recipients, accounts, strict=True):
            failure: Failure | None = Failure.IMPOSSIBLE
            reason = "the account is gone"
            if account is not None:
                outcome = next(tried)
                failure, reason = outcome.failure, outcome.reason
            if failure is not None and failure.is_permanent and not _is_from_user(envelope):
                one = envelope.with_recipients((recipient,))
                if await self.to_postmaster(queue_id, one, content, reason):
                    failure = None
                else:
                    failure = Failure.UNAVAILABLE
            outcomes.append(queued_outcome(recipient, failure, reason))
        return outcomes

    async def to_postmaster(self, queue_id: QueueId, envelope: Envelope, content: Content, reason: str) -> bool:
        """Give a message that its mailboxes will never take to the postmaster; False when that failed too."""
        lost = ", ".join(str(r.address) for r in envelope.recipients)
        domain = envelope.recipients[0].address.domain
        try:
            postmaster = Address("postmaster", domain)
            resolution = await self.resolve(postmaster)
            if postmaster in resolution.external:
                # the domain is no longer ours: whoever has it now must not get what was taken here
                resolution = await self.resolve(Address("postmaster", self._hostname))
        except SmtpError as e:
            _log.error("local_delivery_gave_up", queue_id=queue_id, rcpt_to=lost, reason=f"{reason}; {e.reason}")
            return False
        note = header.build_field("X-Pymx-Undeliverable", f"{lost}; {reason}".translate(_ONE_LINE))
        noted = content.prepended(note)
        recipients = [LocalRecipient(a, Address(a.local_part, a.domain)) for a in resolution.accounts]
        outcomes = await self._mda.deliver(queue_id, envelope, noted, recipients) if recipients else []
        reached = any(outcome.is_stored for outcome in outcomes)
        if not reached and resolution.external:
            elsewhere = tuple(Recipient(address, frozenset({"NEVER"})) for address in resolution.external)
            try:
                leaving = envelope.with_recipients(elsewhere)
                if self.forwarder is not None:
                    leaving = replace(leaving, mail_from=await self.forwarder.sender(envelope.mail_from, domain))
                copy = Copy(new_queue_id(), leaving, noted, local=False)
                reached = bool(await self._queue.enqueue([copy]))
            except (QueueFull, OSError, SmtpError) as e:
                reason = f"{reason}; queue: {e}"
        _log.error(
            "local_delivery_gave_up",
            queue_id=queue_id,
            rcpt_to=lost,
            reason=f"{reason}; " + ("given to the postmaster" if reached else "the postmaster can't be reached"),
        )
        return reached

    async def _account(self, address: Address) -> Account | None:
        account = await self._directory.account(address.key)
        if account is None and self._delimiter:
            account = await self._directory.account(address.without_detail(self._delimiter).key)
        return account

    async def gave_up(self, report: Report) -> bool:
        """A queued copy for a mailbox here has waited for as long as the settings say. False: make a DSN of it."""
        if not report.local or _is_from_user(report.envelope) or not report.outcomes:
            return False
        envelope = report.envelope.with_recipients(tuple(outcome.recipient for outcome in report.outcomes))
        return await self.to_postmaster(report.queue_id, envelope, report.content, report.outcomes[0].reply)


_ONE_LINE = {0: " ", 10: " ", 13: " "}


def _is_from_user(envelope: Envelope) -> bool:
    """Did one of our users send this, so that the sender is known to be true?"""
    return envelope.mail_from is not None and bool(envelope.origin.account)


def _is_forwarded(envelope: Envelope) -> bool:
    """Is what leaves here somebody else's? Not what users of ours send, and not what is made here."""
    return not envelope.origin.account and envelope.origin.listener is not Listener.LOCAL


def _waiting(groups: Sequence[_Group], retried: Mapping[int, LocalRecipient]) -> list[Recipient]:
    """Whom the copies that wait for a mailbox are for: the address to deliver to, with the DSN wishes it came with."""
    wishes: dict[int, Recipient] = {}
    for target in (target for group in groups for target in group.targets):
        for account in target.resolution.accounts:
            wishes.setdefault(account.id, target.recipient)
    return [expanded(wishes[id_], recipient.delivered_to) for id_, recipient in retried.items()]


def _copies(
    queue_id: QueueId,
    elsewhere: Sequence[tuple[Envelope, Content]],
    envelope: Envelope,
    content: Content,
    waiting: Sequence[Recipient],
) -> list[Copy]:
    """What the queue gets. One copy carries the transaction's id; others ids of their own."""
    messages = [(one, its_content, False) for one, its_content in elsewhere]
    if waiting:
        messages.append((envelope.with_recipients(tuple(waiting)), content, True))
    return [
        Copy(new_queue_id() if n else queue_id, one, its_content, local)
        for n, (one, its_content, local) in enumerate(messages)
    ]


def _write_forwarded(queue_id: QueueId, copies: Sequence[Copy]) -> None:
    for copy in copies:
        if not copy.local:
            metrics.add("mta_messages_forwarded")
            _log.info(
                "message_forwarded",
                session=copy.envelope.origin.session,
                queue_id=copy.queue_id,
                copy_of=queue_id if copy.queue_id != queue_id else "",
                mail_from=str(copy.envelope.mail_from or "<>"),
                rcpt_to=",".join(str(r.address) for r in copy.envelope.recipients),
                size_octets=copy.content.size_octets,
            )


def _result(
    queue_id: QueueId,
    group: _Group,
    failed: dict[int, Outcome],
    retried: dict[int, LocalRecipient],
    trouble: SmtpError | None,
) -> Reply | SmtpError:
    """The reply of one group after everything was tried."""
    waiting = [r for r in group.local if r.account.id in failed]
    if trouble is not None and (group.external or any(r.account.id in retried for r in waiting)):
        return trouble
    hopeless = [failed[r.account.id] for r in waiting if r.account.id not in retried]
    if hopeless:
        return refusal(hopeless)
    return replies.OK.with_text(f"OK, queued as {queue_id}")
