"""Local delivery: accounts → mailboxes, and what came of it.

Resolves nothing: it gets accounts and the addresses they are reached by. Every recipient's copy begins with its own
Return-Path and Delivered-To, so each is a file of its own. Mail goes to INBOX, junk (`mail.spam.is_junk`) to the folder
for it, which is made if need be; a subaddress does not choose a folder. The mark is a field of the message, so it holds
for a copy that comes from the queue as well. What came from elsewhere unmarked is shown to the recipient's own filter.

A delivery never raises for one account: each gets an `Outcome`. What the store can't do now is a temporary failure;
only a mailbox that can't exist (its name is impossible on disk) is one for good.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pymx import log, metrics
from pymx.accounts.account import Account
from pymx.mail import header, spam, trace
from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.errors import InvalidName, OverQuota, StorageFull, StoreError
from pymx.ms.owner import Owner
from pymx.spool import Content

_log = log.get("mda")

INBOX = "INBOX"


class Failure(enum.Enum):
    """Why a message is not in a mailbox."""

    OVER_QUOTA = "over_quota"
    STORAGE_FULL = "storage_full"
    UNAVAILABLE = "unavailable"
    IMPOSSIBLE = "impossible"  # never will be: retrying is no use

    @property
    def is_permanent(self) -> bool:
        return self is Failure.IMPOSSIBLE


class MailboxUnavailable(Exception):
    """A mailbox can't take a message; `failure` says why, the text is for the log."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class LocalRecipient:
    """An account, and the address that the message's Delivered-To names."""

    account: Account
    delivered_to: Address


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one account's copy: stored (`mailbox`, `uid`), or `failure` with the reason for the log."""

    recipient: LocalRecipient
    mailbox: str = ""
    uid: int = 0
    failure: Failure | None = None
    reason: str = ""

    @property
    def is_stored(self) -> bool:
        return self.failure is None


class Mailboxes(Protocol):
    """What is used of `ms.store.Store`."""

    async def deliver(self, deliveries: Sequence[Delivery]) -> list[Delivered | StoreError]: ...

    async def check_quota(self, owner: Owner, octets: int) -> None: ...


class Judge(Protocol):
    """What is used of `junk.filter.Filter`."""

    async def judge(self, accounts: Sequence[str], content: Content) -> Sequence[spam.Opinion | None]: ...


class Mda:
    """The mail delivery agent over a message store. `judge` is each mailbox's own filter, if there is one."""

    def __init__(self, store: Mailboxes, *, junk_mailbox: str = "Junk", judge: Judge | None = None) -> None:
        self._store = store
        self._junk_mailbox = junk_mailbox
        self._judge = judge

    async def check(self, account: Account, octets: int) -> None:
        """Could `account` take a message of that size now? Raises MailboxUnavailable."""
        owner = _owner(account)
        if not owner.is_limited:
            return
        try:
            await self._store.check_quota(owner, octets)
        except StoreError as e:
            raise MailboxUnavailable(_failure(e), e.reason) from e

    async def deliver(
        self, queue_id: str, envelope: Envelope, content: Content, recipients: Sequence[LocalRecipient]
    ) -> list[Outcome]:
        """Deliver to every recipient, in parallel; one outcome each, in order. Durable at return."""
        if header.count(content.head, "return-path"):
            # RFC 5321 s. 4.4: ours is the only one; another would be taken for where bounces go
            content = content.with_head(header.remove(content.head, ["return-path"]))
        return_path = trace.return_path(envelope.mail_from)
        opinions = await self._opinions(envelope, content, recipients)
        deliveries = []
        for r, opinion in zip(recipients, opinions, strict=True):
            fields = return_path + trace.delivered_to(r.delivered_to)
            if opinion is not None:
                fields += spam.opinion_fields(opinion)
            junk = opinion.is_junk if opinion is not None else spam.is_junk(content.head)
            mailbox = self._junk_mailbox if junk else INBOX
            deliveries.append(Delivery(_owner(r.account), mailbox, content.prepended(fields), create=junk))
        results = await self._store.deliver(deliveries)
        outcomes = [_outcome(recipient, result) for recipient, result in zip(recipients, results, strict=True)]
        for outcome, opinion in zip(outcomes, opinions, strict=True):
            _write_line(queue_id, envelope, content, outcome, opinion)
        return outcomes

    async def _opinions(
        self, envelope: Envelope, content: Content, recipients: Sequence[LocalRecipient]
    ) -> Sequence[spam.Opinion | None]:
        """What each recipient's own filter thinks of mail from elsewhere that is not junk already."""
        is_foreign = envelope.origin.listener in (Listener.SMTP, Listener.LMTP) and not envelope.origin.account
        if self._judge is None or not is_foreign or spam.is_junk(content.head):
            return [None] * len(recipients)
        return await self._judge.judge([r.account.email for r in recipients], content)


def _owner(account: Account) -> Owner:
    return Owner(account.domain, account.local_part, account.quota_octets, account.quota_messages)


def _outcome(recipient: LocalRecipient, result: Delivered | StoreError) -> Outcome:
    if isinstance(result, StoreError):
        return Outcome(recipient, failure=_failure(result), reason=result.reason)
    return Outcome(recipient, mailbox=result.mailbox, uid=result.uid)


def _failure(error: StoreError) -> Failure:
    """The one table of store errors, as a delivery sees them. Unsure: temporary."""
    if isinstance(error, OverQuota):
        return Failure.OVER_QUOTA
    if isinstance(error, StorageFull):
        return Failure.STORAGE_FULL
    if isinstance(error, InvalidName):
        return Failure.IMPOSSIBLE
    return Failure.UNAVAILABLE


def _write_line(
    queue_id: str, envelope: Envelope, content: Content, outcome: Outcome, opinion: spam.Opinion | None
) -> None:
    fields = {
        "session": envelope.origin.session,
        "queue_id": queue_id,
        "account": outcome.recipient.account.email,
        "rcpt_to": str(outcome.recipient.delivered_to),
        "mail_from": str(envelope.mail_from or "<>"),
    }
    if outcome.failure is None:
        metrics.add("mda_messages_delivered")
        _log.info(
            "message_delivered",
            **fields,
            mailbox=outcome.mailbox,
            uid=outcome.uid,
            size_octets=content.size_octets,
            reason=opinion.reason if opinion is not None else "",
        )
    else:
        metrics.add("mda_deliveries_failed")
        _log.warning("local_delivery_failed", **fields, verdict=outcome.failure.value, reason=outcome.reason)
