"""SPF through the replay of pyspf (RFC 7208): identities, limits, failures of DNS, hostile records, Received-SPF."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dns_server import DnsServer, Failure
from support.names import TIMEOUT, TableOfNames

from pymx.mail.address import Address, parse_address
from pymx.mail.header import build_field
from pymx.mailauth.spf.check import SpfResult, check, received_spf
from pymx.mailauth.spf.replay import Limits
from pymx.resolver.answer import Answer
from pymx.resolver.resolver import Resolver

ALICE = Address("alice", "example.com")
RESULTS = {"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}


def records(*texts: str, domain: str = "example.com") -> TableOfNames:
    names = TableOfNames()
    names.add(domain, "TXT", *texts)
    return names


async def asked(
    names: TableOfNames, *, ip: str = "192.0.2.1", mail_from: Address | None = ALICE, helo: str = "mx.example.com"
) -> SpfResult:
    return await check(names, ip=ip, mail_from=mail_from, helo=helo)


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", "pass"),
        ("v=spf1 ip4:198.51.100.0/24 -all", "fail"),
        ("v=spf1 ip4:198.51.100.0/24 ~all", "softfail"),
        ("v=spf1 ?all", "neutral"),
        ("v=spf1", "neutral"),
        ("v=spf1 +all", "pass"),
        ("v=spf10 +all", "none"),
        ("v=DMARC1; p=none", "none"),
        ("v=spf1 ip4:192.0.2.n -all", "permerror"),
        ("v=spf1 foo -all", "permerror"),
        ("v=spf1 a:%(d) -all", "permerror"),
    ],
)
async def test_result_of_one_record(record: str, result: str) -> None:
    """RFC 7208 s. 2.6."""
    found = await asked(records(record))
    assert (found.result, found.identity, found.domain) == (result, "mailfrom", "example.com")


async def test_two_records_are_a_permerror() -> None:
    """s. 4.5: more than one record."""
    assert (await asked(records("v=spf1 -all", "v=spf1 +all"))).result == "permerror"


async def test_null_sender_is_checked_by_helo() -> None:
    """s. 2.4: MAIL FROM is null."""
    names = records("v=spf1 ip4:192.0.2.1 -all", domain="mx.example.com")
    found = await asked(names, mail_from=None, helo="MX.Example.COM.")
    assert (found.result, found.identity, found.domain) == ("pass", "helo", "mx.example.com")


@pytest.mark.parametrize("helo", ["localhost", "[192.0.2.1]", "", "a..b.example", "x" * 70 + ".example"])
async def test_helo_that_is_no_domain_is_none_and_asks_nobody(helo: str) -> None:
    """s. 4.3: malformed or not fully qualified."""
    names = TableOfNames()
    assert (await asked(names, mail_from=None, helo=helo)).result == "none"
    assert names.asked == []


async def test_domain_is_that_behind_the_last_at_sign() -> None:
    """A quoted local part may hold "@": the domain that answers must be the sender's own."""
    names = records("v=spf1 +all", domain="evil.example")
    names.add("example.com", "TXT", "v=spf1 -all")
    sender = parse_address('"x@evil.example"@example.com')
    found = await asked(names, mail_from=sender)
    assert (found.result, found.domain) == ("fail", "example.com")
    assert names.asked == [("example.com", "TXT")]


async def test_internationalised_domain_is_asked_in_a_labels() -> None:
    """RFC 8616 s. 4: the domain in A-labels; macros with a local part outside ASCII never match."""
    names = records("v=spf1 exists:%{l}.example.com ip4:192.0.2.1 -all", domain="xn--bcher-kva.example")
    found = await asked(names, mail_from=Address("jürgen", "bücher.example"))
    assert (found.result, found.domain) == ("pass", "xn--bcher-kva.example")
    assert names.asked == [("xn--bcher-kva.example", "TXT")]


async def test_mapped_ipv4_client_is_an_ipv4_client() -> None:
    """A dual-stack listener shows IPv4 clients as ::ffff:a.b.c.d."""
    assert (await asked(records("v=spf1 ip4:192.0.2.1 -all"), ip="::ffff:192.0.2.1")).result == "pass"


async def test_more_than_ten_lookups_are_a_permerror() -> None:
    """s. 4.6.4, with includes that all exist."""
    names = TableOfNames()
    for i in range(12):
        names.add(f"i{i}.example.com", "TXT", "v=spf1 ip4:203.0.113.1")
    for count, result in ((10, "fail"), (11, "permerror")):
        names.table.pop("example.com", None)
        names.add(
            "example.com", "TXT", "v=spf1 " + " ".join(f"include:i{i}.example.com" for i in range(count)) + " -all"
        )
        assert (await asked(names)).result == result


async def test_more_than_two_void_lookups_are_a_permerror() -> None:
    """s. 4.6.4: names that give no answer."""
    assert (await asked(records("v=spf1 a:a.example.net a:b.example.net -all"))).result == "fail"
    found = await asked(records("v=spf1 a:a.example.net a:b.example.net a:c.example.net -all"))
    assert (found.result, "void" in found.explanation) == ("permerror", True)


async def test_limits_are_the_callers() -> None:
    """They are arguments, not constants of a library."""
    names = records("v=spf1 a:a.example.net -all")
    found = await check(names, ip="192.0.2.1", mail_from=ALICE, helo="x.example", limits=Limits(void_lookups=0))
    assert found.result == "permerror"


@pytest.mark.parametrize(
    "record", ["v=spf1 a:down.example -all", "v=spf1 include:down.example -all", "v=spf1 mx:m.example -all"]
)
async def test_dns_failure_is_a_temperror(record: str) -> None:
    """s. 4.4: never "no record"."""
    names = records(record)
    for rdtype in ("A", "TXT"):
        names.add("down.example", rdtype, TIMEOUT)
    names.add("m.example", "MX", (10, "down.example"))
    assert (await asked(names)).result == "temperror"


async def test_dns_failure_behind_an_earlier_match_does_not_matter() -> None:
    """s. 4.6: evaluation ends with the first match."""
    names = records("v=spf1 ip4:192.0.2.1 a:down.example -all")
    names.add("down.example", "A", TIMEOUT)
    assert (await asked(names)).result == "pass"


async def test_failure_of_a_reverse_lookup_only_fails_to_match() -> None:
    """s. 5.5: "If a DNS error occurs … then this mechanism fails to match"."""
    names = records("v=spf1 ptr -all")
    names.add("1.2.0.192.in-addr.arpa", "PTR", TIMEOUT)
    assert (await asked(names)).result == "fail"


async def test_failing_explanation_is_left_out() -> None:
    """s. 6.2; pyspf fetches it inside a bare `except:`, which must not end the search for answers too early."""
    names = records("v=spf1 -all exp=why.example.com")
    assert (await asked(names)).explanation == "SPF fail - not authorized"
    names.add("why.example.com", "TXT", "Ask %{d} about %{i}\r\n\x1b[31m")
    found = await asked(names)
    assert (found.result, found.explanation) == ("fail", "Ask example.com about 192.0.2.1???[31m")
    names.table["why.example.com"] = [("TXT", TIMEOUT)]
    assert (await asked(names)).result == "fail"


async def test_addresses_of_mx_hosts_are_asked_together() -> None:
    """Ten hosts one after the other would be ten round trips."""
    names = records("v=spf1 mx -all")
    names.add("example.com", "MX", *[(i, f"m{i}.example.com") for i in range(10)])
    for i in range(10):
        names.add(f"m{i}.example.com", "A", f"192.0.2.{i + 10}")

    class Counting(TableOfNames):
        together = most = 0

        async def resolve(self, name: str, rdtype: str) -> Answer:
            self.together += 1
            self.most = max(self.most, self.together)
            await asyncio.sleep(0)
            self.together -= 1
            return await super().resolve(name, rdtype)

    counting = Counting(names.table)
    assert (await check(counting, ip="192.0.2.15", mail_from=ALICE, helo="x.example")).result == "pass"
    assert counting.most == 10
    assert len(counting.asked) == 12
    names.add("example.com", "MX", (99, "m99.example.com"))
    assert (await asked(names)).result == "permerror"


async def test_each_question_is_asked_once() -> None:
    """However often a run is repeated."""
    names = records("v=spf1 include:a.example include:b.example a mx -all")
    names.add("a.example", "TXT", "v=spf1 a:h.example ?all")
    names.add("b.example", "TXT", "v=spf1 a:h.example mx:h.example ?all")
    names.add("h.example", "A", "203.0.113.5")
    await asked(names)
    assert len(names.asked) == len(set(names.asked))


async def test_checks_at_the_same_time_do_not_disturb_each_other() -> None:
    """No state of pyspf is shared."""
    names = TableOfNames()
    for i in range(20):
        names.add(f"d{i}.example", "TXT", f"v=spf1 include:i{i}.example -all")
        names.add(f"i{i}.example", "TXT", f"v=spf1 ip4:192.0.2.{i}")
    results = await asyncio.gather(
        *(asked(names, ip=f"192.0.2.{i % 10}", mail_from=Address("a", f"d{i}.example")) for i in range(20))
    )
    assert [r.result for r in results] == ["pass"] * 10 + ["fail"] * 10


HOSTILE = {
    "terms": "ip4:203.0.113.1 " * 250,
    "macros of many labels": "x=" + "%%." * 1300,
    "delimiters": "exists:%{l" + "." * 4000 + "}.com",
    "digits of a macro": "a:%{d" + "9" * 4000 + "}.com",
    "prefix length": "ip4:1.2.3.4/" + "9" * 4070,
    "expansion": "a:" + "%{s}" * 120 + ".com",
    "colons": "ip6:" + ":" * 4000,
    "dots": "a:" + "." * 4000,
    "percent signs": "a:" + "%%" * 200,
    "empty macro": "a:%{}.com",
    "open macro": "a:%{d",
    "strange macro": "a:%{l)}.com",
    "empty include": "include:",
    "include of nowhere": "include:evil..com",
    "itself": "redirect=example.com",
    "itself included": "include:example.com",
    "ptr in everything": "exists:%{p}.%{p}.%{p} " * 100,
    "spaces": " " * 4000,
    "blank explanation": "exp= -all",
    "control characters": "a:\x00\x1b.com \x7f -all",
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_record_is_cheap(kind: str) -> None:
    """Records of 4 KB that hold pyspf for up to a second each."""
    names = records("v=spf1 " + HOSTILE[kind])
    names.add("1.2.0.192.in-addr.arpa", "PTR", *[f"p{i}.example" for i in range(300)])
    started = time.process_time()
    found = await asked(names, mail_from=Address("l" * 64, "example.com"))
    assert time.process_time() - started < 0.1
    assert found.result in RESULTS
    assert len(names.asked) < 30


async def test_many_hostile_records_end_in_time() -> None:
    """Ten included records, each at the limit of what is read; every run reads all those that are known."""
    names = records("v=spf1 " + " ".join(f"include:i{i}.example" for i in range(10)))
    for i in range(10):
        names.add(f"i{i}.example", "TXT", "v=spf1 " + " ".join(f"y{j}=" + "%%." * 165 for j in range(8)))
    started = time.process_time()
    found = await check(names, ip="192.0.2.1", mail_from=ALICE, helo="x.example", limits=Limits(work_s=0.02))
    assert time.process_time() - started < 1
    assert (found.result, "work" in found.explanation) == ("permerror", True)


async def test_long_record_is_a_permerror() -> None:
    """s. 3.4: records should stay small; ours is a limit of its own."""
    assert (await asked(records("v=spf1 " + "ip4:192.0.2.1 " * 400))).result == "permerror"


@given(st.lists(st.sampled_from(["a", "mx", ":", "/", "%{", "}", "%", "include:", "redirect=", "exp=", "exists:", "ptr",
                                 "ip4:", "ip6:", "1.2.3.4", "d", "s9r-", " ", "-", "~all", "=", ".", "99", ",", "é"]),
                max_size=30).map("".join), st.sampled_from(["192.0.2.1", "2001:db8::1"]))  # fmt: skip
@settings(max_examples=300)
async def test_no_record_makes_it_raise(record: str, ip: str) -> None:
    """Whatever is published is a result."""
    names = records("v=spf1 " + record)
    names.add("1.2.3.4", "A", "192.0.2.1")
    assert (await asked(names, ip=ip)).result in RESULTS


@given(st.text(max_size=40), st.text(max_size=40))
async def test_no_sender_makes_it_raise(local_part: str, domain: str) -> None:
    """Nor does what a client says it is."""
    names = records("v=spf1 a:%{l}.%{h} exists:%{s} -all", domain=domain.lower())
    assert (await asked(names, mail_from=Address(local_part, domain), helo=domain)).result in RESULTS
    assert (await asked(names, mail_from=None, helo=domain, ip=local_part)).result in RESULTS


@pytest.mark.parametrize("mail_from", [ALICE, None])
def test_received_spf_is_a_field(mail_from: Address | None) -> None:
    """RFC 7208 s. 9.1."""
    identity = "mailfrom" if mail_from else "helo"
    found = SpfResult("softfail", identity, "example.com")  # type: ignore[arg-type]
    value = received_spf(found, ip="192.0.2.1", mail_from=mail_from, helo='a") b\r\n', receiver="mx.example.org")
    field = build_field("Received-SPF", value)
    assert field.startswith(b"Received-SPF: softfail (mx.example.org: ")
    assert b"client-ip=192.0.2.1;" in field
    assert f"identity={identity}".encode() in field
    assert (b'envelope-from="alice@example.com"' in field) == (mail_from is not None)
    assert field.count(b"(") == 1


async def test_through_a_real_name_server(dns_server: DnsServer, resolver: Resolver) -> None:
    """Records of several strings, CNAMEs, SERVFAIL and silence as the resolver brings them."""
    dns_server.add("example.com", "TXT", '"v=spf1 inc" "lude:spf.example.com " "-all"')
    dns_server.add("spf.example.com", "CNAME", "real.example.com.")
    dns_server.add("real.example.com", "TXT", '"v=spf1 a:host.example.com a:v6.example.com exists:%{l}.ok.example.com"')
    dns_server.add("host.example.com", "A", "192.0.2.1")
    dns_server.add("v6.example.com", "AAAA", "2001:db8::1")
    dns_server.add("alice.ok.example.com", "A", "127.0.0.2")
    for ip in ("192.0.2.1", "2001:db8::1", "203.0.113.1"):
        assert (await check(resolver, ip=ip, mail_from=ALICE, helo="x.example")).result == "pass"
    bob = Address("b\\ob\\", "example.com")
    assert (await check(resolver, ip="203.0.113.1", mail_from=bob, helo="x.example")).result == "fail"
    for domain, failure in (("a.example", Failure.SERVFAIL), ("b.example", Failure.TIMEOUT)):
        dns_server.fail(domain, failure)
        found = await check(resolver, ip="192.0.2.1", mail_from=Address("a", domain), helo="x.example")
        assert found.result == "temperror"
    assert (await check(resolver, ip="192.0.2.1", mail_from=Address("a", "gone.example"), helo="h")).result == "none"
