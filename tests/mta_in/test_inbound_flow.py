"""Mail from elsewhere, over real sockets into real mailboxes: what is refused when, and what lies on disk."""

from __future__ import annotations

import email
import smtplib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.flow import MailIn, mail_in
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.config.model import Outbound, Smtp

ALICE, BOB = "alice@example.test", "bob@example.test"
MESSAGE = "From: x@remote.test\r\nTo: alice@example.test\r\nSubject: hi\r\nMessage-ID: <1@x>\r\n\r\n..body\r\n"


@pytest.fixture
async def flow(tmp_path: Path, tls_files: TlsFiles) -> AsyncIterator[MailIn]:
    async with mail_in(tmp_path, tls=tls_files.server_context(), smtp=Smtp(max_received=5)) as running:
        yield running


def send(port: int, to: list[str], message: str | bytes = MESSAGE, sender: str = "x@remote.test") -> dict[str, object]:
    """smtplib's refusals by recipient; raises when nobody is left."""
    with smtplib.SMTP("127.0.0.1", port, "client.test") as client:
        return client.sendmail(sender, to, message)


def send_without_size(port: int, to: list[str], message: str) -> tuple[int, bytes]:
    """The reply to the data, when MAIL did not say how much there would be."""
    with smtplib.SMTP("127.0.0.1", port, "client.test") as client:
        client.ehlo()
        client.mail("x@remote.test")
        for address in to:
            assert client.rcpt(address)[0] == 250
        return client.data(message)


def lmtp(port: int, to: list[str], message: str = MESSAGE) -> list[tuple[int, bytes]]:
    with smtplib.LMTP("127.0.0.1", port, "client.test") as client:
        client.ehlo()
        client.mail("x@remote.test")
        for address in to:
            assert client.rcpt(address)[0] == 250
        client.putcmd("data")
        assert client.getreply()[0] == 354
        client.send(message.replace("\r\n.", "\r\n..").encode() + b".\r\n")
        return [client.getreply() for _ in to]


async def test_a_message_lies_in_the_maildir_as_it_came(flow: MailIn) -> None:
    """RFC 5321 s. 4.4: trace fields in front, every other octet as it was, LF on disk."""
    assert await flow.blocking(send, flow.ports["smtp"], [ALICE]) == {}
    (stored,) = flow.mailbox(ALICE)
    head, _, rest = stored.partition(b"From: ")
    assert (b"From: " + rest).replace(b"\n", b"\r\n") == MESSAGE.encode()
    fields = email.message_from_bytes(head + b"\n")
    assert fields.keys() == ["Return-Path", "Delivered-To", "Received"]
    assert fields["Return-Path"] == "<x@remote.test>"
    assert fields["Delivered-To"] == ALICE
    assert " ".join(fields["Received"].split()).startswith(
        "from client.test ([127.0.0.1]) by mx.example.test with ESMTP id "
    )


async def test_several_recipients_an_alias_and_a_subaddress(flow: MailIn) -> None:
    await flow.blocking(send, flow.ports["smtp"], ["Alice+list@example.test", "info@example.test", "carol@other.test"])
    assert b"Delivered-To: alice+list@example.test\n" in flow.mailbox(ALICE)[0].lower().replace(
        b"delivered-to", b"Delivered-To"
    )
    assert b"Delivered-To: bob@example.test\n" in flow.mailbox(BOB)[0]
    assert len(flow.mailbox("carol@other.test")) == 1
    (copy,) = flow.queued
    assert [str(r.address) for r in copy.envelope.recipients] == ["x@far.test"]
    assert str(copy.envelope.mail_from) == "x@remote.test"


@pytest.mark.parametrize(
    ("to", "code", "enhanced"),
    [
        ("nobody@example.test", 550, b"5.1.1"),
        ("x@elsewhere.test", 550, b"5.7.1"),
        ("alice@sub.example.test", 550, b"5.7.1"),
    ],
)
async def test_who_is_not_here_is_refused_at_rcpt(to: str, code: int, enhanced: bytes, flow: MailIn) -> None:
    refused = await flow.blocking(send, flow.ports["smtp"], [to, ALICE])
    reply = refused[to]
    assert isinstance(reply, tuple)
    assert reply[0] == code
    assert reply[1].startswith(enhanced)
    assert len(flow.mailbox(ALICE)) == 1


async def test_a_bounce_may_have_several_recipients(flow: MailIn) -> None:
    assert await flow.blocking(send, flow.ports["smtp"], [ALICE, BOB], MESSAGE, "") == {}
    assert flow.mailbox(BOB)[0].startswith(b"Return-Path: <>\n")


async def test_postmaster_always_has_a_mailbox(flow: MailIn) -> None:
    """RFC 5321 s. 4.5.1."""
    to = ["postmaster@other.test", "abuse@example.test", "<postmaster>"]
    assert await flow.blocking(send, flow.ports["smtp"], to) == {}
    assert flow.mailbox(ALICE)
    assert flow.mailbox("carol@other.test")


@pytest.mark.parametrize("fields", ["Received: x\r\n" * 6, "Delivered-To: Alice@Example.test\r\n"])
async def test_a_loop_is_broken(fields: str, flow: MailIn) -> None:
    """RFC 5321 s. 6.3, RFC 9228 s. 4."""
    with pytest.raises(smtplib.SMTPDataError) as refused:
        await flow.blocking(send, flow.ports["smtp"], [ALICE], fields + MESSAGE)
    assert refused.value.smtp_code == 554
    assert isinstance(refused.value.smtp_error, bytes)
    assert refused.value.smtp_error.startswith(b"5.4.6")
    assert flow.mailbox(ALICE) == []


async def test_a_few_hops_and_other_mailboxes_are_no_loop(flow: MailIn) -> None:
    fields = "Received: x\r\n" * 5 + "Delivered-To: bob@example.test\r\n"
    assert await flow.blocking(send, flow.ports["smtp"], [ALICE], fields + MESSAGE) == {}


@pytest.mark.parametrize(
    "message", ["no header at all\r\n", "\r\nbody only\r\n", "Broken\r\nSubject: x\r\n\r\n\xe9\r\n"]
)
async def test_a_message_without_a_valid_header_is_stored_as_it_came(message: str, flow: MailIn) -> None:
    octets = message.encode("latin-1")
    assert await flow.blocking(send, flow.ports["smtp"], [ALICE], octets) == {}
    assert flow.mailbox(ALICE)[0].endswith(octets.replace(b"\r\n", b"\n"))


async def test_results_that_claim_to_be_ours_are_removed(flow: MailIn) -> None:
    fields = "Authentication-Results: mx.example.test; spf=pass\r\nAuthentication-Results: other.test; spf=pass\r\n"
    await flow.blocking(send, flow.ports["smtp"], [ALICE], fields + MESSAGE)
    stored = flow.mailbox(ALICE)[0]
    assert stored.count(b"Authentication-Results") == 1
    assert b"Authentication-Results: other.test; spf=pass\n" in stored


async def test_a_return_path_that_came_along_is_removed(flow: MailIn) -> None:
    """RFC 5321 s. 4.4."""
    await flow.blocking(send, flow.ports["smtp"], [ALICE], "Return-Path: <forged@bank.test>\r\n" + MESSAGE)
    stored = flow.mailbox(ALICE)[0]
    assert stored.lower().count(b"return-path:") == 1
    assert b"forged" not in stored


async def test_one_id_is_followed_from_the_session_to_the_mailbox(
    flow: MailIn, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for the transaction, one for each copy."""
    caplog.set_level("INFO", "pymx")
    await flow.blocking(send, flow.ports["smtp"], [ALICE, BOB])
    await wait_until(lambda: "smtp_session" in caplog.messages)
    lines = [(r.getMessage(), vars(r)["fields"]) for r in caplog.records]
    (accepted,) = [fields for event, fields in lines if event == "message_accepted"]
    delivered = [fields for event, fields in lines if event == "message_delivered"]
    assert [(d["account"], d["mailbox"], d["uid"]) for d in delivered] == [(ALICE, "INBOX", 1), (BOB, "INBOX", 1)]
    (session,) = [fields["session"] for event, fields in lines if event == "smtp_session"]
    assert {d["queue_id"] for d in delivered} == {accepted["queue_id"]}
    assert {session, accepted["session"]} == {d["session"] for d in delivered}
    assert accepted["rcpt_to"] == f"{ALICE},{BOB}"
    assert accepted["message_id"] == "<1@x>"
    assert accepted["queue_id"].encode() in flow.mailbox(ALICE)[0]


async def test_lmtp_replies_for_each_recipient(flow: MailIn) -> None:
    """RFC 2033 s. 4.2."""
    message = "Delivered-To: bob@example.test\r\n" + MESSAGE
    replies = await flow.blocking(lmtp, flow.ports["lmtp"], [ALICE, BOB, "carol@other.test"], message)
    assert [code for code, _ in replies] == [250, 554, 250]
    assert b" with LMTP id " in flow.mailbox(ALICE)[0].replace(b"\n\t", b" ")
    assert flow.mailbox(BOB) == []


async def test_a_full_mailbox_is_refused_at_rcpt(tmp_path: Path, tls_files: TlsFiles) -> None:
    """452 4.2.2 before the data, and SIZE counts."""
    async with mail_in(tmp_path, tls=tls_files.server_context(), quotas={ALICE: 2000}) as flow:

        def with_size() -> list[int]:
            with smtplib.SMTP("127.0.0.1", flow.ports["smtp"], "client.test") as client:
                client.ehlo()
                client.mail("x@remote.test", ["SIZE=3000"])
                return [client.rcpt(ALICE)[0], client.rcpt(BOB)[0]]

        assert await flow.blocking(with_size) == [452, 250]
        assert await flow.blocking(send, flow.ports["smtp"], [ALICE]) == {}
        big = MESSAGE + "x" * 900 + "\r\n" + "x" * 900 + "\r\n"
        code, text = await flow.blocking(send_without_size, flow.ports["smtp"], [ALICE], big)
        assert (code, text[:5]) == (452, b"4.2.2")
        assert len(flow.mailbox(ALICE)) == 1


async def test_a_full_mailbox_after_the_data_waits_in_the_queue_when_another_was_stored(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    async with mail_in(tmp_path, tls=tls_files.server_context(), quotas={ALICE: 1000}) as flow:
        big = MESSAGE + "x" * 900 + "\r\n" + "x" * 900 + "\r\n"
        assert (await flow.blocking(send_without_size, flow.ports["smtp"], [ALICE, BOB], big))[0] == 250
        (copy,) = flow.queued
        assert copy.local
        assert [str(r.address) for r in copy.envelope.recipients] == [ALICE]
        stored = await flow.queue.load(copy.queue_id)
        assert stored.content.read().endswith(big.encode())
        assert len(flow.mailbox(BOB)) == 1


async def test_a_full_queue_is_a_temporary_refusal(tmp_path: Path, tls_files: TlsFiles) -> None:
    async with mail_in(tmp_path, tls=tls_files.server_context(), outbound=Outbound(max_queue_messages=1)) as flow:
        await flow.blocking(send, flow.ports["smtp"], ["info@example.test"])
        with pytest.raises(smtplib.SMTPDataError) as refused:
            await flow.blocking(send, flow.ports["smtp"], ["info@example.test"])
        assert refused.value.smtp_code == 452
