"""DMARC (RFC 7489, RFC 9989) as a table of cases: discovery, alignment, policy, sampling, failures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dns_server import DnsServer, Failure
from support.names import TIMEOUT, TableOfNames

from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.dmarc.evaluate import DmarcResult, by_chance, evaluate
from pymx.mailauth.dmarc.organization import registrable_domain, walk
from pymx.mailauth.dmarc.record import find_record, parse_record
from pymx.mailauth.questions import Questions
from pymx.mailauth.spf.check import SpfResult
from pymx.resolver.resolver import Resolver

REJECT = "v=DMARC1; p=reject; rua=mailto:d@example.com"
FAILED = [DkimResult("fail", "example.com")]


def published(**records: str) -> TableOfNames:
    """`example_com="…"` is the record at _dmarc.example.com; each domain exists, with an address."""
    names = TableOfNames()
    for name, record in records.items():
        domain = name.replace("__", "-").replace("_", ".")
        names.add(f"_dmarc.{domain}", "TXT", record)
        names.add(domain, "A", "192.0.2.1")
    return names


def spf(domain: str, result: str = "pass") -> SpfResult:
    return SpfResult(result, "mailfrom", domain)


def dkim(*domains: str, result: str = "pass") -> list[DkimResult]:
    return [DkimResult(result, domain) for domain in domains]


async def evaluated(
    names: Questions,
    author: str = "example.com",
    *,
    spf: SpfResult | None = None,
    dkim: Sequence[DkimResult] = (),
    sampled: bool = True,
) -> DmarcResult:
    return await evaluate(names, header_from_domain=author, spf=spf, dkim=dkim, sampled=lambda percent: sampled)


@pytest.mark.parametrize(
    ("record", "author", "passing_spf", "passing_dkim", "aligned"),
    [
        (REJECT, "example.com", "example.com", [], ("spf",)),
        (REJECT, "example.com", "", ["example.com"], ("dkim",)),
        (REJECT, "example.com", "example.com", ["example.com"], ("spf", "dkim")),
        (REJECT, "example.com", "bounces.example.com", [], ("spf",)),
        (REJECT, "example.com", "", ["a.b.example.com"], ("dkim",)),
        (REJECT, "news.example.com", "example.com", [], ("spf",)),
        (REJECT, "news.example.com", "", ["mail.example.com"], ("dkim",)),
        (REJECT, "Example.COM", "example.com", [], ("spf",)),
        (REJECT, "example.com.", "example.com", [], ("spf",)),
        (REJECT, "example.com", "", ["sender.net", "example.com"], ("dkim",)),
        (REJECT, "example.com", "sender.net", ["sender.net"], ()),
        (REJECT, "example.com", "badexample.com", ["example.com.evil.net"], ()),
        (REJECT, "example.com", "com", ["com"], ()),
        (REJECT, "example.com", "", [], ()),
        (REJECT + "; aspf=s", "example.com", "bounces.example.com", [], ()),
        (REJECT + "; aspf=s", "example.com", "example.com", [], ("spf",)),
        (REJECT + "; adkim=s", "example.com", "", ["mail.example.com"], ()),
        (REJECT + "; adkim=s", "example.com", "bounces.example.com", ["mail.example.com"], ("spf",)),
        (REJECT + "; adkim=S", "news.example.com", "", ["example.com"], ()),
        (REJECT + "; adkim=s; aspf=s", "news.example.com", "", ["news.example.com"], ("dkim",)),
    ],
)
async def test_alignment(
    record: str, author: str, passing_spf: str, passing_dkim: list[str], aligned: tuple[str, ...]
) -> None:
    """RFC 7489 s. 3.1: the author's domain, and what has the same organizational domain unless strict."""
    names = published(example_com=record)
    found = await evaluated(names, author, spf=spf(passing_spf) if passing_spf else None, dkim=dkim(*passing_dkim))
    assert found.aligned == aligned
    assert found.result == ("pass" if aligned else "fail")
    assert (found.policy, found.disposition) == ("reject", "none" if aligned else "reject")
    assert found.domain == "example.com"


@pytest.mark.parametrize("result", ["fail", "softfail", "neutral", "none", "permerror", "policy"])
async def test_only_a_pass_counts(result: str) -> None:
    """RFC 7489 s. 4.2."""
    found = await evaluated(
        published(example_com=REJECT), spf=spf("example.com", result), dkim=dkim("example.com", result=result)
    )
    assert (found.result, found.disposition) == ("fail", "reject")


@pytest.mark.parametrize(
    ("record", "author", "policy"),
    [
        ("v=DMARC1; p=none", "example.com", "none"),
        ("v=DMARC1; p=quarantine", "example.com", "quarantine"),
        ("v=DMARC1;p=Reject", "example.com", "reject"),
        ("v=DMARC1 ; p = reject ;", "example.com", "reject"),
        ("v=DMARC1; p=reject", "news.example.com", "reject"),
        ("v=DMARC1; p=reject; sp=none", "news.example.com", "none"),
        ("v=DMARC1; p=none; sp=reject", "news.example.com", "reject"),
        ("v=DMARC1; p=none; sp=reject", "example.com", "none"),
        ("v=DMARC1; p=none; np=reject", "news.example.com", "none"),
        ("v=DMARC1; p=none; np=reject", "nowhere.example.com", "reject"),
        ("v=DMARC1; p=reject; sp=none; np=quarantine", "nowhere.example.com", "quarantine"),
        ("v=DMARC1; p=reject; sp=none", "nowhere.example.com", "none"),
        ("v=DMARC1; rua=mailto:a@b.example; p=reject", "example.com", "reject"),
        ("v=DMARC1; p=reject; junk; =; x=y; p=none", "example.com", "reject"),
    ],
)
async def test_policy(record: str, author: str, policy: str) -> None:
    """p=, sp= and np= (RFC 9989 s. 4.7)."""
    names = published(example_com=record)
    names.add("news.example.com", "A", "192.0.2.1")
    found = await evaluated(names, author, dkim=FAILED)
    assert (found.result, found.policy, found.disposition, found.domain) == ("fail", policy, policy, "example.com")


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=DMARC1; p=bogus; rua=mailto:d@example.com", "fail"),
        ("v=DMARC1; rua=mailto:d@example.com", "fail"),
        ("v=DMARC1; p=reject; sp=bogus; rua=mailto:d@example.com!10m", "fail"),
        ("v=DMARC1; p=reject; np=bogus; rua=nothing, mailto:d@example.com", "fail"),
        ("v=DMARC1; p=bogus", "none"),
        ("v=DMARC1", "none"),
        ("v=DMARC1; p=reject; sp=bogus; rua=nothing", "none"),
    ],
)
async def test_bad_policy_is_none_if_somebody_wants_reports(record: str, result: str) -> None:
    """RFC 7489 s. 6.6.3 step 6: act as if p=none, or don't act at all."""
    found = await evaluated(published(example_com=record), dkim=FAILED)
    assert (found.result, found.policy, found.disposition) == (result, "none", "none")


@pytest.mark.parametrize(
    "records",
    [
        [],
        ["v=spf1 -all"],
        ["v=DMARC1x; p=reject"],
        ["v=dmarc1; p=reject"],
        [" v=DMARC1; p=reject"],
        ["p=reject; v=DMARC1"],
        [REJECT, REJECT],
    ],
)
async def test_without_exactly_one_record_there_is_no_policy(records: list[str]) -> None:
    """RFC 7489 s. 6.6.3 steps 2 and 5."""
    names = TableOfNames()
    names.add("_dmarc.example.com", "TXT", *records)
    assert (await evaluated(names, dkim=FAILED)).result == "none"


async def test_other_text_records_do_not_count() -> None:
    """They are discarded, not taken for a second record."""
    names = published(example_com=REJECT)
    names.add("_dmarc.example.com", "TXT", "v=spf1 -all", "google-site-verification=x")
    assert (await evaluated(names, dkim=FAILED)).result == "fail"


@pytest.mark.parametrize(
    ("record", "sampled", "disposition", "out"),
    [
        ("v=DMARC1; p=reject; pct=50", True, "reject", False),
        ("v=DMARC1; p=reject; pct=50", False, "quarantine", True),
        ("v=DMARC1; p=quarantine; pct=50", False, "none", True),
        ("v=DMARC1; p=none; pct=50", False, "none", False),
        ("v=DMARC1; p=reject; pct=100", False, "reject", False),
        ("v=DMARC1; p=reject; pct=101", False, "reject", False),
        ("v=DMARC1; p=reject; pct=-1", False, "reject", False),
        ("v=DMARC1; p=reject; pct=", False, "reject", False),
        ("v=DMARC1; p=reject; t=y", True, "quarantine", True),
        ("v=DMARC1; p=quarantine; t=Y; pct=50", False, "none", True),
        ("v=DMARC1; p=reject; t=n", True, "reject", False),
    ],
)
async def test_sampling_and_testing_make_the_policy_milder(
    record: str, sampled: bool, disposition: str, out: bool
) -> None:
    """RFC 7489 s. 6.6.4 (pct=), RFC 9989 s. 4.7 (t=)."""
    found = await evaluated(published(example_com=record), dkim=FAILED, sampled=sampled)
    assert (found.result, found.disposition, found.sampled_out) == ("fail", disposition, out)


async def test_sampling_is_asked_for_the_percentage_and_only_when_it_matters() -> None:
    """The caller decides by its own dice."""
    asked: list[int] = []

    def sampled(percent: int) -> bool:
        asked.append(percent)
        return True

    names = published(example_com="v=DMARC1; p=reject; pct=7")
    for domain in ("example.com", "sender.net"):
        await evaluate(names, header_from_domain="example.com", spf=spf(domain), dkim=(), sampled=sampled)
    assert asked == [7]
    assert not by_chance(0)
    assert by_chance(100)


async def test_record_is_there_for_reports() -> None:
    """What was published, as it was."""
    found = await evaluated(published(example_com="v=DMARC1; p=Reject; fo=1; RUA=mailto:A@b"), dkim=FAILED)
    assert found.record == {"v": "DMARC1", "p": "Reject", "fo": "1", "rua": "mailto:A@b"}
    assert found.header_from == "example.com"


# discovery and organizational domains


async def test_own_record_comes_before_that_of_the_organization() -> None:
    """RFC 9989 s. 4.10.1: and then p= counts, not sp=."""
    names = published(example_com="v=DMARC1; p=reject; sp=reject", news_example_com="v=DMARC1; p=none; sp=quarantine")
    found = await evaluated(names, "news.example.com", dkim=FAILED)
    assert (found.domain, found.policy) == ("news.example.com", "none")
    found = await evaluated(names, "x.news.example.com", dkim=FAILED)
    assert (found.domain, found.policy) == ("example.com", "reject")
    assert (await evaluated(names, "news.example.com", spf=spf("example.com"))).result == "pass"


async def test_nothing_is_asked_above_the_author_when_it_can_not_matter() -> None:
    """A domain with a record, aligned exactly: one question."""
    names = published(example_com=REJECT)
    await evaluated(names, spf=spf("example.com"), dkim=dkim("example.com"))
    assert names.asked == [("_dmarc.example.com", "TXT")]


async def test_walk_asks_at_most_eight_names() -> None:
    """RFC 9989 s. 4.10: from a long name it jumps to seven labels."""
    names = TableOfNames()
    author = ".".join(f"l{i}" for i in range(20)) + ".example.com"
    assert (await evaluated(names, author)).result == "none"
    assert [n.count(".") for n, _ in names.asked] == [22, 7, 6, 5, 4, 3, 2, 1]
    assert names.asked[-1] == ("_dmarc.com", "TXT")


async def test_record_between_author_and_organization_counts() -> None:
    """RFC 9989 s. 4.10.1: the walk finds what the Public Suffix List would pass over."""
    names = published(b_example_com="v=DMARC1; p=reject; sp=quarantine")
    found = await evaluated(names, "a.b.example.com", dkim=FAILED)
    assert (found.domain, found.policy) == ("b.example.com", "quarantine")


@pytest.mark.parametrize(
    ("author", "identifier", "aligned"),
    [
        ("shop.example.co.uk", "example.co.uk", True),
        ("example.co.uk", "other.co.uk", False),
        ("a.github.io", "b.github.io", False),
        ("a.github.io", "x.a.github.io", True),
        ("github.io", "a.github.io", False),
        ("xn--bcher-kva.example.com", "example.com", True),
        ("bücher.example.com", "example.com", True),
        ("a.example.test", "b.example.test", True),
    ],
)
async def test_public_suffixes_part_organizations(author: str, identifier: str, aligned: bool) -> None:
    """RFC 7489 s. 3.2, private suffixes too; a record at a suffix that declares nothing changes nothing."""
    own = author.encode("idna").decode()
    names = published(co_uk="v=DMARC1; p=none")
    names.add(f"_dmarc.{own}", "TXT", REJECT)
    if own != "github.io":
        names.add("_dmarc.github.io", "TXT", "v=DMARC1; p=none")
    found = await evaluated(names, author, dkim=dkim(identifier))
    assert found.result == ("pass" if aligned else "fail")
    assert found.header_from == own


async def test_record_at_a_public_suffix_is_for_its_registrants_only_if_it_says_so() -> None:
    """RFC 9989 s. 4.10: psd=y."""
    names = published(co_uk="v=DMARC1; p=none; sp=quarantine; np=reject")
    assert (await evaluated(names, "example.co.uk", dkim=FAILED)).result == "none"
    names = published(co_uk="v=DMARC1; p=none; sp=quarantine; np=reject; psd=y")
    assert (await evaluated(names, "example.co.uk", dkim=FAILED)).policy == "reject"  # it does not exist
    names.add("example.co.uk", "MX", (10, "mx.example.co.uk"))
    found = await evaluated(names, "example.co.uk", dkim=FAILED)
    assert (found.policy, found.domain) == ("quarantine", "co.uk")
    assert (await evaluated(names, "shop.example.co.uk", dkim=dkim("example.co.uk"))).result == "pass"
    assert (await evaluated(names, "example.co.uk", dkim=dkim("other.co.uk"))).result == "fail"


@pytest.mark.parametrize(
    ("author", "identifier", "aligned"),
    [
        ("a.dept.example.com", "dept.example.com", True),
        ("a.dept.example.com", "b.dept.example.com", True),
        ("dept.example.com", "example.com", False),
        ("a.dept.example.com", "www.example.com", False),
        ("example.com", "a.dept.example.com", False),
        ("example.com", "dept.example.com", False),
        ("example.com", "www.example.com", True),
    ],
)
async def test_declared_organization_within_a_domain(author: str, identifier: str, aligned: bool) -> None:
    """RFC 9989 s. 4.10.2 step 1: psd=n makes dept.example.com an organization of its own."""
    names = published(example_com=REJECT, dept_example_com=REJECT + "; psd=n")
    found = await evaluated(names, author, dkim=dkim(identifier))
    assert found.result == ("pass" if aligned else "fail")


@pytest.mark.parametrize(
    ("author", "identifier", "aligned"),
    [
        ("a.hosts.example.com", "x.a.hosts.example.com", True),
        ("x.a.hosts.example.com", "a.hosts.example.com", True),
        ("a.hosts.example.com", "b.hosts.example.com", False),
        ("a.hosts.example.com", "example.com", False),
        ("example.com", "a.hosts.example.com", False),
        ("hosts.example.com", "example.com", True),
    ],
)
async def test_declared_suffix_within_a_domain(author: str, identifier: str, aligned: bool) -> None:
    """RFC 9989 s. 4.10.2 step 2: below hosts.example.com (psd=y) everybody is an organization."""
    names = published(example_com=REJECT, hosts_example_com=REJECT + "; psd=y")
    found = await evaluated(names, author, dkim=dkim(identifier))
    assert found.result == ("pass" if aligned else "fail")


async def test_declared_organization_is_found_by_the_walk() -> None:
    """psd=n stops it, psd=y puts the organization one label below."""
    names = published(co_uk="v=DMARC1; p=none; psd=y", example_com=REJECT, dept_example_com=REJECT + "; psd=n")
    assert (await walk(names, "a.b.example.co.uk", None)).organization == "example.co.uk"
    assert (await walk(names, "a.b.dept.example.com", None)).organization == "dept.example.com"
    assert names.asked[-1] == ("_dmarc.dept.example.com", "TXT")
    assert (await walk(names, "a.b.other.com", None)).organization == "other.com"
    assert registrable_domain("com") == "com"


# failures


async def test_policy_that_can_not_be_looked_up_is_a_temperror() -> None:
    """RFC 7489 s. 6.6.3: no policy must not be made up."""
    for broken in ("_dmarc.news.example.com", "_dmarc.example.com"):
        names = TableOfNames()
        names.add(broken, "TXT", TIMEOUT)
        found = await evaluated(names, "news.example.com", dkim=FAILED)
        assert (found.result, found.disposition) == ("temperror", "none")


async def test_failure_at_a_public_suffix_does_not_matter() -> None:
    """A registry with a broken server must not stop its registrants' mail."""
    names = TableOfNames()
    names.add("_dmarc.com", "TXT", TIMEOUT)
    assert (await evaluated(names, "example.com")).result == "none"


@pytest.mark.parametrize("which", ["spf", "dkim"])
async def test_check_that_may_yet_pass_is_a_temperror(which: str) -> None:
    """Nobody is rejected because his name server was slow; but only if it could have helped."""
    names = published(example_com=REJECT)
    for domain, result in (("mail.example.com", "temperror"), ("sender.net", "fail")):
        options = {"spf": {"spf": spf(domain, "temperror")}, "dkim": {"dkim": dkim(domain, result="temperror")}}[which]
        found = await evaluated(names, **options)  # type: ignore[arg-type]
        assert (found.result, found.policy) == (result, "reject")
    found = await evaluated(names, spf=spf("example.com"), dkim=dkim("example.com", result="temperror"))
    assert found.result == "pass"


async def test_failure_above_the_author_does_not_hide_a_pass() -> None:
    """The walk for a relaxed alignment breaks; the exact one is known."""
    names = published(news_example_com=REJECT)
    names.add("_dmarc.example.com", "TXT", TIMEOUT)
    found = await evaluated(names, "news.example.com", spf=spf("news.example.com"), dkim=dkim("example.com", "x.net"))
    assert found.result == "pass"
    assert (await evaluated(names, "news.example.com", dkim=dkim("example.com"))).result == "temperror"
    assert (await evaluated(names, "news.example.com", dkim=dkim("sender.net"))).result == "fail"


@pytest.mark.parametrize("author", ["", "exa mple.com", "a..b", "[192.0.2.1]", "x" * 64 + ".com", "a" * 300, "ü" * 200])
async def test_author_domain_that_is_none_is_a_permerror(author: str) -> None:
    """RFC 7489 s. 6.6.1."""
    names = TableOfNames()
    assert (await evaluated(names, author)).result == "permerror"
    assert names.asked == []


async def test_through_a_real_name_server(dns_server: DnsServer, resolver: Resolver) -> None:
    """The same with the resolver: wildcard, NXDOMAIN for np=, SERVFAIL."""
    dns_server.add("_dmarc.example.com", "TXT", '"v=DMARC1; p=none; " "np=reject"')
    dns_server.add("mail.example.com", "MX", "10 mx.example.com.")
    assert (await evaluated(resolver, "mail.example.com")).disposition == "none"
    assert (await evaluated(resolver, "gone.example.com")).disposition == "reject"
    assert (await evaluated(resolver, "mail.example.com", dkim=dkim("example.com"))).result == "pass"
    dns_server.fail("_dmarc.example.com", Failure.SERVFAIL)
    resolver.forget()
    assert (await evaluated(resolver, "mail.example.com")).result == "temperror"


@given(st.binary(max_size=200))
def test_no_record_makes_it_raise(text: bytes) -> None:
    """Whatever is published has a meaning, if only that there is none."""
    record = parse_record(b"v=DMARC1;" + text)
    assert 0 <= record.percent <= 100
    assert record.psd in ("y", "n", "u")
    assert find_record([text]) is None or text.startswith(b"v")


@given(st.text(max_size=60), st.text(max_size=30))
async def test_no_domain_makes_it_raise(author: str, identifier: str) -> None:
    """What stands in From and in the results is anybody's."""
    names = published(example_com=REJECT)
    for one in (author, "example.com"):
        found = await evaluated(names, one, spf=spf(identifier), dkim=dkim(identifier))
        assert found.result in ("pass", "fail", "none", "permerror")
