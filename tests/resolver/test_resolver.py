"""DNS lookups against a real name server over UDP and TCP."""

from __future__ import annotations

import asyncio

import pytest
from support.dns_server import DnsServer, Failure

from pymx.config.model import Dns
from pymx.resolver.answer import DnsError, NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.cache import TtlCache
from pymx.resolver.resolver import Resolver

ZONE = """
@      MX  10 mx1
@      MX  20 mx2
@      TXT "v=spf1 " "-all"
@      TXT "other"
mx1    A   192.0.2.1
mx1    AAAA 2001:db8::1
mx2    A   192.0.2.2
null   MX  0 .
www    CNAME mx2
"""


@pytest.fixture
def server(dns_server: DnsServer) -> DnsServer:
    dns_server.zone("example.com", ZONE)
    return dns_server


def resolver(server: DnsServer, **settings: object) -> Resolver:
    return Resolver(Dns(nameservers=[server.spec], **({"timeout_s": 2} | settings)))  # type: ignore[arg-type]


async def test_mx_records_with_their_preferences(server: DnsServer) -> None:
    """RFC 5321 s. 5.1."""
    assert sorted(await resolver(server).mx("Example.com.")) == [(10, "mx1.example.com"), (20, "mx2.example.com")]


async def test_a_null_mx_is_visible(server: DnsServer) -> None:
    """RFC 7505: the root as exchange."""
    assert await resolver(server).mx("null.example.com") == [(0, "")]


async def test_addresses_of_both_families_and_through_a_cname(server: DnsServer) -> None:
    """IPv6 first."""
    found = resolver(server)
    assert await found.addresses("mx1.example.com") == ["2001:db8::1", "192.0.2.1"]
    assert await found.addresses("mx1.example.com", ipv6=False) == ["192.0.2.1"]
    assert await found.addresses("www.example.com") == ["192.0.2.2"]


async def test_strings_of_a_txt_record_are_joined(server: DnsServer) -> None:
    """RFC 7208 s. 3.3."""
    assert sorted(await resolver(server).txt("example.com")) == [b"other", b"v=spf1 -all"]


async def test_ptr(server: DnsServer) -> None:
    server.zone("2.0.192.in-addr.arpa", "1 PTR mx1.example.com.")
    assert await resolver(server).ptr("192.0.2.1") == ["mx1.example.com"]


@pytest.mark.parametrize(
    ("name", "error"), [("nowhere.example.com", NoSuchDomain), ("mx1.example.com", NoRecords), ("a..b", NoSuchDomain)]
)
async def test_no_record_is_a_fact(server: DnsServer, name: str, error: type[DnsError]) -> None:
    """NXDOMAIN and no data are told apart."""
    with pytest.raises(error):
        await resolver(server).mx(name)


@pytest.mark.parametrize("failure", [Failure.SERVFAIL, Failure.REFUSED, Failure.TIMEOUT, Failure.GARBAGE])
async def test_a_failure_is_never_taken_for_no_record(server: DnsServer, failure: Failure) -> None:
    """Whatever is wrong with the name servers is temporary."""
    server.fail("example.com", failure)
    with pytest.raises(TemporaryDnsError):
        await resolver(server, timeout_s=1).mx("example.com")


async def test_one_family_that_fails_does_not_hide_the_other(server: DnsServer) -> None:
    """A temporary failure counts only when no address is found at all."""
    server.fail("gone.example.com", Failure.SERVFAIL)
    with pytest.raises(TemporaryDnsError):
        await resolver(server).addresses("gone.example.com")
    with pytest.raises(NoSuchDomain):
        await resolver(server).addresses("never.example.com")


async def test_a_truncated_answer_is_asked_for_again_over_tcp(server: DnsServer) -> None:
    """RFC 2181 s. 9."""
    server.fail("example.com", Failure.TRUNCATED)
    assert len(await resolver(server).mx("example.com")) == 2
    assert server.asked("example.com", "MX") == 2


async def test_answers_are_remembered_and_so_are_their_absence_and_failure(server: DnsServer) -> None:
    """RFC 2308: negative answers and failures for a short time."""
    found = resolver(server)
    server.fail("bad.example.com", Failure.SERVFAIL)
    for _ in range(3):
        await found.mx("example.com")
        with pytest.raises(NoSuchDomain):
            await found.mx("none.example.com")
        with pytest.raises(TemporaryDnsError):
            await found.mx("bad.example.com")
    assert server.asked("example.com", "MX") == 1
    assert server.asked("none.example.com", "MX") == 1
    assert server.asked("bad.example.com", "MX") <= 2  # tried twice, once
    found.forget()
    await found.mx("example.com")
    assert server.asked("example.com", "MX") == 2


async def test_equal_questions_at_the_same_time_are_asked_once(server: DnsServer) -> None:
    """Single flight, also when the one who asked is cancelled."""
    found = resolver(server)
    answers = await asyncio.gather(*(found.mx("example.com") for _ in range(20)))
    assert all(len(a) == 2 for a in answers)
    assert server.asked("example.com", "MX") == 1
    server.fail("mx1.example.com", Failure.TIMEOUT)
    first = asyncio.ensure_future(found.addresses("mx1.example.com"))
    second = asyncio.ensure_future(found.addresses("mx1.example.com"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    server.fail("mx1.example.com", None)
    assert len(await second) == 2


async def test_the_ad_bit_is_kept(server: DnsServer) -> None:
    """RFC 4035 s. 3.2.3, for DANE."""
    server.zone("secure.test", "@ MX 10 mx")
    server.secure("secure.test")
    found = resolver(server)
    assert (await found.resolve("secure.test", "MX")).authenticated
    assert not (await found.resolve("example.com", "MX")).authenticated


async def test_the_next_server_is_asked_when_one_is_dead(server: DnsServer) -> None:
    """[dns] nameservers in order."""
    found = Resolver(Dns(nameservers=["127.0.0.1:9", server.spec], timeout_s=4))
    assert len(await found.mx("example.com")) == 2


@pytest.mark.parametrize("spec", ["localhost", "1.2.3.4:x", "[::1]:", ""])
def test_a_malformed_server_names_the_setting(spec: str) -> None:
    with pytest.raises(ValueError, match="nameservers"):
        Resolver(Dns(nameservers=[spec]))


def test_the_cache_is_bounded_and_forgets_in_time() -> None:
    """The least recently used goes first."""
    cache: TtlCache[str] = TtlCache(2)
    cache.put("a", "1", 10.0)
    cache.put("b", "2", 10.0)
    assert cache.get("a", 9.9) == "1"
    cache.put("c", "3", 10.0)
    assert (cache.get("a", 0), cache.get("b", 0), cache.get("c", 0)) == ("1", None, "3")
    assert cache.get("a", 10.0) is None
    assert len(cache) == 1
