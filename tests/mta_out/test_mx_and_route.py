"""Where mail for a domain goes."""

from __future__ import annotations

import pytest
from support.dns_server import DnsServer, Failure

from pymx.config.model import Dns, Outbound, Route
from pymx.mail.address import Address
from pymx.mta.mx import Host, MxLookup, Unroutable
from pymx.mta.route import Hop, TlsMode, by_hops, hops
from pymx.queue.destination import destination
from pymx.resolver.resolver import Resolver


def lookup(server: DnsServer, *, own_addresses: tuple[str, ...] = (), allow_private: bool = False) -> MxLookup:
    return MxLookup(
        Resolver(Dns(nameservers=[server.spec], timeout_s=1)),
        own_names=["mx.ours.test"], own_addresses=own_addresses, allow_private=allow_private,
    )  # fmt: skip


async def hosts(found: MxLookup, domain: str) -> list[Host]:
    return [host async for host in found.hosts(domain)]


async def refusal(found: MxLookup, domain: str) -> str:
    with pytest.raises(Unroutable) as caught:
        await hosts(found, domain)
    return caught.value.status


async def test_hosts_come_by_preference_and_equal_ones_are_shuffled(dns_server: DnsServer) -> None:
    """RFC 5321 s. 5.1."""
    dns_server.zone(
        "far.test",
        "@ MX 20 c\n@ MX 10 a\n@ MX 10 b\na A 11.0.0.1\nb A 11.0.0.2\nb AAAA 2600::2\nc A 11.0.0.3",
    )
    found = lookup(dns_server)
    orders = {tuple(h.address for h in await hosts(found, "far.test")) for _ in range(30)}
    assert orders == {("11.0.0.1", "2600::2", "11.0.0.2", "11.0.0.3"), ("2600::2", "11.0.0.2", "11.0.0.1", "11.0.0.3")}


async def test_without_mx_the_domain_itself_is_the_host(dns_server: DnsServer) -> None:
    """RFC 5321 s. 5.1: the implicit MX."""
    dns_server.zone("plain.test", "@ A 11.0.0.9")
    (host,) = await hosts(lookup(dns_server), "plain.test")
    assert (host.name, host.address) == ("plain.test", "11.0.0.9")


async def test_domains_that_take_no_mail_are_told_apart(dns_server: DnsServer) -> None:
    """RFC 7505, RFC 3463: null MX 5.1.10, no such domain 5.1.2, nothing to connect to 5.4.4, unknown now 4.4.3."""
    dns_server.zone("null.test", "@ MX 0 .")
    dns_server.zone("bare.test", "@ TXT x")
    dns_server.zone("dangling.test", "@ MX 10 gone")
    dns_server.zone("later.test", "@ MX 10 mx\nmx A 11.0.0.1")
    dns_server.fail("later.test", Failure.SERVFAIL)
    dns_server.zone("half.test", "@ MX 10 mx\n@ MX 20 gone\nmx A 11.0.0.1")
    dns_server.fail("mx.half.test", Failure.SERVFAIL)
    found = lookup(dns_server)
    assert await refusal(found, "null.test") == "5.1.10"
    assert await refusal(found, "nowhere.test") == "5.1.2"
    assert await refusal(found, "bare.test") == "5.4.4"
    assert await refusal(found, "dangling.test") == "5.4.4"
    assert await refusal(found, "later.test") == "4.4.3"
    assert await refusal(found, "half.test") == "4.4.3"


async def test_we_never_send_to_ourselves(dns_server: DnsServer) -> None:
    """RFC 5321 s. 5.1: hosts from our own preference on are left out, by name and by address."""
    dns_server.zone(
        "backup.test", "@ MX 10 first\n@ MX 20 mx.ours.test.\n@ MX 30 last\nfirst A 11.0.0.1\nlast A 11.0.0.3"
    )
    dns_server.zone("byip.test", "@ MX 10 first\n@ MX 20 alias\nfirst A 11.0.0.1\nalias A 11.9.9.9")
    dns_server.zone("loop.test", "@ MX 10 mx.ours.test.\n@ MX 20 last\nlast A 11.0.0.3")
    dns_server.zone("ours.test", "mx A 11.9.9.9")
    found = lookup(dns_server, own_addresses=("11.9.9.9",))
    assert [h.address for h in await hosts(found, "backup.test")] == ["11.0.0.1"]
    assert [h.address for h in await hosts(found, "byip.test")] == ["11.0.0.1"]
    assert await refusal(found, "loop.test") == "5.4.6"
    assert await refusal(found, "mx.ours.test") == "5.4.6"
    assert await refusal(found, "[11.9.9.9]") == "5.4.6"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"]
)
async def test_private_addresses_are_not_connected_to(dns_server: DnsServer, address: str) -> None:
    """A name in public DNS must not make us knock at doors inside."""
    dns_server.zone("inside.test", f"@ MX 10 mx\nmx A {address}")
    assert await refusal(lookup(dns_server), "inside.test") == "5.4.4"
    assert await refusal(lookup(dns_server), f"[{address}]") == "5.4.4"
    assert [h.address for h in await hosts(lookup(dns_server, allow_private=True), "inside.test")] == [address]


async def test_private_ipv6_addresses_neither(dns_server: DnsServer) -> None:
    dns_server.zone("inside.test", "@ MX 10 mx\nmx AAAA ::1\nmx AAAA fd00::1\nmx AAAA ::ffff:127.0.0.1")
    assert await refusal(lookup(dns_server), "inside.test") == "5.4.4"


async def test_address_literals(dns_server: DnsServer) -> None:
    """RFC 5321 s. 4.1.3."""
    assert await hosts(lookup(dns_server), "[11.0.0.1]") == [Host("[11.0.0.1]", "11.0.0.1")]
    assert await hosts(lookup(dns_server), "[ipv6:2600::1]") == [Host("[ipv6:2600::1]", "2600::1")]
    assert await refusal(lookup(dns_server), "[1.2.3.400]") == "5.1.2"


ROUTES = Outbound(
    route=[
        Route(domain="Partner.test", host="gw.partner.test", port=26, tls="verified"),
        Route(domain="*", host="smart.test", port=465, tls="implicit", username="u", password_file="/p"),
    ]
)


def hop(outbound: Outbound, domain: str) -> Hop:
    (only,) = hops(outbound, domain)
    return only


def test_the_first_route_that_fits_is_taken() -> None:
    """[outbound] route."""
    assert (hop(ROUTES, "partner.test").host, hop(ROUTES, "partner.test").tls) == ("gw.partner.test", TlsMode.VERIFIED)
    assert (hop(ROUTES, "other.test").host, hop(ROUTES, "other.test").username) == ("smart.test", "u")
    assert (hop(Outbound(), "other.test").host, hop(Outbound(), "other.test").tls) == ("", TlsMode.OPPORTUNISTIC)


def test_domains_with_one_next_hop_share_it() -> None:
    """So do their recipients a transaction, and the queue's destination is the same."""
    grouped = by_hops(ROUTES, ["a.test", "partner.test", "b.test"])
    assert {h.host: places for (h,), places in grouped.items()} == {"smart.test": [0, 2], "gw.partner.test": [1]}
    assert destination(ROUTES.route, Address("x", "a.test")) == "smart.test:465"
    assert destination([], Address("x", "bücher.test")) == "xn--bcher-kva.test"
    assert destination([], Address("x", "local")) == "local."  # "local" means the mailboxes here


def test_routes_with_another_login_or_tls_share_neither_transactions_nor_connections() -> None:
    """What one route demands (verified TLS, its account) must hold for its domains, whatever other routes say."""
    routes = Outbound(
        route=[
            Route(domain="open.test", host="smart.test", port=587, tls="none"),
            Route(domain="one.test", host="smart.test", port=587, tls="verified", username="one", password_file="/1"),
            Route(domain="two.test", host="smart.test", port=587, tls="verified", username="two", password_file="/2"),
        ]
    )
    grouped = by_hops(routes, ["open.test", "one.test", "two.test", "one.test"])
    assert [(h.tls, h.username, places) for (h,), places in grouped.items()] == [
        (TlsMode.NONE, "", [0]),
        (TlsMode.VERIFIED, "one", [1, 3]),
        (TlsMode.VERIFIED, "two", [2]),
    ]
    assert len({h.key for (h,) in grouped}) == 3
