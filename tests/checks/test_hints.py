"""The checks that only give hints: iprev, HELO, lists, SPF; each case of each, asked of a real name server."""

from __future__ import annotations

import pytest
from support.dns_server import DnsServer, Failure

from pymx.checks.check import Check, Facts, Stage
from pymx.checks.dnsbl import Dnsbl
from pymx.checks.helo import Helo
from pymx.checks.iprev import Iprev
from pymx.checks.spf import MAX_QUESTIONS, Spf
from pymx.checks.verdict import Level, Verdict
from pymx.config.model import Dns
from pymx.config.zones import ZoneError, parse_zone
from pymx.mail.address import parse_address
from pymx.mail.envelope import Listener, Origin
from pymx.resolver.resolver import Resolver


@pytest.fixture
def resolver(dns_server: DnsServer) -> Resolver:
    dns_server.zone(
        "far.test",
        """
        mail    A     192.0.2.7
        six     AAAA  2001:db8::7
        other   A     192.0.2.99
        mx-only MX    10 mail
        """,
    )
    dns_server.add("7.2.0.192.in-addr.arpa", "PTR", "mail.far.test")
    dns_server.add("8.2.0.192.in-addr.arpa", "PTR", "other.far.test")
    dns_server.fail("10.2.0.192.in-addr.arpa", Failure.SERVFAIL)
    dns_server.fail("broken.far.test", Failure.SERVFAIL)
    for address, codes in {"7": ["127.0.0.2"], "8": ["127.0.0.2", "127.0.0.10"], "9": ["127.255.255.254"]}.items():
        dns_server.add(f"{address}.2.0.192.bl.test", "A", *codes)
    dns_server.add("7.2.0.192.parked.test", "A", "203.0.113.1")
    dns_server.add("7.2.0.192.white.test", "A", "127.0.5.2")
    nibbles = ".".join(reversed("20010db8000000000000000000000007"))
    dns_server.add(f"{nibbles}.bl.test", "A", "127.0.0.2")
    dns_server.fail("7.2.0.192.dead.test", Failure.SERVFAIL)
    for name, record in {
        "pass.test": "v=spf1 ip4:192.0.2.7 -all",
        "fail.test": "v=spf1 -all",
        "softfail.test": "v=spf1 ~all",
        "neutral.test": "v=spf1 ?all",
        "broken.test": "v=spf1 nonsense:x -all",
        "loop.test": "v=spf1 include:loop.test -all",
    }.items():
        dns_server.add(name, "TXT", f'"{record}"')
    dns_server.fail("temp.test", Failure.SERVFAIL)
    return Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2))


def facts(peer: str = "192.0.2.7", helo: str = "mail.far.test", mail_from: str = "x@far.test") -> Facts:
    return Facts(Origin(Listener.SMTP, "s", peer, helo), "Q", parse_address(mail_from) if mail_from else None)


async def asked(check: Check, known: Facts) -> Verdict:
    verdict = await check.run(check.stages[0], known)
    assert verdict.level is Level.ACCEPT  # a hint is never more
    return verdict


@pytest.mark.parametrize(
    ("peer", "result", "score"),
    [
        ("192.0.2.7", "pass", 0),
        ("192.0.2.8", "fail", 1),
        ("192.0.2.9", "permerror", 1.5),
        ("192.0.2.10", "temperror", 0),
        ("2001:db8::1", "permerror", 1.5),
    ],
)
async def test_iprev(peer: str, result: str, score: float, resolver: Resolver) -> None:
    known = facts(peer)
    verdict = await asked(Iprev(resolver), known)
    assert (verdict.results[0].result, verdict.score) == (result, score)
    assert verdict.results[0].properties == (("policy.iprev", peer),)
    assert known.iprev is not None


@pytest.mark.parametrize(
    ("helo", "score", "word"),
    [
        ("mail.far.test", 0, "ok"),
        ("MAIL.FAR.TEST.", 0, "ok"),
        ("six.far.test", 0, "ok"),
        ("[192.0.2.7]", 0, "ok"),
        ("[192.0.2.8]", 2, "bad"),
        ("[IPv6:2001:db8::7]", 2, "bad"),
        ("[nonsense]", 1.5, "bad"),
        ("[", 1.5, "bad"),
        ("192.0.2.7", 1.5, "bad"),
        ("2001:db8::7", 1.5, "bad"),
        ("localhost", 1.5, "bad"),
        ("under_score.far.test", 1, "bad"),
        ("a..b", 1.5, "bad"),
        ("-._x.é", 1.5, "bad"),
        ("mx.example.test", 3, "bad"),
        ("MX.Example.Test", 3, "bad"),
        ("nobody.far.test", 1, "bad"),
        ("mx-only.far.test", 1, "bad"),
        ("broken.far.test", 0, "unknown"),
    ],
)
async def test_helo(helo: str, score: float, word: str, resolver: Resolver) -> None:
    """RFC 5321 s. 4.1.1.1 and 4.1.4."""
    verdict = await asked(Helo(resolver, hostname="mx.example.test"), facts(helo=helo))
    assert (verdict.score, verdict.word) == (score, word)


@pytest.mark.parametrize(
    ("zones", "peer", "score"),
    [
        (["bl.test=3"], "192.0.2.7", 3),
        (["bl.test"], "192.0.2.7", 1),
        (["bl.test=3"], "192.0.2.77", 0),
        (["bl.test=2", "dead.test=9"], "192.0.2.7", 2),
        (["bl.test=127.0.0.[3..11]*4"], "192.0.2.7", 0),
        (["bl.test=127.0.0.[3..11]*4"], "192.0.2.8", 4),
        (["bl.test=127.0.0.2*1", "bl.test=127.0.0.[10;11]*2.5"], "192.0.2.8", 2.5),
        (["bl.test=3"], "192.0.2.9", 0),
        (["parked.test=3"], "192.0.2.7", 0),
        (["bl.test=3"], "2001:db8::7", 3),
        (["bl.test=1.5"], "::ffff:192.0.2.7", 1.5),
    ],
)
async def test_lists_of_bad_hosts(zones: list[str], peer: str, score: float, resolver: Resolver) -> None:
    """RFC 5782: weights, several answers, a refusal, a parked zone, IPv6."""
    verdict = await asked(Dnsbl(resolver, zones), facts(peer))
    assert verdict.score == score
    assert verdict.word == ("listed" if score else "clean")


async def test_a_list_of_good_hosts_takes_its_weight_off(resolver: Resolver) -> None:
    """RFC 8904 has a method for it."""
    verdict = await asked(Dnsbl(resolver, ["white.test=127.0.[0..255].[1..3]*2"], good=True), facts())
    assert verdict.score == -2
    (result,) = verdict.results
    assert (result.method, result.result) == ("dnswl", "pass")
    assert dict(result.properties) == {"dns.zone": "white.test", "policy.ip": "127.0.5.2"}


async def test_a_list_that_refuses_us_is_named_once(resolver: Resolver, caplog: pytest.LogCaptureFixture) -> None:
    check = Dnsbl(resolver, ["bl.test=3", "parked.test=1"])
    for peer in ("192.0.2.9", "192.0.2.9", "192.0.2.7"):
        await check.run(Stage.CONNECT, facts(peer))
    told = [vars(r)["fields"] for r in caplog.records if r.getMessage() == "dnsbl_refused"]
    assert [fields["key"] for fields in told] == ["bl.test", "parked.test"]
    assert "refuses our resolver: 127.255.255.254" in told[0]["reason"]


async def test_all_lists_are_asked_at_once_and_each_once(resolver: Resolver, dns_server: DnsServer) -> None:
    await asked(Dnsbl(resolver, ["bl.test=1", "white.test=1", "bl.test=127.0.0.2*3"]), facts())
    assert dns_server.asked("7.2.0.192.bl.test", "A") == 1


@pytest.mark.parametrize(
    ("sender", "result", "score"),
    [
        ("x@pass.test", "pass", 0),
        ("x@fail.test", "fail", 3),
        ("x@softfail.test", "softfail", 1.5),
        ("x@neutral.test", "neutral", 0),
        ("x@nothing.test", "none", 0),
        ("x@broken.test", "permerror", 1),
        ("x@loop.test", "permerror", 1),
        ("x@temp.test", "temperror", 0),
    ],
)
async def test_spf(sender: str, result: str, score: float, resolver: Resolver) -> None:
    verdict = await asked(Spf(resolver, hostname="mx.example.test"), facts(mail_from=sender))
    assert verdict.score == score
    assert (verdict.results[0].result, verdict.results[0].properties) == (result, (("smtp.mailfrom", sender),))
    ((name, value),) = verdict.fields
    assert name == "Received-SPF"
    assert value.startswith(f"{result} (")


async def test_spf_does_not_ask_without_end(resolver: Resolver, dns_server: DnsServer) -> None:
    """Within the ten steps of RFC 7208 s. 4.6.4 there is room for a hundred questions; we leave earlier."""
    for i in range(9):
        dns_server.add(f"m{i}.greedy.test", "MX", *(f"10 h{i}-{j}.greedy.test" for j in range(10)))
        for j in range(10):
            dns_server.add(f"h{i}-{j}.greedy.test", "A", "203.0.113.1")
    dns_server.add("greedy.test", "TXT", '"v=spf1 ' + " ".join(f"mx:m{i}.greedy.test" for i in range(9)) + ' -all"')
    verdict = await asked(Spf(resolver, hostname="mx.example.test"), facts(mail_from="x@greedy.test"))
    assert verdict.results[0].result == "temperror"
    assert len(dns_server.queries) <= MAX_QUESTIONS


async def test_spf_of_a_bounce_asks_for_the_name_in_helo(resolver: Resolver) -> None:
    """RFC 7208 s. 2.4."""
    verdict = await asked(Spf(resolver, hostname="mx.example.test"), facts(mail_from="", helo="fail.test"))
    assert (verdict.results[0].result, verdict.results[0].properties) == ("fail", (("smtp.helo", "fail.test"),))


@pytest.mark.parametrize(
    ("spec", "zone", "weight", "fits", "fits_not"),
    [
        ("bl.test", "bl.test", 1, "127.0.0.2", None),
        (" BL.Test=2 ", "bl.test", 2, "127.9.9.9", None),
        ("bl.test=0.5", "bl.test", 0.5, "127.0.0.2", None),
        ("bl.test=127.0.0.2*3", "bl.test", 3, "127.0.0.2", "127.0.0.3"),
        ("bl.test=127.0.[0..255].[2;4..6]*3", "bl.test", 3, "127.0.200.5", "127.0.0.3"),
    ],
)
def test_zones(spec: str, zone: str, weight: float, fits: str, fits_not: str | None) -> None:
    rule = parse_zone(spec)
    assert (rule.zone, rule.weight) == (zone, weight)
    assert rule.matches(fits)
    assert fits_not is None or not rule.matches(fits_not)


@pytest.mark.parametrize(
    "spec",
    ["", "=3", "bl test=3", "bl.test=x", "bl.test=-3", "bl.test=127.0.0*3", "bl.test=127.0.0.2", "bl.test=127..0.2*1",
     "bl.test=127.0.0.[5..2]*3", "bl.test=127.0.0.256*1", "bl.test=127.0.0.[2*1", "bl.test=127.0.0.[]*1",
     "bl.test=127.0.0.2.*1"],
)  # fmt: skip
def test_what_is_no_zone(spec: str) -> None:
    with pytest.raises(ZoneError):
        parse_zone(spec)


@pytest.mark.parametrize(
    ("helo", "score", "results"),
    [
        ("fail.test", 1.5, [("pass", "smtp.mailfrom"), ("fail", "smtp.helo")]),
        ("softfail.test", 0, [("pass", "smtp.mailfrom"), ("softfail", "smtp.helo")]),
        ("nothing.test", 0, [("pass", "smtp.mailfrom")]),
        ("PASS.test.", 0, [("pass", "smtp.mailfrom")]),
        ("[192.0.2.7]", 0, [("pass", "smtp.mailfrom")]),
        ("192.0.2.7", 0, [("pass", "smtp.mailfrom")]),
    ],
)
async def test_spf_of_both_identities(
    helo: str, score: float, results: list[tuple[str, str]], resolver: Resolver
) -> None:
    """RFC 7208 s. 2.3: HELO is asked as well, and only MAIL FROM is DMARC's."""
    known = facts(helo=helo, mail_from="x@pass.test")
    verdict = await asked(Spf(resolver, hostname="mx.example.test"), known)
    assert [(r.result, r.properties[0][0]) for r in verdict.results] == results
    assert verdict.score == score
    assert known.spf is not None
    assert known.spf.identity == "mailfrom"
