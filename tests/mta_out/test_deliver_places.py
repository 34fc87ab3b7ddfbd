"""Delivery that knows where it sends to: places and their limits, smarthosts that stand in for each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from delivery_samples import DEFERRED, FAILED, OK, DeliverTo, Start, attempt, results, settings
from support.dns_server import DnsServer, Failure

from pymx.config.model import Outbound, Provider, Route
from pymx.mta.deliver import Deliver
from pymx.queue.item import Outcome
from pymx.queue.place import Kind, Place


async def deliver_by_place(deliver: Deliver, *to: str) -> list[Outcome]:
    """As the queue does: one destination, with its place."""
    made = attempt(*to)
    destination = to[0].rpartition("@")[2]
    return await deliver.attempt(replace(made, destination=destination, place=await deliver.place(destination)))


async def test_domains_are_grouped_by_their_best_mail_servers(dns_server: DnsServer, deliver_to: DeliverTo) -> None:
    """By the names of MX records of the best preference; a route is a place of its own."""
    dns_server.zone("one.test", "@ MX 10 ASPMX.L.google.com.\n@ MX 20 elsewhere.test.")
    dns_server.zone("two.test", "@ MX 5 mx.hoster.test.\n@ MX 10 aspmx.l.google.com.")
    dns_server.zone("three.test", "@ MX 1 mx.hoster.test.")
    dns_server.fail("broken.test", Failure.SERVFAIL)
    outbound = settings(25, route=[Route(domain="routed.test", host="smart.test", port=587)])
    deliver = deliver_to(outbound)
    places = [await deliver.place(d) for d in ("one.test", "two.test", "three.test", "broken.test", "nx.test")]
    assert [p.site for p in places] == ["google", "mx.hoster.test", "mx.hoster.test", "broken.test", "nx.test"]
    assert all(p.direct for p in places)
    assert [p.is_guess for p in places] == [False, False, False, True, False]
    routed = await deliver.place("smart.test:587")
    assert (routed.site, routed.direct) == ("smart.test:587", False)
    assert (await deliver.place("[192.0.2.1]")).site == "[192.0.2.1]"


async def test_connections_at_work_and_kept_are_never_more_than_the_provider_allows(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """A provider counts connections, not the domains they are for. The oldest kept one makes room."""
    remote = scripted_remote()
    for n in range(5):
        dns_server.zone(f"d{n}.test", "@ MX 10 mx.big.test.")
    dns_server.zone("big.test", "mx A 127.0.0.1")
    provider = Provider(name="big", mx=[".big.test"], max_connections=2, max_messages_per_connection=3)
    deliver = deliver_to(settings(remote.port, provider=[provider], keep_connection_s=30))
    for n in (0, 1, 2, 3, 4, 4, 4, 3):
        assert results(await deliver_by_place(deliver, f"a@d{n}.test")) == [(OK, "2.0.0")]
        assert len(deliver._kept._waiting) <= 2
    # d4's went three times over one connection, which was then given up; d3's was kept
    assert remote.connections == 5
    assert [entry.connection.sent for entry in deliver._kept._waiting] == [2]


async def test_a_provider_that_says_slower_is_not_asked_at_its_other_hosts(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """They would say the same, and count it against us."""
    first = scripted_remote(replies={"MAIL": "421 4.7.28 rate limited"}, address="127.0.0.2")
    second = scripted_remote(address="127.0.0.3", port=first.port)
    dns_server.zone("far.test", "@ MX 10 y\n@ MX 20 z\ny A 127.0.0.2\nz A 127.0.0.3")
    (outcome,) = await deliver_by_place(deliver_to(settings(first.port)), "a@far.test")
    assert (outcome.result, outcome.status) == (DEFERRED, "4.7.28")
    assert outcome.strain is not None
    assert (outcome.strain.kind, outcome.strain.reason) == (Kind.SLOW, "421 4.7.28 rate limited")
    assert second.connections == 0


async def test_a_refusal_for_good_may_slow_down_too(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """Microsoft's block list says 550: this message fails, the next ones wait."""
    remote = scripted_remote(replies={"MAIL": "550 5.7.1 part of their network is on our block list (S3150)"})
    dns_server.zone("far.test", "@ MX 10 far-test.olc.protection.outlook.com.")
    dns_server.zone("outlook.com", "far-test.olc.protection A 127.0.0.1")
    (outcome,) = await deliver_by_place(deliver_to(settings(remote.port)), "a@far.test")
    assert outcome.result is FAILED
    assert outcome.strain is not None
    assert outcome.strain.kind is Kind.SLOW


async def test_where_nobody_can_be_talked_to_is_said_so(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """But not when another host had something to say."""
    remote = scripted_remote(replies={"RCPT": "450 4.2.1 busy"}, address="127.0.0.2")
    dns_server.zone("down.test", "@ MX 10 mx\nmx A 127.0.0.9")
    dns_server.zone("half.test", "@ MX 10 x\n@ MX 20 y\nx A 127.0.0.9\ny A 127.0.0.2")
    dns_server.fail("lost.test", Failure.SERVFAIL)
    deliver = deliver_to(settings(remote.port))
    found = [(await deliver_by_place(deliver, f"a@{d}.test"))[0] for d in ("down", "half", "lost")]
    assert [o.result for o in found] == [DEFERRED] * 3
    assert [o.strain.kind if o.strain else None for o in found] == [Kind.DOWN, None, Kind.DOWN]


def smarthosts(*ports: int, **changes: object) -> Outbound:
    routes = [Route(domain="*", host="127.0.0.1", port=port, tls="none", **changes) for port in ports]  # type: ignore[arg-type]
    return settings(25, route=[*routes, Route(domain="own.test", host="127.0.0.1", port=ports[0], tls="none")])


@pytest.mark.parametrize(
    "trouble", [{"CONNECT": "421 4.3.2 closing"}, {"RCPT": "451 4.3.0 later"}, {"MAIL": "421 4.7.28 rate limited"}]
)
async def test_smarthosts_of_a_domain_are_tried_in_order(
    scripted_remote: Start, deliver_to: DeliverTo, trouble: dict[str, str]
) -> None:
    """Temporary trouble at one leads to the next, as with MX records; a refusal for good does not."""
    first, second = scripted_remote(replies=dict(trouble)), scripted_remote()
    deliver = deliver_to(smarthosts(first.port, second.port))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert len(second.messages) == 1
    first.replies.clear()
    first.replies["RCPT"] = "550 5.1.1 nobody"
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(FAILED, "5.1.1")]
    first.replies.clear()
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert (len(first.messages), len(second.messages)) == (1, 1)


async def test_when_all_smarthosts_fail_the_last_word_counts(scripted_remote: Start, deliver_to: DeliverTo) -> None:
    """Deferred, with what the last one said."""
    first = scripted_remote(replies={"RCPT": "451 4.3.0 first"})
    second = scripted_remote(replies={"RCPT": "452 4.3.1 second"})
    (outcome,) = await deliver_to(smarthosts(first.port, second.port)).attempt(attempt("a@far.test"))
    assert (outcome.result, outcome.reply) == (DEFERRED, "452 4.3.1 second")


async def test_a_login_that_is_refused_leads_to_the_next_smarthost(
    tmp_path: Path, scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """What is wrong with one account need not be with the other."""
    (tmp_path / "password").write_text("wrong\n")
    first, second = scripted_remote(login=("me", "s3cret")), scripted_remote(login=("me", "wrong"))
    outbound = smarthosts(first.port, second.port, username="me", password_file=str(tmp_path / "password"))
    assert results(await deliver_to(outbound).attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert len(second.messages) == 1


async def test_a_password_may_be_a_systemd_credential(
    tmp_path: Path, scripted_remote: Start, deliver_to: DeliverTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadCredential=: a file in $CREDENTIALS_DIRECTORY; without that the mail waits."""
    remote = scripted_remote(login=("me", "s3cret"))
    outbound = smarthosts(remote.port, username="me", password_credential="smarthost")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (outcome,) = await deliver_to(outbound).attempt(attempt("a@far.test"))
    assert outcome.result is DEFERRED
    assert "CREDENTIALS_DIRECTORY" in outcome.reply
    (tmp_path / "smarthost").write_text("s3cret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert results(await deliver_to(outbound).attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]


async def test_an_attempt_without_a_place_is_made_by_the_general_limits(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """Such as those of tests and of tools."""
    remote = scripted_remote()
    dns_server.zone("far.test", "@ MX 10 mx\nmx A 127.0.0.1")
    deliver = deliver_to(settings(remote.port))
    for _ in range(2):
        assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert remote.connections == 1
    assert isinstance(await deliver.place("far.test"), Place)


@pytest.mark.parametrize("words", ["421 4.7.28 rate limited", "421 4.3.2 closing"])
async def test_a_stranger_behind_somebody_elses_server_does_not_speak_for_it(
    scripted_remote: Start, dns_server: DnsServer, deliver_to: DeliverTo, words: str
) -> None:
    """Else whoever names a big server as his first and one of his own as second could stop our mail to the big one."""
    big = scripted_remote(replies={"RCPT": "450 4.2.0 greylisted"}, address="127.0.0.2")
    scripted_remote(replies={"MAIL": words}, address="127.0.0.3", port=big.port)
    dns_server.zone("big.test", "mx A 127.0.0.2")
    dns_server.zone("evil.test", "@ MX 10 mx.big.test.\n@ MX 20 mx\nmx A 127.0.0.3")
    (outcome,) = await deliver_by_place(deliver_to(settings(big.port)), "a@evil.test")
    assert (outcome.result, outcome.mx) == (DEFERRED, "mx.evil.test")
    assert outcome.strain is None


async def test_a_place_is_down_when_its_best_server_and_the_one_behind_it_are(
    dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """What the best one said counts, not that another was tried after it."""
    dns_server.zone("far.test", "@ MX 10 x\n@ MX 20 y\nx A 127.0.0.8\ny A 127.0.0.9")
    (outcome,) = await deliver_by_place(deliver_to(settings(1)), "a@far.test")
    assert outcome.strain is not None
    assert outcome.strain.kind is Kind.DOWN


async def test_a_domain_whose_name_servers_fail_does_not_stop_mail_to_the_servers_it_named(
    dns_server: DnsServer, deliver_to: DeliverTo
) -> None:
    """Its MX records led to Google a moment ago."""
    dns_server.zone("far.test", "@ MX 10 aspmx.l.google.com.")
    deliver = deliver_to(settings(1))
    place = await deliver.place("far.test")
    dns_server.fail("far.test", Failure.SERVFAIL)
    deliver._resolver.forget()
    (outcome,) = await deliver.attempt(replace(attempt("a@far.test"), destination="far.test", place=place))
    assert (outcome.result, outcome.status, outcome.strain) == (DEFERRED, "4.4.3", None)
