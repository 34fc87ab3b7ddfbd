"""Reverse address checks (RFC 8601 s. 3)."""

from __future__ import annotations

import pytest
from support.dns_server import DnsServer, Failure
from support.names import TIMEOUT, TableOfNames

from pymx.mailauth.iprev import iprev
from pymx.resolver.resolver import Resolver

REVERSE = "1.2.0.192.in-addr.arpa"


@pytest.fixture
def one_host() -> TableOfNames:
    names = TableOfNames()
    names.add(REVERSE, "PTR", "Mail.example.com")
    names.add("mail.example.com", "A", "192.0.2.9", "192.0.2.1")
    return names


@pytest.mark.parametrize("ip", ["192.0.2.1", "::ffff:192.0.2.1"])
async def test_name_that_leads_back_passes(one_host: TableOfNames, ip: str) -> None:
    """The address is among those of its name; a mapped address is the IPv4 one."""
    found = await iprev(one_host, ip)
    assert (found.result, found.name) == ("pass", "mail.example.com")


async def test_ipv6_address_is_asked_for_by_nibbles() -> None:
    """RFC 3596 s. 2.5; the address may be written in any way."""
    names = TableOfNames()
    names.add("1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa", "PTR", "six.example.com")
    names.add("six.example.com", "AAAA", "2001:DB8:0:0::1")
    assert (await iprev(names, "2001:db8::1")).result == "pass"


@pytest.mark.parametrize(
    ("pointers", "addresses", "result"),
    [
        ([], {}, "permerror"),
        (["a.example"], {}, "fail"),
        (["a.example"], {"a.example": "192.0.2.2"}, "fail"),
        (["a.example", "b.example"], {"a.example": "192.0.2.2", "b.example": "192.0.2.1"}, "pass"),
        (["a.example", "b.example"], {"a.example": TIMEOUT, "b.example": "192.0.2.1"}, "pass"),
        (["a.example", "b.example"], {"a.example": TIMEOUT, "b.example": "192.0.2.2"}, "temperror"),
        ([TIMEOUT], {}, "temperror"),
        ([""], {}, "fail"),
        ([f"h{i}.example" for i in range(30)], {"h29.example": "192.0.2.1"}, "fail"),
    ],
)
async def test_result(pointers: list[str], addresses: dict[str, str], result: str) -> None:
    """pass, fail, permerror without a name, temperror while it can't be told; ten names are looked at."""
    names = TableOfNames()
    names.add(REVERSE, "PTR", *pointers)
    for name, address in addresses.items():
        names.add(name, "A", address)
    assert (await iprev(names, "192.0.2.1")).result == result
    assert len(names.asked) <= 11


async def test_what_is_no_address_is_a_permerror(one_host: TableOfNames) -> None:
    """A peer on a Unix socket has none."""
    assert (await iprev(one_host, "")).result == "permerror"
    assert one_host.asked == []


async def test_through_a_real_name_server(dns_server: DnsServer, resolver: Resolver) -> None:
    """The same with the resolver and its failures."""
    dns_server.add(REVERSE, "PTR", "mail.example.com.")
    dns_server.add("mail.example.com", "A", "192.0.2.1")
    assert (await iprev(resolver, "192.0.2.1")).result == "pass"
    assert (await iprev(resolver, "192.0.2.2")).result == "permerror"
    dns_server.fail(REVERSE, Failure.SERVFAIL)
    resolver.forget()
    assert (await iprev(resolver, "192.0.2.1")).result == "temperror"
