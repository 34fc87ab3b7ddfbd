"""Delivery to remotes that break off where it is awkward, fail at TLS or login, or offer what they don't have."""

from __future__ import annotations

from pathlib import Path

import pytest
from delivery_samples import (
    DEFERRED,
    FAILED,
    OK,
    DeliverTo,
    Start,
    attempt,
    replaced,
    results,
    settings,
    smarthost,
)
from support.dns_server import DnsServer
from support.sinks import DROP, STALL
from support.tls import TlsFiles

from pymx.queue.item import Result

# more than the buffers of two sockets hold, so that the client still sends when it happens
LARGE = b"From: a@example.test\r\nSubject: large\r\n\r\n" + (b"0123456789" * 95 + b"\r\n") * 15_000


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (DROP, (DEFERRED, "4.4.2")),
        (STALL, (DEFERRED, "4.4.2")),
        ("421 4.3.2 closing", (DEFERRED, "4.3.2")),
        ("452 4.3.1 disk full", (DEFERRED, "4.3.1")),
        ("552 5.3.4 too big", (FAILED, "5.3.4")),
    ],
)
async def test_what_happens_amid_the_content(
    scripted_remote: Start, deliver_to: DeliverTo, what: str, expected: tuple[Result, str]
) -> None:
    """Before the final dot nothing has arrived; a reply that came with the cut says why (RFC 5321 s. 4.2.1)."""
    remote = scripted_remote(replies={"CONTENT": [what]})
    outbound = replaced(smarthost(remote.port), data_timeout_s=20, command_timeout_s=1 if what == STALL else 20)
    deliver = deliver_to(outbound)
    (outcome,) = await deliver.attempt(attempt("bob@far.test", content=LARGE))
    assert (outcome.result, outcome.status) == expected
    assert what in (DROP, STALL) or outcome.reply == what
    assert remote.messages == []
    if what != STALL:  # a stalled thread of the remote would end only with the test
        assert results(await deliver.attempt(attempt("bob@far.test", content=b"A: b\r\n\r\nx\r\n"))) == [(OK, "2.0.0")]


@pytest.mark.parametrize("what", [DROP, "421 4.3.2 closing"])
async def test_a_cut_amid_the_content_sends_it_to_the_next_host(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo, what: str
) -> None:
    """The first can't have the message, so nobody gets it twice; the next gets it from the beginning."""
    first = scripted_remote(replies={"CONTENT": what}, address="127.0.0.2")
    second = scripted_remote(address="127.0.0.3", port=first.port)
    dns_server.zone("far.test", "@ MX 10 y\n@ MX 20 z\ny A 127.0.0.2\nz A 127.0.0.3")
    outbound = settings(first.port, command_timeout_s=20, data_timeout_s=20)
    (outcome,) = await deliver_to(outbound).attempt(attempt("a@far.test", content=LARGE))
    assert (outcome.result, outcome.mx) == (OK, "z.far.test")
    assert first.messages == []
    assert [len(m.content) for m in second.messages] == [len(LARGE)]


@pytest.mark.parametrize(
    ("phase", "what", "expected"),
    [
        ("STARTTLS", "454 4.7.0 not now", (DEFERRED, "4.7.0")),
        ("STARTTLS", "502 5.5.1 what", (DEFERRED, "4.5.1")),
        ("STARTTLS", "hello", (DEFERRED, "4.5.0")),
        ("STARTTLS", DROP, (DEFERRED, "4.7.5")),
        ("STARTTLS", STALL, (DEFERRED, "4.4.2")),
        ("TLS", DROP, (DEFERRED, "4.7.5")),
        ("TLS", STALL, (DEFERRED, "4.4.2")),
        ("AUTH", "454 4.7.0 not now", (DEFERRED, "4.7.0")),
        ("AUTH", "535 5.7.8 wrong", (DEFERRED, "4.7.8")),
        ("AUTH", "hello", (DEFERRED, "4.5.0")),
        ("AUTH", DROP, (DEFERRED, "4.4.2")),
        ("AUTH", STALL, (DEFERRED, "4.4.2")),
    ],
)
async def test_every_failure_of_tls_and_login(
    tmp_path: Path, scripted_remote: Start, tls_files: TlsFiles, deliver_to: DeliverTo,
    phase: str, what: str, expected: tuple[Result, str],
) -> None:  # fmt: skip
    """Where TLS has to be there is no way without, and a refused login is no fault of the message: it waits."""
    (tmp_path / "password").write_text("s3cret\n")
    remote = scripted_remote(tls=tls_files.server_context(), login=("me", "s3cret"), replies={phase: [what]})
    outbound = replaced(
        smarthost(
            remote.port, tls="verified", ca_file=str(tls_files.ca), username="me",
            password_file=str(tmp_path / "password"),
        ),
        connect_timeout_s=1 if what == STALL else 20, command_timeout_s=1 if what == STALL else 20,
    )  # fmt: skip
    deliver = deliver_to(outbound)
    assert results(await deliver.attempt(attempt("bob@far.test"))) == [expected]
    assert not any(c.startswith("MAIL") for c in remote.commands)
    assert remote.messages == []
    if what != STALL:
        assert results(await deliver.attempt(attempt("bob@far.test"))) == [(OK, "2.0.0")]
        assert remote.messages[0].tls


@pytest.mark.parametrize(
    ("ehlo", "replies", "expected"),
    [
        ("250 ", {}, (OK, "2.0.0")),
        ("250-\r\n250-=\r\n250-SIZE\r\n250-AUTH\r\n250- \r\n250 \x01\xff", {}, (OK, "2.0.0")),
        ("250-far\r\n250 " + "X" * 7000, {}, (OK, "2.0.0")),
        ("250-far\r\n250 " + "X" * 9000, {}, (DEFERRED, "4.5.0")),
        ("250-far\r\n" * 50_000 + "250-far", {}, (DEFERRED, "4.5.0")),
        ("250-far\r\n250 STARTTLS", {}, (OK, "2.0.0")),
        ("250-far\r\n250 STARTTLS", {"STARTTLS": "554 5.7.1 no"}, (OK, "2.0.0")),
        ("250-far\r\n250 8BITMIME", {"MAIL": "555 5.5.4 BODY unknown"}, (FAILED, "5.5.4")),
        ("250-far\r\n250 SIZE 1000000", {"MAIL": "552 5.3.4 too big"}, (FAILED, "5.3.4")),
        ("250-far\r\n250-8BITMIME\r\n250 SMTPUTF8", {"MAIL": "555 5.5.4 SMTPUTF8 unknown"}, (FAILED, "5.5.4")),
    ],
)
async def test_a_server_that_offers_what_it_does_not_have(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo,
    ehlo: str, replies: dict[str, str], expected: tuple[Result, str],
) -> None:  # fmt: skip
    """Nothing that is said there breaks anything; what it refuses afterwards counts."""
    remote = scripted_remote(replies={"EHLO": ehlo, **replies})
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    made = attempt("bob@far.test", body="8BITMIME", smtputf8="UTF8" in ehlo)
    outbound = settings(remote.port, connect_timeout_s=20, command_timeout_s=20, data_timeout_s=20)
    assert results(await deliver_to(outbound).attempt(made)) == [expected]
    assert len(remote.messages) == (expected[0] is OK)


async def test_what_was_offered_before_tls_counts_for_nothing(
    scripted_remote: Start, dns_server: DnsServer, tls_files: TlsFiles, deliver_to: DeliverTo
) -> None:
    """RFC 3207 s. 4.2: anybody may have said it, in the EHLO before, or slipped in behind the reply to STARTTLS."""
    remote = scripted_remote(
        tls=tls_files.server_context(),
        replies={
            "EHLO": ["250-far\r\n250-STARTTLS\r\n250-PIPELINING\r\n250-DSN\r\n250 SIZE 10", "250-far\r\n250 8BITMIME"],
            "STARTTLS": "220 2.0.0 go\r\n250-far\r\n250-REQUIRETLS\r\n250 SIZE 10",
        },
    )
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    made = attempt("bob@far.test", body="8BITMIME", ret="HDRS")
    outbound = settings(remote.port, connect_timeout_s=20, command_timeout_s=20, data_timeout_s=20)
    assert results(await deliver_to(outbound).attempt(made)) == [(OK, "2.0.0")]
    (message,) = remote.messages
    assert (message.tls, message.mail_options) == (True, ("BODY=8BITMIME",))
    assert len([c for c in remote.commands if c.startswith("EHLO")]) == 2
