"""The only door: what is stored or queued before the 250, and what everybody is told when something can't be."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pymx.accounts.account import Account, AliasLoop, DirectoryUnavailable, Resolution, UnknownRecipient
from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mda.deliver import Mda
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.errors import InvalidName, OverQuota, StorageFull, StoreError, Unavailable
from pymx.ms.owner import Owner
from pymx.mta.dispatch import Dispatch, Target
from pymx.proto.smtp.reply import SmtpError
from pymx.queue.item import Copy, Outcome, QueueId, Report, Result
from pymx.queue.queue import QueueFull
from pymx.spool import Content

MESSAGE = Content.from_bytes(b"From: x@remote.test\r\nSubject: hi\r\n\r\nbody\r\n")


def account(email: str) -> Account:
    local_part, _, domain = email.partition("@")
    return Account(hash(email), email, domain, local_part, 0)


@dataclass
class Accounts:
    """Accounts and aliases in two dicts; domain home.test is ours."""

    users: set[str] = field(default_factory=lambda: {"alice@home.test", "bob@home.test", "root@home.test"})
    aliases: dict[str, list[str]] = field(default_factory=lambda: {"postmaster@home.test": ["root@home.test"]})
    down: bool = False

    async def account(self, email: str) -> Account | None:
        if self.down:
            raise DirectoryUnavailable("down")
        return account(email) if email in self.users else None

    async def is_local(self, domain: str) -> bool:
        return domain == "home.test"

    async def resolve(self, address: Address) -> Resolution:
        if address.local_part == "loop":
            raise AliasLoop("loop")
        names = self.aliases.get(address.key) or [address.without_detail("+").key]
        found = tuple(account(name) for name in names if name in self.users)
        external = tuple(parse_address(name) for name in names if not name.endswith("@home.test"))
        if not found and not external:
            raise UnknownRecipient(str(address))
        return Resolution(found, external)


@dataclass
class Mailboxes:
    """Mail by account; `broken` maps an account to what the store says instead of taking it."""

    mail: dict[str, list[bytes]] = field(default_factory=dict)
    broken: dict[str, StoreError] = field(default_factory=dict)
    gate: asyncio.Event | None = None

    async def deliver(self, deliveries: Sequence[Delivery]) -> list[Delivered | StoreError]:
        if self.gate:
            await self.gate.wait()
        return [self._take(d) for d in deliveries]

    def _take(self, delivery: Delivery) -> Delivered | StoreError:
        email = delivery.owner.email
        if email in self.broken:
            return self.broken[email]
        box = self.mail.setdefault(email, [])
        box.append(delivery.content.read())
        return Delivered(delivery.mailbox, 1, len(box))

    async def check_quota(self, owner: Owner, octets: int) -> None:
        if owner.email in self.broken:
            raise self.broken[owner.email]


@dataclass
class Waiting:
    """The queue: commits in order."""

    commits: list[list[Copy]] = field(default_factory=list)
    failure: Exception | None = None
    gate: asyncio.Event | None = None

    async def enqueue(self, copies: Sequence[Copy]) -> list[QueueId]:
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        self.commits.append(list(copies))
        return [copy.queue_id for copy in copies]


class Flow:
    def __init__(self) -> None:
        self.accounts, self.mailboxes, self.queue = Accounts(), Mailboxes(), Waiting()
        self.dispatch = Dispatch(self.accounts, Mda(self.mailboxes), self.queue, hostname="mx.home.test")

    async def targets(self, *addresses: str) -> list[Target]:
        recipients = [Recipient(parse_address(a)) for a in addresses]
        return [Target(r, await self.dispatch.resolve(r.address)) for r in recipients]

    def envelope(self, *addresses: str, listener: Listener = Listener.SMTP) -> Envelope:
        origin = Origin(listener, "S1", "192.0.2.9", "client.test", tls="TLSv1.3 TLS_AES_256_GCM_SHA384")
        recipients = tuple(Recipient(parse_address(a)) for a in addresses)
        return Envelope(Address("sender", "remote.test"), recipients, origin)

    async def send(self, *addresses: str) -> str:
        accepted = await self.dispatch.accept(self.envelope(*addresses), MESSAGE, await self.targets(*addresses))
        return accepted.reply.text

    async def send_each(self, *addresses: str) -> list[int]:
        envelope = self.envelope(*addresses, listener=Listener.LMTP)
        replies = await self.dispatch.accept_each(envelope, MESSAGE, await self.targets(*addresses))
        return [reply.code for reply in replies]

    def queued(self) -> list[tuple[list[str], bool]]:
        return [
            ([str(r.address) for r in copy.envelope.recipients], copy.local)
            for commit in self.queue.commits
            for copy in commit
        ]


@pytest.fixture
def flow() -> Flow:
    return Flow()


async def test_a_mailbox_gets_the_message_with_its_trace_fields(flow: Flow) -> None:
    """RFC 5321 s. 4.4, RFC 9228."""
    text = await flow.send("Alice+shop@home.test")
    queue_id = text.rpartition(" ")[2]
    lines = flow.mailboxes.mail["alice@home.test"][0].split(b"\r\n")
    assert lines[0] == b"Return-Path: <sender@remote.test>"
    assert lines[1] == b"Delivered-To: Alice+shop@home.test"
    assert lines[2].startswith(b"Received: from client.test ([192.0.2.9])")
    received = b" ".join(line.strip() for line in lines[2:6])
    assert b"with ESMTPS id " + queue_id.encode() + b" for <Alice+shop@home.test>;" in received
    assert flow.queue.commits == []


async def test_one_mailbox_reached_twice_gets_one_copy(flow: Flow) -> None:
    flow.accounts.aliases["info@home.test"] = ["alice@home.test", "bob@home.test"]
    await flow.send("info@home.test", "alice@home.test")
    assert {name: len(mail) for name, mail in flow.mailboxes.mail.items()} == {
        "alice@home.test": 1,
        "bob@home.test": 1,
    }
    assert b"Delivered-To: alice@home.test\r\n" in flow.mailboxes.mail["alice@home.test"][0]
    assert b" for <" not in flow.mailboxes.mail["alice@home.test"][0]


async def test_aliases_that_lead_outside_are_queued_before_the_250(flow: Flow) -> None:
    flow.accounts.aliases["info@home.test"] = ["alice@home.test", "x@far.test", "y@far.test"]
    await flow.send("info@home.test", "bob@home.test")
    assert flow.queued() == [(["x@far.test", "y@far.test"], False)]
    (copy,) = flow.queue.commits[0]
    assert copy.envelope.recipients[0].orcpt == "rfc822;info@home.test"
    assert copy.content.read().startswith(b"Received: ")


@pytest.mark.parametrize(
    ("error", "code", "enhanced"),
    [
        (OverQuota("full"), 452, "4.2.2"),
        (StorageFull("no space"), 452, "4.3.1"),
        (Unavailable("disk"), 451, "4.3.0"),
        (InvalidName("bad"), 550, "5.2.1"),
    ],
)
async def test_when_nobody_can_be_stored_nothing_is_queued(
    error: StoreError, code: int, enhanced: str, flow: Flow
) -> None:
    flow.mailboxes.broken = {"alice@home.test": error, "bob@home.test": error}
    with pytest.raises(SmtpError) as refused:
        await flow.send("alice@home.test", "bob@home.test")
    assert (refused.value.reply.code, refused.value.reply.enhanced) == (code, enhanced)
    assert flow.queue.commits == []


async def test_temporary_beats_permanent_when_nobody_can_be_stored(flow: Flow) -> None:
    flow.mailboxes.broken = {"alice@home.test": InvalidName("bad"), "bob@home.test": Unavailable("disk")}
    with pytest.raises(SmtpError) as refused:
        await flow.send("alice@home.test", "bob@home.test")
    assert refused.value.reply.code == 451


async def test_who_can_not_be_stored_is_queued_in_the_same_commit(flow: Flow) -> None:
    """The copies that wait for a mailbox and those for elsewhere become durable together."""
    flow.accounts.aliases["info@home.test"] = ["x@far.test"]
    flow.mailboxes.broken = {"bob@home.test": OverQuota("full")}
    await flow.send("alice@home.test", "bob+list@home.test", "info@home.test")
    assert len(flow.queue.commits) == 1
    assert flow.queued() == [(["x@far.test"], False), (["bob+list@home.test"], True)]
    remote, local = flow.queue.commits[0]
    assert remote.queue_id != local.queue_id
    assert local.envelope.recipients[0].orcpt == ""


async def test_with_somebody_elsewhere_all_mailboxes_may_fail(flow: Flow) -> None:
    flow.accounts.aliases["info@home.test"] = ["x@far.test", "alice@home.test"]
    flow.mailboxes.broken = {"alice@home.test": Unavailable("disk")}
    await flow.send("info@home.test")
    assert flow.queued() == [(["x@far.test"], False), (["alice@home.test"], True)]


@pytest.mark.parametrize("slow", ["mailboxes", "queue"])
async def test_no_250_before_everything_is_durable(slow: str, flow: Flow) -> None:
    """Neither the mailbox's sync nor the queue's commit may still be under way."""
    flow.accounts.aliases["info@home.test"] = ["x@far.test", "alice@home.test"]
    gate = asyncio.Event()
    (flow.mailboxes if slow == "mailboxes" else flow.queue).gate = gate
    sending = asyncio.create_task(flow.send("info@home.test"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sending.done()
    gate.set()
    await sending
    assert flow.queued()
    assert flow.mailboxes.mail


@pytest.mark.parametrize("failure", [QueueFull(), OSError(28, "No space left on device")])
async def test_no_250_when_the_queue_can_not_take_its_part(failure: Exception, flow: Flow) -> None:
    flow.accounts.aliases["info@home.test"] = ["x@far.test", "alice@home.test"]
    flow.queue.failure = failure
    with pytest.raises(SmtpError) as refused:
        await flow.send("info@home.test")
    assert refused.value.reply.code == 452


async def test_lmtp_answers_for_each_recipient(flow: Flow) -> None:
    """RFC 2033 s. 4.2: who fails is the client's to retry, and is not queued."""
    flow.accounts.users.add("carol@home.test")
    flow.accounts.aliases["team@home.test"] = ["bob@home.test", "carol@home.test"]
    flow.mailboxes.broken = {"bob@home.test": OverQuota("full")}
    assert await flow.send_each("alice@home.test", "bob@home.test") == [250, 452]
    assert flow.queue.commits == []
    assert await flow.send_each("alice@home.test", "team@home.test") == [250, 250]
    assert flow.queued() == [(["bob@home.test"], True)]


async def test_lmtp_queue_trouble_is_told_only_to_those_it_concerns(flow: Flow) -> None:
    flow.accounts.aliases["far@home.test"] = ["x@far.test"]
    flow.queue.failure = QueueFull()
    assert await flow.send_each("alice@home.test", "far@home.test", "bob@home.test") == [250, 452, 250]


@pytest.mark.parametrize(("address", "code"), [("nobody@home.test", 550), ("loop@home.test", 451)])
async def test_who_can_not_be_resolved_is_refused(address: str, code: int, flow: Flow) -> None:
    with pytest.raises(SmtpError) as refused:
        await flow.dispatch.resolve(parse_address(address))
    assert refused.value.reply.code == code


async def queued(flow: Flow, *addresses: str) -> list[Result]:
    outcomes = await flow.dispatch.deliver_queued(QueueId("Q1"), flow.envelope(*addresses), MESSAGE)
    assert [str(o.recipient.address) for o in outcomes] == list(addresses)
    return [outcome.result for outcome in outcomes]


async def test_a_queued_copy_reaches_its_mailbox_later(flow: Flow) -> None:
    flow.mailboxes.broken = {"bob@home.test": OverQuota("full")}
    assert await queued(flow, "alice+x@home.test", "bob@home.test") == [Result.DELIVERED, Result.DEFERRED]
    assert b"Delivered-To: alice+x@home.test\r\n" in flow.mailboxes.mail["alice@home.test"][0]
    flow.mailboxes.broken = {}
    assert await queued(flow, "bob@home.test") == [Result.DELIVERED]


async def test_a_queued_copy_waits_while_the_directory_is_down(flow: Flow) -> None:
    flow.accounts.down = True
    assert await queued(flow, "alice@home.test") == [Result.DEFERRED]


async def test_what_no_mailbox_will_ever_take_goes_to_the_postmaster(flow: Flow) -> None:
    """Invariant: no DSN for a local failure after the 250, the sender may be forged."""
    assert await queued(flow, "gone@home.test", "alice@home.test") == [Result.DELIVERED, Result.DELIVERED]
    (lost,) = flow.mailboxes.mail["root@home.test"]
    assert b"X-Pymx-Undeliverable: gone@home.test; the account is gone\r\n" in lost
    assert lost.endswith(b"Subject: hi\r\n\r\nbody\r\n")


async def test_it_stays_queued_while_the_postmaster_can_not_be_reached(flow: Flow) -> None:
    flow.mailboxes.broken = {"root@home.test": StorageFull("full")}
    assert await queued(flow, "gone@home.test") == [Result.DEFERRED]


async def test_a_postmaster_elsewhere_gets_it_through_the_queue(flow: Flow) -> None:
    flow.accounts.aliases["postmaster@home.test"] = ["admin@far.test"]
    assert await queued(flow, "gone@home.test") == [Result.DELIVERED]
    assert flow.queued() == [(["admin@far.test"], False)]


async def test_a_notice_made_here_is_delivered_or_queued(flow: Flow) -> None:
    envelope = Envelope(None, (Recipient(parse_address("alice@home.test")), Recipient(parse_address("x@far.test"))))
    await flow.dispatch.submit(envelope, MESSAGE)
    head = flow.mailboxes.mail["alice@home.test"][0]
    assert head.startswith(b"Return-Path: <>\r\n")
    assert flow.queued() == [(["x@far.test"], False)]
    with pytest.raises(SmtpError):
        await flow.dispatch.submit(Envelope(None, (Recipient(parse_address("nobody@home.test")),)), MESSAGE)


async def test_a_submitted_message_does_not_tell_where_its_sender_is(flow: Flow) -> None:
    envelope = flow.envelope("alice@home.test", listener=Listener.SUBMISSION)
    await flow.dispatch.accept(envelope, MESSAGE, await flow.targets("alice@home.test"))
    stored = flow.mailboxes.mail["alice@home.test"][0]
    assert b"192.0.2.9" not in stored
    assert b"client.test" not in stored
    assert b"Received: from mx.home.test (using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384) by" in stored.replace(
        b"\r\n\t", b" "
    )


async def test_a_user_of_ours_is_told_by_dsn_instead(flow: Flow) -> None:
    """The sender is known to be true, so it is no backscatter."""
    envelope = flow.envelope("gone@home.test")
    envelope = dataclasses.replace(envelope, origin=dataclasses.replace(envelope.origin, account="alice@home.test"))
    outcomes = await flow.dispatch.deliver_queued(QueueId("Q1"), envelope, MESSAGE)
    assert [outcome.result for outcome in outcomes] == [Result.FAILED]
    assert flow.mailboxes.mail == {}


def report(flow: Flow, *, account: str = "", local: bool = True) -> Report:
    envelope = flow.envelope("alice@home.test", "bob@home.test")
    envelope = dataclasses.replace(envelope, origin=dataclasses.replace(envelope.origin, account=account))
    outcome = Outcome(envelope.recipients[1], Result.FAILED, "4.2.2", "Mailbox is full")
    return Report(QueueId("Q1"), envelope, MESSAGE, local, 0.0, (outcome,), 0.0)


async def test_a_copy_that_waited_too_long_goes_to_the_postmaster_whole(flow: Flow) -> None:
    assert await flow.dispatch.gave_up(report(flow))
    (lost,) = flow.mailboxes.mail["root@home.test"]
    assert b"X-Pymx-Undeliverable: bob@home.test; Mailbox is full\r\n" in lost
    assert lost.endswith(b"body\r\n")
    assert not await flow.dispatch.gave_up(report(flow, account="alice@home.test"))
    assert not await flow.dispatch.gave_up(report(flow, local=False))


async def test_a_user_hears_of_a_delivery_he_asked_about(flow: Flow) -> None:
    """RFC 3461 s. 4.1: NOTIFY=SUCCESS; only what is in a mailbox now, and only to our own users."""
    told: list[Report] = []

    async def delivered(report: Report) -> None:
        told.append(report)

    flow.dispatch.delivered = delivered
    flow.mailboxes.broken = {"bob@home.test": OverQuota("full")}
    flow.accounts.users.add("carol@home.test")
    asked = frozenset({"SUCCESS"})
    names = {"alice@home.test": asked, "bob@home.test": asked, "carol@home.test": frozenset[str]()}
    targets = [
        Target(Recipient(parse_address(name), notify), await flow.dispatch.resolve(parse_address(name)))
        for name, notify in names.items()
    ]
    envelope = flow.envelope(*names)
    await flow.dispatch.accept(envelope, MESSAGE, targets)
    assert told == []
    envelope = dataclasses.replace(envelope, origin=dataclasses.replace(envelope.origin, account="alice@home.test"))
    await flow.dispatch.accept(envelope, MESSAGE, targets)
    assert [[str(o.recipient.address) for o in report.outcomes] for report in told] == [["alice@home.test"]]
    # the queue reports on the one that waits
    assert flow.queue.commits[-1][0].envelope.recipients[0].notify == asked
