"""Mail from our users, over TLS with a login: who may send as whom, and what the signed message looks like."""

from __future__ import annotations

import asyncio
import shutil
import smtplib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import dkim
import pytest
from support.flow import PASSWORD, MailIn, mail_in
from support.tls import TlsFiles

from pymx.mailauth.dkim import keys

ALICE, BOB, FAR = "alice@example.test", "bob@example.test", "x@far.test"
MESSAGE = "From: Alice <alice@example.test>\r\nTo: bob@example.test\r\nSubject: hi\r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    keys.generate(directory, "example.test", "s1")
    return directory


@pytest.fixture
async def flow(tmp_path: Path, tls_files: TlsFiles, key_directory: Path) -> AsyncIterator[MailIn]:
    shutil.copytree(key_directory, tmp_path / "dkim")
    async with mail_in(tmp_path, tls=tls_files.server_context()) as running:
        yield running


class Client:
    """smtplib over implicit TLS, logged in."""

    def __init__(self, flow: MailIn, tls: TlsFiles) -> None:
        self._flow = flow
        self._context: ssl.SSLContext = tls.client_context(verify=False)

    def _send(self, login: str, sender: str, to: list[str], message: bytes, options: list[str]) -> dict[str, object]:
        with smtplib.SMTP_SSL(
            "127.0.0.1", self._flow.ports["submissions"], "laptop.home", context=self._context
        ) as client:
            if login:
                client.login(login, PASSWORD)
            return client.sendmail(sender, to, message, options)

    async def send(
        self,
        message: str | bytes = MESSAGE,
        *,
        sender: str = ALICE,
        to: tuple[str, ...] = (BOB,),
        login: str = ALICE,
        options: tuple[str, ...] = (),
    ) -> dict[str, object]:
        octets = message.encode() if isinstance(message, str) else message
        return await self._flow.blocking(self._send, login, sender, list(to), octets, list(options))


@pytest.fixture
def client(flow: MailIn, tls_files: TlsFiles) -> Client:
    return Client(flow, tls_files)


def records(flow: MailIn) -> dict[bytes, bytes]:
    return {
        f"{k.record_name}.".encode(): k.record.encode() for k in keys.load_all(flow.directory / "dkim", "example.test")
    }


def verifies(message: bytes, flow: MailIn) -> bool:
    known = records(flow)
    return bool(dkim.verify(message.replace(b"\n", b"\r\n"), dnsfunc=lambda name, timeout=5: known.get(name)))


async def test_a_submitted_message_arrives_signed_and_complete(flow: MailIn, client: Client) -> None:
    """RFC 6409: Date and Message-ID added, private fields gone, DKIM over all of it."""
    private = "Bcc: secret@x.test\r\nX-Originating-IP: 10.0.0.1\r\nReceived: from laptop\r\n"
    assert await client.send(private + MESSAGE) == {}
    (stored,) = flow.mailbox(BOB)
    head = stored.partition(b"\n\n")[0]
    names = [line.partition(b":")[0].decode() for line in head.split(b"\n") if not line.startswith(b"\t")]
    assert names == [
        "Return-Path", "Delivered-To", "Received", "DKIM-Signature", "From", "To", "Subject", "Date", "Message-ID",
    ]  # fmt: skip
    assert b"127.0.0.1" not in stored
    assert b"laptop" not in stored
    assert b"with ESMTPSA id" in stored.replace(b"\n\t", b" ")
    assert b"@example.test>\n" in head.partition(b"Message-ID: <")[2] + b"\n"
    assert verifies(stored, flow)


async def test_local_recipients_get_it_at_once_and_the_others_are_queued(flow: MailIn, client: Client) -> None:
    await client.send(to=(BOB, FAR, "y@far.test"))
    (copy,) = flow.queued
    assert [str(r.address) for r in copy.envelope.recipients] == [FAR, "y@far.test"]
    assert not copy.local
    assert verifies(copy.content.read().replace(b"\r\n", b"\n"), flow)
    assert len(flow.mailbox(BOB)) == 1


async def test_a_login_is_required(client: Client) -> None:
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:
        await client.send(login="")
    assert refused.value.smtp_code == 530


@pytest.mark.parametrize("sender", [BOB, "alice@elsewhere.test", "nobody@example.test"])
async def test_the_envelope_sender_must_be_ones_own(sender: str, client: Client) -> None:
    """553 5.7.1."""
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:
        await client.send(sender=sender)
    assert refused.value.smtp_code == 553
    assert bytes(refused.value.smtp_error).startswith(b"5.7.1")


async def test_a_read_receipt_goes_out_with_the_null_sender_but_only_from_oneself(flow: MailIn, client: Client) -> None:
    """RFC 8098 s. 3: MAIL FROM:<>; the author is still held to the login."""
    await client.send("From: alice@example.test\r\nSubject: read\r\n\r\nseen\r\n", sender="")
    assert b"Return-Path: <>" in flow.mailbox(BOB)[0]
    with pytest.raises(smtplib.SMTPDataError) as refused:
        await client.send("From: bob@example.test\r\nSubject: read\r\n\r\nseen\r\n", sender="")
    assert refused.value.smtp_code == 553


@pytest.mark.parametrize(
    "fields",
    [
        "From: bob@example.test\r\n",
        "From: alice@example.test, bob@example.test\r\n",
        "From: alice@example.test <bob@example.test>\r\n",
        "From: alice@example.test\r\nSender: bob@example.test\r\n",
        "From: friends: alice@example.test, bob@example.test;\r\n",
    ],
)
async def test_every_author_must_be_ones_own(fields: str, flow: MailIn, client: Client) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        await client.send(fields + "Subject: x\r\n\r\nbody\r\n")
    assert refused.value.smtp_code == 553
    assert flow.mailbox(BOB) == []


@pytest.mark.parametrize(
    "fields",
    [
        "From: alice@example.test\r\nFrom: bob@example.test\r\n",
        "From: alice@example.test\r\nSender: alice@example.test\r\nSender: alice@example.test\r\n",
        "From: <alice@example.test> <bob@example.test>\r\n",
        "From: nobody in particular\r\n",
        "From:\r\n",
    ],
)
async def test_authors_open_to_doubt_are_refused(fields: str, client: Client) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        await client.send(fields + "Subject: x\r\n\r\nbody\r\n")
    assert refused.value.smtp_code == 554
    assert bytes(refused.value.smtp_error).startswith(b"5.6.0")


async def test_an_alias_and_a_subaddress_of_ones_own_may_send(flow: MailIn, client: Client) -> None:
    message = MESSAGE.replace("alice@example.test", "info@example.test")
    assert await client.send(message, login=BOB, sender="Bob+x@example.test", to=(ALICE,)) == {}
    assert flow.mailbox(ALICE)[0].lower().startswith(b"return-path: <bob+x@example.test>\n")


@pytest.mark.parametrize(("to", "code"), [("nobody@example.test", 550), ("nobody@other.test", 550)])
async def test_unknown_local_recipients_are_refused(to: str, code: int, client: Client) -> None:
    refused = await client.send(to=(to, FAR))
    assert [reply[0] for reply in refused.values() if isinstance(reply, tuple)] == [code]


BROKEN = [
    MESSAGE.replace("Subject: hi", "Subject: Grüße").encode(),
    MESSAGE.replace("body\r\n", "bare\nnewlines\rhere\r\n").encode(),
    MESSAGE.replace("body\r\n", "long line " * 400 + "\r\n").encode(),
    MESSAGE.replace("Subject: hi", "Subject: " + "long " * 400).encode(),
    b"no header at all\r\n",
    MESSAGE.replace("body\r\n", "8-bit \xfc\r\n").encode("latin-1"),
]


@pytest.mark.parametrize("message", BROKEN)
async def test_what_was_mended_still_verifies(message: bytes, flow: MailIn, client: Client) -> None:
    assert await client.send(message, to=(BOB, FAR)) == {}
    stored = flow.mailbox(BOB)[0]
    assert verifies(stored, flow)
    assert max(map(len, stored.split(b"\n"))) <= 998
    assert stored.partition(b"\n\n")[0].isascii()
    assert b"\r" not in stored


async def test_an_8bit_body_goes_out_in_seven_bits_and_says_so(flow: MailIn, client: Client) -> None:
    """RFC 6152, RFC 6376 s. 5.3: a server on the way that lacks 8BITMIME breaks no signature."""
    await client.send(
        MESSAGE.replace("body", "the text is mostly ASCII, ü is not"), to=(FAR,), options=("BODY=8BITMIME",)
    )
    (copy,) = flow.queued
    assert (copy.envelope.body, copy.content.read().isascii()) == ("7BIT", True)
    assert b"=C3=BC" in copy.content.read()


async def test_a_large_message_is_signed_from_the_spool(flow: MailIn, client: Client) -> None:
    body = "".join(f"{i:07d} \t some text\r\n" for i in range(60_000))
    assert await client.send(MESSAGE + body) == {}
    assert verifies(flow.mailbox(BOB)[0], flow)


async def test_a_domain_without_a_key_sends_unsigned(flow: MailIn, client: Client) -> None:
    message = MESSAGE.replace("alice@example.test", "carol@other.test")
    await client.send(message, login="carol@other.test", sender="carol@other.test")
    assert b"DKIM-Signature" not in flow.mailbox(BOB)[0]


async def test_a_key_that_can_not_be_read_stops_mail_instead_of_sending_it_unsigned(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    folder = tmp_path / "dkim" / "example.test"
    folder.mkdir(parents=True)
    (folder / "s.pem").write_text("rubbish")
    async with mail_in(tmp_path, tls=tls_files.server_context()) as flow:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            await Client(flow, tls_files).send()
        assert refused.value.smtp_code == 451
        assert flow.mailbox(BOB) == []


async def test_a_login_that_was_removed_can_send_nothing_more(flow: MailIn, tls_files: TlsFiles) -> None:
    def in_one_session() -> int:
        context = tls_files.client_context(verify=False)
        with smtplib.SMTP_SSL("127.0.0.1", flow.ports["submissions"], context=context) as client:
            client.login("carol@other.test", PASSWORD)
            flow.registry.remove_user("carol@other.test")
            loop.call_soon_threadsafe(flow.accounts.invalidate)
            client.noop()
            return client.mail("carol@other.test")[0]

    loop = asyncio.get_running_loop()
    assert await flow.blocking(in_one_session) == 535
