"""Delivery to real sockets: remotes that refuse, cut, stall and lie in every phase."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from delivery_samples import (
    DEFERRED,
    FAILED,
    MESSAGE,
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
from support.sinks import DROP, STALL, SmtpSink

from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Recipient
from pymx.queue.item import Result
from pymx.spool import SpoolWriter


async def test_a_message_arrives_octet_for_octet(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """By MX, dots stuffed, envelope as it was."""
    remote = scripted_remote()
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    (outcome,) = await deliver_to(settings(remote.port)).attempt(attempt("bob@far.test"))
    assert (outcome.result, outcome.status, outcome.reply) == (OK, "2.0.0", "250 2.0.0 stored")
    assert (outcome.mx, outcome.address, outcome.tls) == ("mx.far.test", "127.0.0.1", "")
    (message,) = remote.messages
    assert (message.helo, message.mail_from, message.rcpt_to) == (
        "mx.ours.test",
        "alice@example.test",
        ("bob@far.test",),
    )
    assert message.content == MESSAGE


@pytest.mark.parametrize("pipelining", [True, False])
async def test_each_recipient_has_the_outcome_of_its_own_reply(
    scripted_remote: Start, deliver_to: DeliverTo, pipelining: bool
) -> None:
    """Partial acceptance, in one transaction."""
    remote = scripted_remote(
        replies={"RCPT no@far.test": "550 5.1.1 nobody", "RCPT later@far.test": "450 4.2.1 busy"},
        extensions=("PIPELINING",) if pipelining else (),
    )
    outcomes = await deliver_to(smarthost(remote.port)).attempt(
        attempt("a@far.test", "no@far.test", "later@far.test", "b@near.test")
    )
    assert results(outcomes) == [(OK, "2.0.0"), (FAILED, "5.1.1"), (DEFERRED, "4.2.1"), (OK, "2.0.0")]
    assert [m.rcpt_to for m in remote.messages] == [("a@far.test", "b@near.test")]
    assert outcomes[1].reply == "550 5.1.1 nobody"


TABLE = [
    ("CONNECT", "554 5.7.1 blocked", (DEFERRED, "4.7.1")),
    ("CONNECT", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    ("CONNECT", "521 no mail", (FAILED, "5.3.2")),
    ("CONNECT", DROP, (DEFERRED, "4.4.2")),
    ("CONNECT", STALL, (DEFERRED, "4.4.2")),
    ("CONNECT", "hello", (DEFERRED, "4.5.0")),
    ("EHLO", "550 5.7.1 no", (OK, "2.0.0")),  # HELO is tried
    ("EHLO", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    ("EHLO", DROP, (DEFERRED, "4.4.2")),
    ("EHLO", STALL, (DEFERRED, "4.4.2")),
    ("EHLO", "hello", (DEFERRED, "4.5.0")),
    ("MAIL", "451 4.7.1 greylisted", (DEFERRED, "4.7.1")),
    ("MAIL", "550 5.7.1 not you", (FAILED, "5.7.1")),
    ("MAIL", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    ("MAIL", DROP, (DEFERRED, "4.4.2")),
    ("MAIL", STALL, (DEFERRED, "4.4.2")),
    ("MAIL", "hello", (DEFERRED, "4.5.0")),
    ("RCPT", "450 4.2.1 busy", (DEFERRED, "4.2.1")),
    ("RCPT", "550 5.1.1 nobody", (FAILED, "5.1.1")),
    ("RCPT", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    ("RCPT", "hello", (DEFERRED, "4.5.0")),
    ("RCPT", DROP, (DEFERRED, "4.4.2")),
    ("RCPT", STALL, (DEFERRED, "4.4.2")),
    ("DATA", "451 4.3.0 later", (DEFERRED, "4.3.0")),
    ("DATA", "554 5.7.1 no", (FAILED, "5.7.1")),
    ("DATA", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    ("DATA", "hello", (DEFERRED, "4.5.0")),
    ("DATA", DROP, (DEFERRED, "4.4.2")),
    ("DATA", STALL, (DEFERRED, "4.4.2")),
    (".", "451 4.7.1 later", (DEFERRED, "4.7.1")),
    (".", "554 5.7.1 spam", (FAILED, "5.7.1")),
    (".", "421 4.3.2 busy", (DEFERRED, "4.3.2")),
    (".", "hello", (DEFERRED, "4.5.0")),
    (".", DROP, (DEFERRED, "4.4.2")),
    (".", STALL, (DEFERRED, "4.4.2")),
]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(("phase", "what", "expected"), TABLE)
async def test_every_phase_and_failure(
    scripted_remote: Start, deliver_to: DeliverTo,
    phase: str, what: str, expected: tuple[Result, str], pipelining: bool,
) -> None:  # fmt: skip
    """The table of phase and failure, over a real connection; afterwards the remote works again."""
    remote = scripted_remote(replies={phase: [what]}, extensions=("PIPELINING",) if pipelining else ())
    deliver = deliver_to(smarthost(remote.port))
    assert results(await deliver.attempt(attempt("bob@far.test"))) == [expected]
    if what != STALL:  # a stalled thread of the remote would end only with the test
        assert results(await deliver.attempt(attempt("bob@far.test"))) == [(OK, "2.0.0")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-f", "MAIL"), (FAILED, "5.3.0")),
        (("-r", "MAIL"), (DEFERRED, "4.3.0")),
        (("-f", "RCPT"), (FAILED, "5.3.0")),
        (("-r", "RCPT"), (DEFERRED, "4.3.0")),
        (("-f", "DATA"), (FAILED, "5.3.0")),
        (("-f", "."), (FAILED, "5.3.0")),
        (("-r", "."), (DEFERRED, "4.3.0")),
        (("-q", "MAIL"), (DEFERRED, "4.4.2")),
        (("-q", "DATA"), (DEFERRED, "4.4.2")),
        (("-q", "."), (DEFERRED, "4.4.2")),
        (("-Q", "EHLO"), (DEFERRED, "4.7.0")),
        (("-Q", "RCPT"), (DEFERRED, "4.7.0")),
        (("-f", "EHLO"), (OK, "2.0.0")),
        (("-e",), (OK, "2.0.0")),
        (("-p", "-8", "-N"), (OK, "2.0.0")),
    ],
)
async def test_against_postfix_sink(
    tmp_path: Path, deliver_to: DeliverTo, options: tuple[str, ...], expected: tuple[Result, str]
) -> None:
    """The same with a server that is not ours."""
    with SmtpSink(tmp_path / "sink", options=options) as sink:
        (outcome,) = await deliver_to(smarthost(sink.port)).attempt(attempt("bob@far.test"))
        assert outcome.result is expected[0]
        assert outcome.status[0] == expected[1][0]
        if outcome.result is OK:
            assert [m.content for m in sink.messages()] == [MESSAGE]


@pytest.mark.parametrize("size", ["9" * 5000, "²"])
async def test_a_size_that_is_no_number_limits_nothing(
    scripted_remote: Start, deliver_to: DeliverTo, size: str
) -> None:
    """Digits that Python has, or will not read: the remote may say what it likes."""
    remote = scripted_remote(extensions=(f"SIZE {size}",))
    (outcome,) = await deliver_to(smarthost(remote.port)).attempt(attempt("bob@far.test"))
    assert outcome.result is OK


async def test_a_temporary_refusal_sends_it_to_the_next_host(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """4xx at one MX tries the next; what was accepted is not sent again."""
    first = scripted_remote(replies={"RCPT b@far.test": "450 4.2.1 busy"}, address="127.0.0.2")
    second = scripted_remote(address="127.0.0.3", port=first.port)
    dns_server.zone("far.test", "@ MX 10 x\n@ MX 20 y\n@ MX 30 z\nx A 127.0.0.9\ny A 127.0.0.2\nz A 127.0.0.3")
    outcomes = await deliver_to(settings(first.port)).attempt(attempt("a@far.test", "b@far.test", "c@far.test"))
    assert [(o.result, o.mx) for o in outcomes] == [(OK, "y.far.test"), (OK, "z.far.test"), (OK, "y.far.test")]
    assert [m.rcpt_to for m in first.messages + second.messages] == [("a@far.test", "c@far.test"), ("b@far.test",)]


async def test_after_the_final_dot_no_other_host_is_tried(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """The message may have arrived: deferred, and counted."""
    first = scripted_remote(replies={".": DROP}, address="127.0.0.2")
    second = scripted_remote(address="127.0.0.3", port=first.port)
    dns_server.zone("far.test", "@ MX 10 y\n@ MX 20 z\ny A 127.0.0.2\nz A 127.0.0.3")
    outcomes = await deliver_to(settings(first.port)).attempt(attempt("a@far.test"))
    assert results(outcomes) == [(DEFERRED, "4.4.2")]
    assert second.connections == 0


async def test_domains_without_servers_fail_with_their_reason(dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """Null MX, no such domain, each recipient by its own domain."""
    dns_server.zone("null.test", "@ MX 0 .")
    outcomes = await deliver_to(settings(25)).attempt(attempt("a@null.test", "b@nowhere.test"))
    assert results(outcomes) == [(FAILED, "5.1.10"), (FAILED, "5.1.2")]
    assert "null MX" in outcomes[0].reply
    assert outcomes[0].mx == ""


async def test_connections_are_kept_for_the_next_message(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """[outbound] keep_connection_s and max_messages_per_connection."""
    remote = scripted_remote()
    outbound = replaced(smarthost(remote.port), max_messages_per_connection=3)
    deliver = deliver_to(outbound)
    for n in range(7):
        assert results(await deliver.attempt(attempt(f"a{n}@far.test"))) == [(OK, "2.0.0")]
    assert (len(remote.messages), remote.connections) == (7, 3)


async def test_a_refused_transaction_leaves_the_connection_usable(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """RSET before the next MAIL."""
    remote = scripted_remote(replies={"RCPT": ["550 5.1.1 no"], "DATA": ["451 4.3.0 no"]}, extensions=())
    deliver = deliver_to(smarthost(remote.port))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(FAILED, "5.1.1")]
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(DEFERRED, "4.3.0")]
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert remote.connections == 1
    assert remote.commands.count("RSET") == 2


async def test_too_many_recipients_go_in_further_transactions(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """RFC 5321 s. 4.5.3.1.10, and never more than a hundred at once."""
    remote = scripted_remote(replies={f"RCPT r{n}@far.test": ["452 4.5.3 too many"] for n in range(60, 70)})
    outcomes = await deliver_to(smarthost(remote.port)).attempt(attempt(*(f"r{n}@far.test" for n in range(230))))
    assert {o.result for o in outcomes} == {OK}
    assert sorted(len(m.rcpt_to) for m in remote.messages) == [40, 90, 100]


async def test_parameters_are_passed_where_they_are_offered(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """RFC 1870, 6152, 3461."""
    remote = scripted_remote(extensions=("8BITMIME", "DSN"))
    made = attempt("bob@far.test", body="8BITMIME", ret="HDRS", envid="QQ+1 x")
    recipient = Recipient(parse_address("bob@far.test"), frozenset({"SUCCESS", "FAILURE"}), "rfc822;b=b@far.test")
    made = replace(made, envelope=made.envelope.with_recipients((recipient,)))
    (outcome,) = await deliver_to(smarthost(remote.port)).attempt(made)
    (message,) = remote.messages
    assert message.mail_options == (f"SIZE={len(MESSAGE)}", "BODY=8BITMIME", "RET=HDRS", "ENVID=QQ+2B1+20x")
    assert message.rcpt_options == (("NOTIFY=FAILURE,SUCCESS", "ORCPT=rfc822;b+3Db@far.test"),)
    assert outcome.dsn_passed_on
    bare = scripted_remote(extensions=())
    (outcome,) = await deliver_to(smarthost(bare.port)).attempt(made)
    assert bare.messages[0].mail_options == (f"SIZE={len(MESSAGE)}",)
    assert not outcome.dsn_passed_on


async def test_internationalized_mail(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """RFC 6531: SMTPUTF8 when needed, 5.6.7 when it is not there, A-labels when those do."""
    able, unable = scripted_remote(), scripted_remote(extensions=("8BITMIME",))
    utf8 = attempt("bücher@bücher.test", smtputf8=True)
    assert results(await deliver_to(smarthost(able.port)).attempt(utf8)) == [(OK, "2.0.0")]
    assert able.messages[0].rcpt_to == ("bücher@bücher.test",)
    assert "SMTPUTF8" in able.messages[0].mail_options
    assert results(await deliver_to(smarthost(unable.port)).attempt(utf8)) == [(FAILED, "5.6.7")]
    domain_only = attempt("bob@bücher.test", smtputf8=True)
    assert results(await deliver_to(smarthost(unable.port)).attempt(domain_only)) == [(OK, "2.0.0")]
    assert unable.messages[0].rcpt_to == ("bob@xn--bcher-kva.test",)
    no_idna = attempt("bob@far.test")
    odd = Recipient(Address("bob", "\u2603\u200d.test"))
    no_idna = replace(no_idna, envelope=no_idna.envelope.with_recipients((odd,)))
    assert results(await deliver_to(smarthost(unable.port)).attempt(no_idna)) == [(FAILED, "5.6.7")]
    header = attempt("bob@far.test", smtputf8=True, content="Subject: ü\r\n\r\nx\r\n".encode())
    assert results(await deliver_to(smarthost(unable.port)).attempt(header)) == [(FAILED, "5.6.7")]


async def test_a_message_over_the_remote_limit_is_not_sent(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """RFC 1870 s. 6.1: told by its SIZE."""
    remote = scripted_remote(max_message_octets=20)
    outcomes = await deliver_to(smarthost(remote.port)).attempt(attempt("a@far.test"))
    assert results(outcomes) == [(FAILED, "5.3.4")]
    assert not any(c.startswith("MAIL") for c in remote.commands)


async def test_bare_newlines_never_leave_here(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """SMTP smuggling: the next server may see the end elsewhere."""
    remote = scripted_remote()
    for body in (b"x\n.\nMAIL FROM:<evil@x>\n", b"x\r.\r\n", b"x\r"):
        made = attempt("a@far.test", content=b"A: b\r\n\r\n" + body)
        assert results(await deliver_to(smarthost(remote.port)).attempt(made)) == [(FAILED, "5.6.0")]
    assert remote.messages == []


@pytest.mark.parametrize("octets", [100, 70_000, 3_000_000])
async def test_contents_of_every_size_arrive_whole(
    tmp_path: Path, scripted_remote: Start, deliver_to: DeliverTo, octets: int
) -> None:
    """Streamed from memory or file, dots at every place."""
    line = b"." * 50 + b"\r\n.\r\n" + os.urandom(30).hex().encode() + b"\r\n"
    data = (b"A: b\r\n\r\n" + line * (octets // len(line) + 1)) + b"no end"
    spool = SpoolWriter(tmp_path, memory_octets=200_000)
    for start in range(0, len(data), 65_537):
        spool.feed(data[start : start + 65_537])
    remote = scripted_remote()
    made = attempt("a@far.test", content=spool.finish())
    outbound = replaced(smarthost(remote.port), data_timeout_s=30, command_timeout_s=30)
    assert results(await deliver_to(outbound).attempt(made)) == [(OK, "2.0.0")]
    assert remote.messages[0].content == data + b"\r\n"


async def test_long_and_odd_replies_are_tamed(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """Several lines become one, an enhanced code is said once, controls are escaped, and nothing is endless."""
    remote = scripted_remote(replies={"RCPT": ["550-5.1.1 no such\r\n550 5.1.1 user \x1b[31mred", "550 " + "x" * 5000]})
    deliver = deliver_to(smarthost(remote.port))
    (outcome,) = await deliver.attempt(attempt("a@far.test"))
    assert outcome.reply == "550 5.1.1 no such user \\x1b[31mred"
    (outcome,) = await deliver.attempt(attempt("a@far.test"))
    assert len(outcome.reply) < 600


async def test_a_recipient_that_needs_smtputf8_does_not_take_the_others_down(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """RFC 6531 s. 3.5: only what can't be sent without the extension is refused for the want of it."""
    unable = scripted_remote(extensions=("PIPELINING",))
    mixed = attempt("bob@far.test", "b\u00fccher@far.test", "eve@far.test", smtputf8=True)
    outcomes = await deliver_to(smarthost(unable.port)).attempt(mixed)
    assert results(outcomes) == [(OK, "2.0.0"), (FAILED, "5.6.7"), (OK, "2.0.0")]
    assert [m.rcpt_to for m in unable.messages] == [("bob@far.test", "eve@far.test")]
    able = scripted_remote()
    assert results(await deliver_to(smarthost(able.port)).attempt(mixed)) == [(OK, "2.0.0")] * 3
    assert len(able.messages) == 1
