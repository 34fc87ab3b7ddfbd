"""Who is told what when mail does not arrive; the reports read by the standard library."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage, Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail import dsn
from pymx.mail.address import Address, parse_address
from pymx.mail.dsn import Kind, Notice, Status
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.mta.bounce import Bounce
from pymx.queue.item import Outcome, QueueId, Report, Result
from pymx.spool import Content

HEAD = b"From: alice@example.test\r\nSubject: the original\r\nMessage-ID: <1@example.test>\r\n"
POSTMASTER = Address("postmaster", "mx.ours.test")


class Desk:
    """Takes what is submitted."""

    def __init__(self) -> None:
        self.taken: list[tuple[Envelope, Content]] = []

    async def submit(self, envelope: Envelope, content: Content) -> None:
        self.taken.append((envelope, content))

    @property
    def only(self) -> tuple[Envelope, EmailMessage]:
        ((envelope, content),) = self.taken
        return envelope, email.message_from_bytes(content.read(), policy=email.policy.default)  # type: ignore[return-value]


def report(
    *outcomes: tuple[str, str, str], notify: frozenset[str] = frozenset(), mail_from: Address | None = None,
    account: str = "alice@example.test", local: bool = False, listener: Listener = Listener.SUBMISSION,
    null_sender: bool = False, body: bytes = b"\r\nthe text\r\n", **envelope: object,
) -> Report:  # fmt: skip
    sender = None if null_sender else mail_from or Address("alice", "example.test")
    made = [
        Outcome(
            Recipient(parse_address(to), notify, f"rfc822;orig-{to}" if to.isascii() else ""),
            Result.FAILED, status, reply, "mx.far.test" if reply[:1].isdigit() and reply[3:4] == " " else "",
        )
        for to, status, reply in outcomes
    ]  # fmt: skip
    return Report(
        QueueId("QID1"),
        Envelope(sender, tuple(o.recipient for o in made), Origin(listener, account=account), **envelope),  # type: ignore[arg-type]
        Content(HEAD, body),
        local,
        1_700_000_000.0,
        tuple(made),
        1_700_432_000.0,
    )


def bounce(desk: Desk) -> Bounce:
    return Bounce(desk.submit, hostname="mx.ours.test")


def groups(message: Message) -> list[Message]:
    """The groups of fields of the message/delivery-status part."""
    (_, status, _) = message.iter_parts()  # type: ignore[attr-defined]
    assert status.get_content_type() == "message/delivery-status"
    return list(status.get_payload())


async def test_a_failure_is_reported_to_the_sender_that_logged_in() -> None:
    """RFC 3464: three parts; RFC 3461: original recipient and envelope id; a sentence for people on top."""
    desk = Desk()
    await bounce(desk).gave_up(
        report(("bob@far.test", "5.1.1", "550 5.1.1 no such user"), ("eve@far.test", "5.2.2", "552 full"), envid="E 1")
    )
    envelope, message = desk.only
    assert (envelope.mail_from, [str(r.address) for r in envelope.recipients]) == (None, ["alice@example.test"])
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["To"] == "alice@example.test"
    text, _, original = message.iter_parts()
    said = text.get_content()
    assert said.startswith("Your message could not be delivered")
    assert "<bob@far.test>" in said
    assert "The address does not exist" in said
    assert "mx.far.test said: 550 5.1.1 no such user" in said
    about, bob, eve = groups(message)
    assert (about["Reporting-MTA"], about["Original-Envelope-Id"]) == ("dns; mx.ours.test", "E 1")
    assert about["Arrival-Date"].startswith("Tue, 14 Nov 2023 22:13:20")
    assert dict(bob.items()) == {
        "Original-Recipient": "rfc822; orig-bob@far.test",
        "Final-Recipient": "rfc822; bob@far.test",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.far.test",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
    }
    assert eve["Status"] == "5.2.2"
    assert original.get_content_type() == "text/rfc822-headers"
    assert b"Subject: the original" in original.get_payload(decode=True)
    assert b"the text" not in desk.taken[0][1].read()


async def test_mail_made_here_that_wants_no_notice_gets_none() -> None:
    """RFC 3461 s. 4.1, NOTIFY=NEVER: a report for another server that can't be delivered is nobody's business here."""
    desk = Desk()
    failed = report(
        ("rua@far.test", "5.1.1", "550 5.1.1 no"), notify=frozenset({"NEVER"}), listener=Listener.LOCAL, account="",
        mail_from=POSTMASTER,
    )  # fmt: skip
    await bounce(desk).gave_up(failed)
    assert not desk.taken


@pytest.mark.parametrize(
    ("ret", "octets", "whole"), [("FULL", 10, True), ("HDRS", 10, False), ("FULL", 100_000, False)]
)
async def test_the_content_is_returned_when_asked_for_and_not_too_large(ret: str, octets: int, whole: bool) -> None:
    """RFC 3461 s. 4.3; bounded."""
    desk = Desk()
    body = b"\r\n" + b"the text\r\n" * (octets // 10)
    await bounce(desk).gave_up(report(("b@far.test", "5.1.1", "550 no"), ret=ret, body=body))
    _, message = desk.only
    *_, original = message.iter_parts()
    assert original.get_content_type() == ("message/rfc822" if whole else "text/rfc822-headers")
    assert (b"the text" in desk.taken[0][1].read()) == whole
    assert desk.taken[0][1].size_octets < 100_000


@pytest.mark.parametrize(
    ("notify", "failed", "delayed", "delivered"),
    [
        (frozenset(), 1, 1, 0),
        (frozenset({"NEVER"}), 0, 0, 0),
        (frozenset({"SUCCESS"}), 0, 0, 1),
        (frozenset({"FAILURE"}), 1, 0, 0),
        (frozenset({"DELAY"}), 0, 1, 0),
        (frozenset({"SUCCESS", "FAILURE", "DELAY"}), 1, 1, 1),
    ],
)
async def test_notify_is_honoured(notify: frozenset[str], failed: int, delayed: int, delivered: int) -> None:
    """RFC 3461 s. 4.1."""
    counts = []
    for method in ("gave_up", "delayed", "delivered"):
        desk = Desk()
        one = report(("b@far.test", "5.1.1", "550 no"), notify=notify)
        made = bounce(desk)
        await {"gave_up": made.gave_up, "delayed": made.delayed, "delivered": made.delivered}[method](one)
        counts.append(len(desk.taken))
    assert counts == [failed, delayed, delivered]


async def test_strangers_are_never_sent_a_report() -> None:
    """No backscatter: their MAIL FROM may be forged. The postmaster is told of failures, nobody of the rest."""
    desk = Desk()
    one = report(
        ("b@far.test", "5.1.1", "550 no"), account="", listener=Listener.SMTP, mail_from=Address("x", "y.test")
    )
    await bounce(desk).gave_up(one)
    await bounce(desk).delayed(one)
    await bounce(desk).delivered(one)
    envelope, _ = desk.only
    assert [r.address for r in envelope.recipients] == [POSTMASTER]


async def test_there_is_no_report_about_a_report() -> None:
    """RFC 5321 s. 6.1. Somebody's bounce that can't be stored here goes to the postmaster."""
    desk = Desk()
    for listener, local in ((Listener.LOCAL, False), (Listener.LOCAL, True), (Listener.SMTP, False)):
        one = report(("b@far.test", "5.1.1", "550 no"), null_sender=True, account="", local=local, listener=listener)
        await bounce(desk).gave_up(one)
    assert desk.taken == []
    stuck = report(("b@far.test", "5.2.0", "no"), null_sender=True, account="", local=True, listener=Listener.SMTP)
    await bounce(desk).gave_up(stuck)
    assert desk.only[0].recipients[0].address == POSTMASTER


async def test_a_delay_says_until_when_it_is_tried() -> None:
    """RFC 3464 s. 2.3.9: Will-Retry-Until."""
    desk = Desk()
    await bounce(desk).delayed(report(("b@far.test", "4.4.1", "connection refused")))
    _, message = desk.only
    _, bob = groups(message)
    assert (bob["Action"], bob["Will-Retry-Until"]) == ("delayed", "Sun, 19 Nov 2023 22:13:20 +0000")
    assert bob["Diagnostic-Code"] == "X-pymx; connection refused"
    assert "Remote-MTA" not in bob
    assert "need not send it again" in next(message.iter_parts()).get_content()


async def test_internationalized_addresses_make_a_global_report() -> None:
    """RFC 6533."""
    desk = Desk()
    await bounce(desk).gave_up(report(("jürgen@far.test", "5.6.7", "no SMTPUTF8")))
    envelope, message = desk.only
    assert message.get_param("report-type") == "global-delivery-status"
    assert "Final-Recipient: utf-8; jürgen@far.test".encode() in desk.taken[0][1].read()
    assert envelope.body == "8BITMIME"


def notice(reply: str, head: bytes, body: bytes | None, to: str = "a@b.test") -> Notice:
    return Notice(
        "mx.test", "<m@mx.test>", 1e9, 1e9, Address("a", "b.test"),
        [Status(Recipient(parse_address(to)), Kind.FAILED, "5.1.1", reply, "mx.far.test")], head, body, "E1", "Q", 2e9,
    )  # fmt: skip


@given(st.text(), st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_a_remote_says_can_forge_a_field_or_part(reply: str, head: bytes, body: bytes) -> None:
    """Invariant of the one field builder; whatever is in it, the report has three parts and its own fields."""
    made = dsn.build(notice(reply, head, b"\r\n" + body))
    message = email.message_from_bytes(made)
    assert [h for h, _ in message.items()] == [
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type",
        "Content-Transfer-Encoding",
    ]  # fmt: skip
    boundary = message.get_boundary()
    assert boundary is not None
    assert made.count(b"--" + boundary.encode()) == 4
    status = made.split(b"--" + boundary.encode())[2]
    assert status.count(b"\r\nAction:") == 1
    assert status.count(b"\r\nFinal-Recipient:") == 1


def test_an_oversized_header_block_is_cut_at_a_field() -> None:
    """Bounded; whole fields only."""
    made = dsn.build(notice("550 no", b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(2000)), None))
    assert len(made) < 40_000
    assert made.count(b"y" * 100 + b"\r\n") == made.count(b"X-") - made.count(b"X-Queue-Id")
