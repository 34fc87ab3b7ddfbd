"""Debian's Postfix as the other side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery_samples import DEFERRED, FAILED, MESSAGE, OK, DeliverTo, attempt, replaced, results, settings, smarthost
from support.cutting_proxy import CuttingProxy
from support.dns_server import DnsServer
from support.postfix import Postfix
from support.sinks import SmtpSink
from support.tls import CertificateAuthority
from support.wait import wait_until

from pymx.queue.item import Result
from pymx.queue.place import Kind


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmtpSink]:
    with SmtpSink(tmp_path_factory.mktemp("behind") / "sink") as found:
        yield found


@pytest.fixture(scope="module")
def postfix(certificate_authority: CertificateAuthority, sink: SmtpSink) -> Iterator[Postfix]:
    with Postfix(certificate_authority.issue("postfix"), sink.port) as found:
        yield found


def mx(dns_server: DnsServer) -> None:
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")


async def test_a_message_arrives_over_tls(
    postfix: Postfix, sink: SmtpSink, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """STARTTLS, and what Postfix hands on is what we sent."""
    mx(dns_server)
    (outcome,) = await deliver_to(settings(postfix.port)).attempt(attempt("whole@far.test"))
    assert (outcome.result, outcome.status, outcome.mx) == (OK, "2.0.0", "mx.far.test")
    assert outcome.reply.startswith("250 2.0.0 Ok: queued as ")
    assert outcome.tls.startswith("TLSv1.3")
    await wait_until(lambda: any("whole@far.test" in m.rcpt_to for m in sink.messages()))
    (message,) = [m for m in sink.messages() if "whole@far.test" in m.rcpt_to]
    assert message.content.endswith(MESSAGE.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("to", "expected", "strain"),
    [
        ("no", (FAILED, "5.1.1"), None),
        ("later", (DEFERRED, "4.3.0"), None),
        ("busy", (DEFERRED, "4.3.2"), Kind.DOWN),
        ("slow", (OK, "2.0.0"), None),
        # Postfix holds back the reply to MAIL until it has one for RCPT
        ("stall", (DEFERRED, "4.4.2"), Kind.DOWN),
    ],
)
async def test_what_it_says_of_a_recipient(
    postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo,
    to: str, expected: tuple[Result, str], strain: Kind | None,
) -> None:  # fmt: skip
    """5xx, 4xx, 421 with the connection closed, a slow reply, none."""
    mx(dns_server)
    deliver = deliver_to(settings(postfix.port, command_timeout_s=3 if to == "stall" else 20))
    (outcome,) = await deliver.attempt(attempt(f"{to}@far.test"))
    assert (outcome.result, outcome.status) == expected
    assert (outcome.strain.kind if outcome.strain else None) is strain


async def test_some_recipients_of_one_message(postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """Each has its own outcome; the message went once."""
    mx(dns_server)
    outcomes = await deliver_to(settings(postfix.port)).attempt(
        attempt("a@far.test", "no@far.test", "b@far.test", "later@far.test")
    )
    assert results(outcomes) == [(OK, "2.0.0"), (FAILED, "5.1.1"), (OK, "2.0.0"), (DEFERRED, "4.3.0")]
    assert outcomes[0].reply == outcomes[2].reply


async def test_greylisting(postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """The second try gets through, from the same address; nobody is slowed down by it."""
    mx(dns_server)
    deliver = deliver_to(settings(postfix.port))
    (first,) = await deliver.attempt(attempt("grey@far.test"))
    assert (first.result, first.status, first.strain) == (DEFERRED, "4.7.1", None)
    assert results(await deliver.attempt(attempt("grey@far.test"))) == [(OK, "2.0.0")]


async def test_a_message_that_is_too_large(postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """Refused for its SIZE, without being sent."""
    mx(dns_server)
    content = MESSAGE + b"x" * 70 * 300 + b"\r\n"
    (outcome,) = await deliver_to(settings(postfix.port)).attempt(attempt("a@far.test", content=content))
    assert (outcome.result, outcome.status) == (FAILED, "5.3.4")


async def test_a_relay_that_is_not_ours(postfix: Postfix, deliver_to: DeliverTo) -> None:
    """Postfix does not relay for strangers."""
    (outcome,) = await deliver_to(smarthost(postfix.port)).attempt(attempt("a@elsewhere.test"))
    assert (outcome.result, outcome.status) == (FAILED, "5.7.1")


async def test_its_rate_limit_slows_us_down(postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """smtpd_client_message_rate_limit: "too much mail"."""
    mx(dns_server)
    deliver = deliver_to(settings(postfix.limited))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    (outcome,) = await deliver.attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.status) == (DEFERRED, "4.7.1")
    assert outcome.strain is not None
    assert outcome.strain.kind is Kind.SLOW


async def test_a_server_that_offers_nothing(postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """No STARTTLS, no PIPELINING, no SIZE."""
    mx(dns_server)
    deliver = deliver_to(settings(postfix.plain))
    outcomes = await deliver.attempt(attempt("a@far.test", "no@far.test"))
    assert [o.result for o in outcomes] == [OK, FAILED]
    assert outcomes[0].tls == ""


async def test_several_messages_over_one_connection(
    postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """RSET between them, one TLS handshake."""
    mx(dns_server)
    deliver = deliver_to(settings(postfix.port))
    for _ in range(5):
        assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert [entry.connection.sent for entry in deliver._kept._waiting] == [5]


async def test_it_goes_away_between_two_messages(
    certificate_authority: CertificateAuthority, sink: SmtpSink, dns_server: DnsServer, deliver_to: DeliverTo,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Stopped: connection refused, and the kept connection is no failure of its own."""
    mx(dns_server)
    with Postfix(certificate_authority.issue("postfix-2"), sink.port) as own:
        deliver = deliver_to(settings(own.port))
        assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    (outcome,) = await deliver.attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.status) == (DEFERRED, "4.4.1")
    assert outcome.strain is not None
    assert outcome.strain.kind is Kind.DOWN


@pytest.mark.parametrize(
    ("phase", "replies_before", "copies"),
    [("greeting", 0, 1), ("ehlo", 1, 1), ("mail", 2, 1), ("rcpt", 3, 1), ("data", 4, 1), ("dot", 5, 2)],
)
async def test_its_connection_is_cut_in_each_phase(
    postfix: Postfix, sink: SmtpSink, deliver_to: DeliverTo, phase: str, replies_before: int, copies: int
) -> None:
    """It waits, and arrives at the next try; twice only where Postfix had it and its 250 did not come (RFC 1047)."""
    to = f"cut-{phase}@far.test"
    with CuttingProxy(postfix.port) as proxy:
        proxy.cut_at = replies_before
        deliver = deliver_to(replaced(smarthost(proxy.port), command_timeout_s=20, data_timeout_s=20))
        assert results(await deliver.attempt(attempt(to))) == [(DEFERRED, "4.4.2")]
        assert results(await deliver.attempt(attempt(to))) == [(OK, "2.0.0")]
        await deliver.close()
    await wait_until(lambda: [m.rcpt_to for m in sink.messages()].count((to,)) == copies)


async def test_its_connection_is_cut_at_starttls(
    postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """Nothing forbids to do without TLS, so the message goes at once over another connection; a route may forbid it."""
    mx(dns_server)
    with CuttingProxy(postfix.port) as proxy:
        proxy.cut_at = 2
        deliver = deliver_to(settings(proxy.port, command_timeout_s=20, data_timeout_s=20))
        (outcome,) = await deliver.attempt(attempt("cut-tls@far.test"))
        assert (outcome.result, outcome.tls, proxy.cut_at) == (OK, "", None)
        await deliver.close()
        proxy.cut_at = 2
        deliver = deliver_to(replaced(smarthost(proxy.port, tls="verified"), command_timeout_s=20))
        assert results(await deliver.attempt(attempt("cut-tls@far.test"))) == [(DEFERRED, "4.7.5")]


async def test_its_connection_is_cut_amid_the_content(postfix: Postfix, sink: SmtpSink, deliver_to: DeliverTo) -> None:
    """Half a message is none."""
    to = "cut-content@far.test"
    content = MESSAGE + b"x" * 70 * 200 + b"\r\n"
    with CuttingProxy(postfix.port) as proxy:
        proxy.cut_content = 5000
        deliver = deliver_to(replaced(smarthost(proxy.port), command_timeout_s=20, data_timeout_s=20))
        assert results(await deliver.attempt(attempt(to, content=content))) == [(DEFERRED, "4.4.2")]
        assert results(await deliver.attempt(attempt(to, content=content))) == [(OK, "2.0.0")]
        await deliver.close()
    await wait_until(lambda: any(m.rcpt_to == (to,) for m in sink.messages()))
    assert [len(m.content) > 14_000 for m in sink.messages() if m.rcpt_to == (to,)] == [True]


@pytest.mark.parametrize(
    ("offer", "envelope", "expected"),
    [
        (("PIPELINING", "8BITMIME", "SIZE 99999999"), {"body": "8BITMIME"}, (OK, "2.0.0")),
        (("STARTTLS",), {}, (OK, "2.0.0")),
        (("DSN", "SMTPUTF8"), {"ret": "HDRS"}, (FAILED, "5.7.1")),
    ],
)
async def test_its_ehlo_offers_what_it_does_not_have(
    postfix: Postfix, dns_server: DnsServer, deliver_to: DeliverTo,
    offer: tuple[str, ...], envelope: dict[str, object], expected: tuple[Result, str],
) -> None:  # fmt: skip
    """The message arrives where that can be; else its refusal says what was wrong."""
    mx(dns_server)
    with CuttingProxy(postfix.plain) as proxy:
        proxy.offer = offer
        deliver = deliver_to(settings(proxy.port, command_timeout_s=20, data_timeout_s=20))
        (outcome,) = await deliver.attempt(attempt("liar@far.test", **envelope))
        await deliver.close()
    assert (outcome.result, outcome.status) == expected, outcome
    assert outcome.tls == ""
