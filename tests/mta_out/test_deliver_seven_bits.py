"""Delivery to a server without 8BITMIME or SMTPUTF8 (RFC 6152 s. 3, RFC 6531 s. 3.2)."""

from __future__ import annotations

import pytest
from delivery_samples import DEFERRED, FAILED, OK, DeliverTo, Start, attempt, smarthost
from support.dns_server import DnsServer

from pymx.mail.address import Address
from pymx.spool import SpoolWriter

PLAIN = "From: a@far.test\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
TEXT = (
    "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nthe word schön is not ASCII\r\n"
)
UNSIGNED = (PLAIN + TEXT).encode()


async def test_8bit_text_is_encoded_for_a_server_without_8bitmime(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """RFC 6152 s. 3; where 8BITMIME is offered nothing is touched."""
    bare, able = scripted_remote(extensions=("PIPELINING",)), scripted_remote(extensions=("8BITMIME",))
    for remote in (bare, able):
        deliver = deliver_to(smarthost(remote.port))
        for _ in range(2):  # over a kept connection too
            (outcome,) = await deliver.attempt(attempt("a@far.test", content=UNSIGNED, body="8BITMIME"))
            assert outcome.result is OK
    assert [m.content.isascii() for m in bare.messages] == [True, True]
    assert b"Content-Transfer-Encoding: quoted-printable\r\n" in bare.messages[0].content
    assert b"the word sch=C3=B6n is not ASCII" in bare.messages[0].content
    assert "BODY=8BITMIME" not in bare.messages[0].mail_options
    assert [m.content for m in able.messages] == [UNSIGNED, UNSIGNED]
    assert "BODY=8BITMIME" in able.messages[0].mail_options


@pytest.mark.parametrize("field", ["DKIM-Signature: v=1; d=far.test\r\n", "ARC-Message-Signature: i=1\r\n"])
async def test_a_signed_8bit_message_is_returned_rather_than_broken_silently(
    field: str, scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """RFC 6152 s. 3, RFC 3463: 5.6.3. In seven bits it goes, signed or not."""
    remote = scripted_remote(extensions=())
    deliver = deliver_to(smarthost(remote.port))
    (outcome,) = await deliver.attempt(attempt("a@far.test", content=field.encode() + UNSIGNED, body="8BITMIME"))
    assert (outcome.result, outcome.status) == (FAILED, "5.6.3")
    assert "signed" in outcome.reply
    assert not any(c.startswith("MAIL") for c in remote.commands)
    ascii_only = field.encode() + UNSIGNED.replace("ö".encode(), b"o")
    (outcome,) = await deliver.attempt(attempt("a@far.test", content=ascii_only, body="8BITMIME"))
    assert (outcome.result, remote.messages[0].content) == (OK, ascii_only)


async def test_the_next_host_may_have_8bitmime(
    scripted_remote: Start, deliver_to: DeliverTo, dns_server: DnsServer
) -> None:
    """One that is out of order now says more than one that can't take it."""
    bare = scripted_remote(extensions=())
    busy = scripted_remote(
        address="127.0.0.2", port=bare.port, extensions=("8BITMIME",), replies={"CONNECT": ["421 4.3.2 busy"]}
    )
    dns_server.zone("far.test", "@ MX 10 bare\n@ MX 20 able\nbare A 127.0.0.1\nable A 127.0.0.2")
    outbound = smarthost(bare.port)
    deliver = deliver_to(type(outbound)(port=bare.port, allow_private=True, command_timeout_s=2))
    signed = b"DKIM-Signature: v=1\r\n" + UNSIGNED
    (outcome,) = await deliver.attempt(attempt("a@far.test", content=signed, body="8BITMIME"))
    assert outcome.result is DEFERRED
    (outcome,) = await deliver.attempt(attempt("a@far.test", content=signed, body="8BITMIME"))
    assert (outcome.result, outcome.mx, busy.messages[0].content) == (OK, "able.far.test", signed)


async def test_a_message_in_the_spool_is_encoded_too(
    scripted_remote: Start, deliver_to: DeliverTo, tmp_path: object
) -> None:
    """Read and encoded in a thread."""
    writer = SpoolWriter(tmp_path, memory_octets=1000)  # type: ignore[arg-type]  # a Path
    lines = "".join(f"{n}: schön war es, und lang war es auch\r\n" for n in range(5000))
    writer.feed((PLAIN + TEXT + lines).encode())
    remote = scripted_remote(extensions=())
    (outcome,) = await deliver_to(smarthost(remote.port)).attempt(
        attempt("a@far.test", content=writer.finish(), body="8BITMIME")
    )
    assert (outcome.result, remote.messages[0].content.isascii()) == (OK, True)
    assert remote.messages[0].content.count(b"sch=C3=B6n war es") == 5000


async def test_an_address_that_needs_smtputf8_fails_with_a_sentence_that_says_it(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """RFC 6531 s. 3.5, RFC 3463: 5.6.7."""
    remote = scripted_remote(extensions=("8BITMIME",))
    sender = Address("jürgen", "example.test")
    (outcome,) = await deliver_to(smarthost(remote.port)).attempt(
        attempt("a@far.test", mail_from=sender, smtputf8=True)
    )
    assert (outcome.result, outcome.status) == (FAILED, "5.6.7")
    assert "does not offer SMTPUTF8" in outcome.reply
