"""No octets make a check raise, or cost more than a second per megabyte."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymx.checks.build import build_pipeline
from pymx.checks.check import Facts
from pymx.config.model import Checks, Config
from pymx.mail.address import Address
from pymx.mail.envelope import Listener, Origin, Recipient
from pymx.proto.smtp.reply import SmtpError
from pymx.resolver.answer import Answer, NoSuchDomain
from pymx.spool import Content


class Nobody:
    """A name system in which nothing exists but what was put there."""

    def __init__(self, txt: bytes = b"") -> None:
        self.txt = txt

    async def resolve(self, name: str, rdtype: str) -> Answer:
        if self.txt and rdtype == "TXT":
            return Answer(name, name, rdtype, ((self.txt,),), 60, authenticated=False)
        raise NoSuchDomain(name, rdtype, "no such domain")


async def judge(
    message: bytes, *, helo: str = "x", txt: bytes = b"", local_part: str = "x", peer: str = "192.0.2.7"
) -> None:
    """All checks; SmtpError is a verdict like others."""
    config = Config(hostname="mx.example.test", checks=Checks(dnsbl=["bl.test=1"], trusted_sealers=["a.test"]))
    pipeline = build_pipeline(config, Nobody(txt))
    assert pipeline is not None
    origin = Origin(Listener.SMTP, "s", peer, helo)
    to = [Recipient(Address("alice", "example.test"))]
    inspection = pipeline.begin(Facts(origin, "Q", Address(local_part, "far.test"), to))
    try:
        await inspection.message(Content.from_bytes(message))
    except SmtpError:
        pass
    await pipeline.close()


FIELD_NAMES = [
    b"From", b"DKIM-Signature", b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results", b"X-Spam-Flag",
    b"Authentication-Results", b"Received", b"", b"\xff", b"from ",
]  # fmt: skip
PIECES = [
    b"a@b.test", b"<", b">", b",", b";", b"(", b")", b'"', b"\\", b"=", b"i=1; ", b"a@[", b"@", b"\r\n ", b"\t",
    b"v=1; a=rsa-sha256; d=a.test; s=s; h=from; bh=AA==; b=AA==", b"\xc3\xa9", b"\xff", b"=?utf-8?q?x?=", b":", b"l=1",
    b"mx.example.test", b"\x00",
]  # fmt: skip
values = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=12).map(b"".join)
fields = st.tuples(st.sampled_from(FIELD_NAMES), values).map(lambda f: f[0] + b": " + f[1] + b"\r\n")
messages = st.tuples(st.lists(fields, max_size=10).map(b"".join), st.binary(max_size=60)).map(
    lambda m: m[0] + b"\r\n" + m[1]
)


@given(messages | st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_message_makes_a_check_raise(caplog: pytest.LogCaptureFixture, message: bytes) -> None:
    await judge(message)
    assert "check_failed" not in caplog.messages


@given(st.text(min_size=1, max_size=60), st.binary(max_size=80), st.text(min_size=1, max_size=20))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_name_and_no_record_makes_a_check_raise(
    caplog: pytest.LogCaptureFixture, helo: str, record: bytes, local_part: str
) -> None:
    message = b"From: x@far.test\r\n\r\n"
    for prefix in (b"", b"v=spf1 ", b"v=DMARC1; p=reject; "):
        await judge(message, helo=helo, txt=prefix + record, local_part=local_part)
    assert "check_failed" not in caplog.messages


MEGABYTE = 1_000_000
SIGNATURE = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=a.test; s=s; h=from; bh=AA==; b=AA==\r\n"


@pytest.mark.parametrize(
    "message",
    [
        b"From: " + b"a@b.test, " * (MEGABYTE // 10) + b"\r\n\r\n",
        b"From: " + b"(" * MEGABYTE + b"\r\n\r\n",
        b"From: " + b'"\\' * (MEGABYTE // 2) + b"\r\n\r\n",
        b"From: " + b"@" * MEGABYTE + b"\r\n\r\n",
        b"From: x@a.test\r\n" * (MEGABYTE // 16) + b"\r\n",
        SIGNATURE * (MEGABYTE // len(SIGNATURE)) + b"From: x@a.test\r\n\r\n",
        SIGNATURE + b"From: x@a.test\r\n\r\n" + b" \t" * (MEGABYTE // 2),
        SIGNATURE + b"From: x@a.test\r\n\r\n" + b"\r\n" * (MEGABYTE // 2),
        SIGNATURE + b"From: x@a.test\r\n\r\n" + b"\r" * MEGABYTE,
        b"Authentication-Results: mx.example.test; x=y\r\n" * (MEGABYTE // 46) + b"From: x@a.test\r\n\r\n",
        b"Authentication-Results: " + b"(" * MEGABYTE + b"\r\nFrom: x@a.test\r\n\r\n",
        b"X-Spam-A: x\r\n" * (MEGABYTE // 13) + b"From: x@a.test\r\n\r\n",
        b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=a.test; s=s; b=AA==\r\n" * (MEGABYTE // 62)
        + b"From: x@a.test\r\n\r\n",
        b"\r\n\r\n" + b"x" * MEGABYTE,
    ],
    ids=range(14),
)
async def test_no_megabyte_costs_a_second(message: bytes) -> None:
    """CPU time, so that a busy machine does not matter."""
    started = time.process_time()
    await judge(message)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("peer", ["fe80::1%eth0", "::ffff:192.0.2.7", "::1", "2001:db8::7"])
async def test_every_kind_of_address_is_judged(caplog: pytest.LogCaptureFixture, peer: str) -> None:
    await judge(b"From: x@far.test\r\n\r\n", peer=peer)
    assert "check_failed" not in caplog.messages
