"""Mail for aliases that lead elsewhere, over real listeners into a real queue; the checks are off or made up."""

from __future__ import annotations

import smtplib
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.flow import HOSTNAME, PASSWORD, MailIn, mail_in
from support.tls import TlsFiles

from pymx.accounts.senders import Senders, SendersUnavailable
from pymx.checks.check import Facts, Stage
from pymx.checks.pipeline import Pipeline
from pymx.checks.verdict import Level, Verdict
from pymx.config.model import Forwarding
from pymx.mail import header
from pymx.mail.address import parse_address
from pymx.mail.envelope import Envelope
from pymx.mailauth.arc.verify import ArcResult
from pymx.mailauth.dkim import keys
from pymx.mta.bounce import Bounce
from pymx.mta.forward import Forwarder, is_automatic
from pymx.proto.smtp.reply import SmtpError
from pymx.queue.item import Copy, Outcome, QueueId, Report, Result
from pymx.spool import Content

MESSAGE = "From: x@remote.test\r\nTo: out@example.test\r\nSubject: hi\r\nX-Spam-Flag: NO\r\n\r\n..body\r\n"
DAY_S = 86400


class MadeUp:
    """A check whose verdict the test decides."""

    name = "arc"
    stages = (Stage.DATA,)
    needs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.level = Level.ACCEPT

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        facts.arc = ArcResult("none")
        return Verdict(self.level, reason="as the test wants it")

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict()

    async def close(self) -> None:
        """Nothing is held."""


class Flow:
    def __init__(self, running: MailIn, forwarder: Forwarder, check: MadeUp, clock: list[float]) -> None:
        self.running = running
        self.forwarder = forwarder
        self.check = check
        self.clock = clock

    async def send(self, *to: str, sender: str = "x@remote.test", message: str = MESSAGE, port: str = "smtp") -> None:
        def run() -> None:
            with smtplib.SMTP("127.0.0.1", self.running.ports[port], "client.test") as client:
                client.sendmail(sender, to, message.encode())

        await self.running.blocking(run)

    async def refused(self, *to: str, **options: str) -> tuple[int, bytes]:
        try:
            await self.send(*to, **options)
        except smtplib.SMTPRecipientsRefused as e:
            return e.recipients[to[0]]
        except smtplib.SMTPDataError as e:
            return e.smtp_code, e.smtp_error if isinstance(e.smtp_error, bytes) else e.smtp_error.encode()
        raise AssertionError("nobody refused it")

    @property
    def queued(self) -> list[Copy]:
        return self.running.queued

    def only(self) -> Copy:
        (copy,) = self.queued
        return copy


@pytest.fixture
async def flow(tmp_path: Path, tls_files: TlsFiles) -> AsyncIterator[Flow]:
    """out@ leads to y@far.test, both@ to bob and z@far.test, many@ to y@, v@ and w@far.test."""
    check, clock = MadeUp(), [1_795_000_000.0]
    pipeline = Pipeline([check], hostname=HOSTNAME, timeout_s=20, junk_score=5)
    async with mail_in(tmp_path, tls=tls_files.server_context(), checks=pipeline) as running:
        for source, destinations in {
            "out": ["y@far.test"], "both": ["bob@example.test", "z@far.test"],
            "many": ["y@far.test", "v@far.test", "w@far.test"],
        }.items():  # fmt: skip
            running.registry.add_alias(f"{source}@example.test", destinations)
        running.registry.add_alias("out@other.test", ["u@far.test"])
        running.accounts.invalidate()
        keys.generate(tmp_path / "dkim", "example.test", "k", algorithm="ed25519")
        forwarder = Forwarder(
            running.accounts, Forwarding(), data_dir=tmp_path, hostname=HOSTNAME, clock=lambda: clock[0]
        )
        running.dispatch.forwarder = forwarder
        yield Flow(running, forwarder, check, clock)
        forwarder.close()
        await pipeline.close()


async def test_the_message_is_what_came_and_only_fields_are_put_in_front(flow: Flow) -> None:
    await flow.send("out@example.test")
    copy = flow.only()
    assert str(copy.envelope.mail_from).startswith("SRS0=")
    assert [str(r.address) for r in copy.envelope.recipients] == ["y@far.test"]
    assert copy.content.read().endswith(MESSAGE.encode())
    names = [f.name for f in header.iter_fields(copy.content.head)]
    assert names[:6] == [
        "received", "delivered-to", "arc-seal", "arc-message-signature", "arc-authentication-results",
        "authentication-results",
    ]  # fmt: skip


async def test_aliases_do_not_learn_of_each_other(flow: Flow) -> None:
    """Each has a message of its own, with the sender and the seal of its own domain; each destination gets one."""
    await flow.send("out@example.test", "many@example.test", "out@other.test")
    by_alias = {
        field.value.decode(): copy for copy in flow.queued if (field := header.first(copy.content.head, "delivered-to"))
    }
    assert {alias: [str(r.address) for r in c.envelope.recipients] for alias, c in by_alias.items()} == {
        "out@example.test": ["y@far.test"],
        "many@example.test": ["v@far.test", "w@far.test"],
        "out@other.test": ["u@far.test"],
    }
    other = by_alias["out@other.test"]
    assert other.envelope.mail_from
    assert other.envelope.mail_from.domain == "other.test"
    assert b"many@" not in other.content.read()
    assert header.count(other.content.head, "arc-seal") == 0  # that domain has no key
    assert len({copy.queue_id for copy in flow.queued}) == 3


@pytest.mark.parametrize(
    ("sender", "goes_as"),
    [("", None), ("carol@other.test", "carol@other.test"), ("bob@example.test", "bob@example.test")],
)
async def test_the_null_sender_and_our_own_domains_stay(sender: str, goes_as: str | None, flow: Flow) -> None:
    """Our SPF record covers them already."""
    await flow.send("out@example.test", sender=sender)
    mail_from = flow.only().envelope.mail_from
    assert (str(mail_from) if mail_from else None) == goes_as


async def test_what_users_send_to_an_alias_is_sent_as_theirs(flow: Flow, tls_files: TlsFiles) -> None:
    """No rewriting, no seal, and a failure is reported to them."""

    def run() -> None:
        context = tls_files.client_context()
        with smtplib.SMTP_SSL("localhost", flow.running.ports["submissions"], context=context) as client:
            client.login("alice@example.test", PASSWORD)
            client.sendmail("alice@example.test", ["both@example.test"], MESSAGE.replace("x@remote", "alice@example"))

    await flow.running.blocking(run)
    copy = flow.only()
    assert str(copy.envelope.mail_from) == "alice@example.test"
    assert header.count(copy.content.head, "arc-seal") == 0
    assert copy.envelope.recipients[0].notify == frozenset()


async def test_junk_stays_in_the_mailbox_of_the_alias(flow: Flow) -> None:
    flow.check.level = Level.JUNK
    await flow.send("both@example.test")
    assert flow.queued == []
    junk = flow.running.directory / "vmail" / "example.test" / "bob" / ".Junk"
    assert len([*junk.glob("new/*"), *junk.glob("cur/*")]) == 1


async def test_junk_that_has_nowhere_to_stay_is_refused_for_all(flow: Flow) -> None:
    """Nobody is told 250 for a message that goes nowhere."""
    flow.check.level = Level.JUNK
    code, text = await flow.refused("out@example.test", "alice@example.test")
    assert (code, text[:5]) == (550, b"5.7.1")
    assert flow.queued == []
    assert flow.running.mailbox("alice@example.test") == []


async def test_lmtp_has_a_reply_for_each(flow: Flow) -> None:
    """A mark by the server in front counts; what it did not mark is forwarded without a seal."""

    def run(message: str) -> list[int]:
        with smtplib.LMTP("127.0.0.1", flow.running.ports["lmtp"], "client.test") as client:
            client.ehlo()
            client.mail("x@remote.test")
            recipients = ["out@example.test", "both@example.test", "alice@example.test"]
            assert [client.rcpt(r)[0] for r in recipients] == [250] * 3
            client.putcmd("data")
            assert client.getreply()[0] == 354
            client.send(message.replace("\r\n.", "\r\n..").encode() + b".\r\n")
            return [client.getreply()[0] for _ in recipients]

    assert await flow.running.blocking(run, "X-Pymx-Junk: spam\r\n" + MESSAGE) == [550, 250, 250]
    assert flow.queued == []
    assert await flow.running.blocking(run, MESSAGE) == [250, 250, 250]
    assert [header.count(copy.content.head, "arc-seal") for copy in flow.queued] == [0, 0]
    assert all(str(copy.envelope.mail_from).startswith("SRS0=") for copy in flow.queued)


# --- loops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        "Delivered-To: out@example.test\r\n",
        "Delivered-To: other@x.test\r\nDelivered-To: OUT@example.test\r\n",
        f"Received: from a by {HOSTNAME} with ESMTP id 1; now\r\n" * 6,
        f"Received: from a\r\n\tby {HOSTNAME.upper()} id 2; now\r\n" * 6,
    ],
)
async def test_a_message_that_was_here_too_often_is_refused(fields: str, flow: Flow) -> None:
    assert (await flow.refused("out@example.test", message=fields + MESSAGE)) == (554, b"5.4.6 Routing loop detected")
    assert flow.queued == []


async def test_a_message_that_only_passed_is_no_loop(flow: Flow) -> None:
    """Through a list and back; a server whose name begins like ours; another alias of ours before."""
    fields = (
        f"Received: from a by {HOSTNAME} id 1; now\r\n" * 5 + f"Received: from a by {HOSTNAME}.evil id 1; now\r\n" * 9
    )
    await flow.send("out@example.test", message=fields + "Delivered-To: both@example.test\r\n" + MESSAGE)
    assert len(flow.queued) == 1


# --- the way back ---------------------------------------------------------------------------------------------------


async def test_the_bounce_of_a_rewritten_sender_goes_to_the_original_one(flow: Flow) -> None:
    await flow.send("out@example.test", sender="Original.Sender@remote.test")
    rewritten = str(flow.only().envelope.mail_from)
    flow.queued.clear()
    await flow.send(rewritten.lower(), sender="")
    copy = flow.only()
    assert copy.envelope.mail_from is None
    assert [str(r.address).lower() for r in copy.envelope.recipients] == ["original.sender@remote.test"]
    assert header.count(copy.content.head, "delivered-to") == 0
    flow.clock[0] += 22 * DAY_S
    assert (await flow.refused(rewritten, sender=""))[0] == 550


@pytest.mark.parametrize(
    ("field", "taken"), [("auto-replied; x", True), ("Auto-Generated", True), ("no", False), ("", False)]
)
async def test_only_programs_write_to_a_rewritten_sender(field: str, taken: bool, flow: Flow) -> None:
    """RFC 3834 s. 5. What is taken goes on with a rewritten sender of its own."""
    await flow.send("out@example.test")
    rewritten = str(flow.only().envelope.mail_from)
    flow.queued.clear()
    message = f"Auto-Submitted: {field}\r\n{MESSAGE}"
    assert is_automatic(message.encode()) is taken
    if taken:
        await flow.send(rewritten, message=message, sender="robot@third.test")
        assert "third.test=robot@example.test" in str(flow.only().envelope.mail_from)
    else:
        code, text = await flow.refused(rewritten, message=message, sender="robot@third.test")
        assert (code, text[:5]) == (550, b"5.7.1")
        assert flow.queued == []


@pytest.mark.parametrize(
    "address",
    ["SRS0=AAAA=AA=remote.test=x@example.test", "SRS0=x@example.test", "SRS1=AAAA=first.test==b@example.test"],
)
async def test_a_forged_one_is_unknown_even_under_a_catch_all(address: str, flow: Flow) -> None:
    flow.running.registry.add_alias("@example.test", ["alice@example.test"])
    flow.running.accounts.invalidate()
    code, text = await flow.refused(address, sender="")
    assert (code, text[:5]) == (550, b"5.1.1")


async def test_a_long_sender_is_remembered_and_forgotten_when_its_time_is_over(flow: Flow) -> None:
    sender = "v" * 60 + "@remote.test"
    await flow.send("out@example.test", sender=sender)
    rewritten = str(flow.only().envelope.mail_from)
    assert "=~=" in rewritten
    path = flow.running.directory / "forwarding.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await flow.forwarder.keep_house()
    assert await flow.forwarder.original(parse_address(rewritten)) == parse_address(sender)
    flow.clock[0] += 21 * DAY_S
    await flow.forwarder.keep_house()
    assert await flow.forwarder.original(parse_address(rewritten)) == parse_address(sender)
    flow.clock[0] += 2 * DAY_S
    await flow.forwarder.keep_house()
    with pytest.raises(SmtpError, match="expired"):
        await flow.forwarder.original(parse_address(rewritten))


async def test_without_a_secret_mail_waits_at_the_sender(flow: Flow) -> None:
    (flow.running.directory / "srs.secret").mkdir()
    assert (await flow.refused("out@example.test"))[0] == 451
    assert (await flow.refused("both@example.test"))[0] == 451
    assert flow.running.mailbox("bob@example.test") == []  # or it would have it twice after the next try
    await flow.send("alice@example.test")


# --- destinations that refuse ---------------------------------------------------------------------------------------


def report(copy: Copy, status: str, *, mx: str = "mx.far.test", proven: bool = True) -> Report:
    envelope = replace(copy.envelope, origin=replace(copy.envelope.origin, sender_proven=proven))
    outcomes = tuple(Outcome(r, Result.FAILED, status, f"550 {status} no", mx) for r in envelope.recipients)
    return Report(QueueId("Q1"), envelope, copy.content, False, 0.0, outcomes, 1.0)


async def test_a_destination_that_is_unknown_is_refused_at_once_for_a_while(flow: Flow) -> None:
    """Only if the alias leads nowhere else."""
    await flow.send("out@example.test")
    await flow.send("both@example.test")
    for copy in flow.queued:
        await flow.forwarder.note_refusals(report(copy, "5.1.1"))
    code, text = await flow.refused("out@example.test")
    assert (code, text[:5]) == (550, b"5.1.1")
    assert b"far.test" not in text
    await flow.send("both@example.test")
    await flow.send("many@example.test")  # y@ was refused, the others were not
    flow.clock[0] += 3600
    await flow.send("out@example.test")


@pytest.mark.parametrize(("status", "mx"), [("5.7.1", "mx.far.test"), ("5.2.2", "mx.far.test"), ("5.1.1", "")])
async def test_other_refusals_are_about_one_message(status: str, mx: str, flow: Flow) -> None:
    await flow.send("out@example.test")
    await flow.forwarder.note_refusals(report(flow.only(), status, mx=mx))
    await flow.send("out@example.test")


@pytest.mark.parametrize(
    ("alias", "sender", "proven", "told"),
    [
        ("out", "x@remote.test", True, ["x@remote.test"]),
        ("out", "x@remote.test", False, [f"postmaster@{HOSTNAME}"]),
        ("out", "carol@other.test", True, ["carol@other.test"]),
        ("out", "carol@other.test", False, [f"postmaster@{HOSTNAME}"]),
        ("out", "", True, []),
        ("both", "x@remote.test", True, []),
        ("both", "x@remote.test", False, []),
    ],
)
async def test_who_is_told_that_a_forward_failed(
    alias: str, sender: str, proven: bool, told: Sequence[str], flow: Flow
) -> None:
    """Invariant: never a stranger whose domain nothing had proven, and nobody when a mailbox here has it."""
    await flow.send(f"{alias}@example.test", sender=sender)
    submitted: list[tuple[Envelope, Content]] = []

    async def submit(envelope: Envelope, content: Content) -> None:
        submitted.append((envelope, content))

    bounce = Bounce(submit, hostname=HOSTNAME)
    bounce.original = flow.forwarder.original
    await bounce.gave_up(report(flow.only(), "5.7.1", proven=proven))
    assert [str(r.address) for envelope, _ in submitted for r in envelope.recipients] == told
    for envelope, content in submitted:
        assert envelope.mail_from is None
        assert f"To: {told[0]}".encode() in content.head
        assert (b"..body" in content.read()) is ("postmaster" in told[0])


# --- the store -------------------------------------------------------------------------------------------------------


async def test_senders_are_shared_and_survive(tmp_path: Path) -> None:
    path = tmp_path / "forwarding.sqlite"
    one, two = Senders(path, max_senders=10), Senders(path, max_senders=10)
    await one.keep("T", "long@remote.test", 5)
    assert await two.find("T") == "long@remote.test"
    await two.keep("T", "long@remote.test", 9)
    await one.purge(8, 0.0)
    one.close()
    two.close()
    three = Senders(path, max_senders=10)
    assert await three.find("T") == "long@remote.test"
    assert await three.find("U") is None
    three.close()


async def test_the_oldest_senders_go_when_there_are_too_many(tmp_path: Path) -> None:
    senders = Senders(tmp_path / "forwarding.sqlite", max_senders=3)
    for day in range(10):
        await senders.keep(f"T{day}", f"{day}@remote.test", day)
    await senders.purge(0, 0.0)
    assert [day for day in range(10) if await senders.find(f"T{day}")] == [7, 8, 9]
    senders.close()


async def test_a_damaged_store_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "forwarding.sqlite"
    path.write_bytes(b"not a database, but long enough to look like a page of one" * 100)
    senders = Senders(path, max_senders=3)
    await senders.keep("T", "x@remote.test", 1)
    assert await senders.find("T") == "x@remote.test"
    assert path.with_name("forwarding.sqlite.damaged").exists()
    senders.close()


async def test_a_store_that_cannot_be_written_is_a_temporary_trouble(tmp_path: Path) -> None:
    senders = Senders(tmp_path / "missing" / "forwarding.sqlite", max_senders=3)
    with pytest.raises(SendersUnavailable):
        await senders.find("T")
    senders.close()
