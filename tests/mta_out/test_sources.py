"""Which of our addresses a destination sees."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator

import dns.reversename
import pytest
from support.clock import loop_clock
from support.dns_server import DnsServer, Failure
from support.wait import wait_until

from pymx.config.model import Dns, Outbound
from pymx.mta.mx import Host
from pymx.mta.sources import Sources
from pymx.resolver.resolver import Resolver

# documentation addresses are not public; these are
PUBLIC6, OTHER6, PUBLIC4 = "2a01:4f8:1::25", "2a01:4f8:1::26", "5.9.0.25"


def sources(server: DnsServer, *addresses: str) -> Sources:
    resolver = Resolver(Dns(nameservers=[server.spec], timeout_s=1))
    return Sources(resolver, Outbound(source_addresses=list(addresses)))


def name_for(server: DnsServer, address: str, name: str, *, leads_back: bool = True) -> None:
    server.add(dns.reversename.from_address(address).to_text().rstrip("."), "PTR", f"{name}.")
    if leads_back:
        server.add(name, "AAAA" if ":" in address else "A", address)


async def order(subject: Sources, *hosts: tuple[str, str], now: float = 1000.0) -> list[str]:
    async def give() -> AsyncGenerator[Host, None]:
        for name, address in hosts:
            yield Host(name, address)

    return [host.address async for host in subject.ordered(give(), "far.test", now)]


HOSTS = (("a", "2a00::1"), ("a", "9.9.9.1"), ("b", "2a00::2"), ("b", "9.9.9.2"))


async def test_ipv6_is_used_from_an_address_whose_name_leads_back(dns_server: DnsServer) -> None:
    """Forward-confirmed reverse DNS, as Gmail asks for."""
    name_for(dns_server, PUBLIC6, "mx.ours.test")
    name_for(dns_server, PUBLIC4, "mx.ours.test")
    subject = sources(dns_server, PUBLIC6, PUBLIC4)
    await subject.check()
    assert subject.status() == {
        "ipv6": "used", PUBLIC6: "confirmed: mx.ours.test", PUBLIC4: "confirmed: mx.ours.test",
    }  # fmt: skip
    assert await order(subject, *HOSTS) == [address for _, address in HOSTS]


@pytest.mark.parametrize("case", ["no name", "elsewhere", "no answer"])
async def test_ipv6_is_not_used_without(dns_server: DnsServer, case: str) -> None:
    """IPv4 is, whatever its name; a host that has only IPv6 is tried last rather than never."""
    if case == "elsewhere":
        name_for(dns_server, PUBLIC6, "mx.ours.test", leads_back=False)
        dns_server.add("mx.ours.test", "AAAA", OTHER6)
    elif case == "no answer":
        dns_server.fail(dns.reversename.from_address(PUBLIC6).to_text().rstrip("."), Failure.SERVFAIL)
    subject = sources(dns_server, PUBLIC6, PUBLIC4)
    await subject.check()
    assert subject.status()["ipv6"] == "not used"
    assert str(subject.status()[PUBLIC6]).startswith("unknown" if case == "no answer" else "unconfirmed")
    assert await order(subject, *HOSTS) == ["9.9.9.1", "9.9.9.2"]
    assert await order(subject, ("a", "2a00::1"), ("b", "9.9.9.2")) == ["9.9.9.2"]
    assert await order(subject, ("a", "2a00::1"), ("b", "2a00::2")) == ["2a00::1", "2a00::2"]
    assert subject.source_for("far.test", "9.9.9.1") == PUBLIC4


async def test_a_dns_failure_changes_nothing_that_was_known(dns_server: DnsServer) -> None:
    """A day later the name server is down."""
    name_for(dns_server, PUBLIC6, "mx.ours.test")
    subject = sources(dns_server, PUBLIC6)
    await subject.check()
    dns_server.fail("mx.ours.test", Failure.SERVFAIL)
    subject._resolver.forget()
    await subject.check()
    assert subject.status()["ipv6"] == "used"


async def test_our_addresses_are_checked_at_the_start_and_every_day(dns_server: DnsServer) -> None:
    """Somebody takes the name out of reverse DNS: a day later IPv6 is not used any more."""
    reverse = dns.reversename.from_address(PUBLIC6).to_text().rstrip(".")
    name_for(dns_server, PUBLIC6, "mx.ours.test")
    subject, turns = sources(dns_server, PUBLIC6), itertools.count()
    with loop_clock() as forward:
        subject.start()
        try:
            await wait_until(lambda: subject.status().get(PUBLIC6) == "confirmed: mx.ours.test")
            dns_server.remove(reverse)
            forward(86_000)
            await wait_until(lambda: next(turns) > 20)
            assert dns_server.asked(reverse, "PTR") == 1
            forward(500)
            await wait_until(lambda: subject.status()["ipv6"] == "not used")
        finally:
            await subject.close()


async def test_before_the_first_check_and_for_private_addresses_nothing_is_held_back(dns_server: DnsServer) -> None:
    """Tests and internal servers."""
    assert await order(sources(dns_server), *HOSTS) == [address for _, address in HOSTS]
    subject = sources(dns_server, PUBLIC6)
    await subject.check()
    assert await order(subject, ("a", "::1"), ("a", "127.0.0.1")) == ["::1", "127.0.0.1"]


async def test_a_destination_sees_the_same_address_each_time(dns_server: DnsServer) -> None:
    """Greylisting: of several addresses one is chosen by the destination's name, confirmed ones first."""
    addresses = [f"5.9.0.{n}" for n in range(1, 9)]
    subject = sources(dns_server, *addresses, PUBLIC6)
    await subject.check()
    chosen = {name: subject.source_for(name, "9.9.9.9") for name in (f"d{n}.test" for n in range(100))}
    assert chosen == {name: subject.source_for(name, "9.9.9.9") for name in chosen}
    assert len(set(chosen.values())) > 4
    assert sources(dns_server).source_for("d1.test", "9.9.9.9") == ""
    name_for(dns_server, addresses[3], "mx.ours.test")
    subject._resolver.forget()
    await subject.check()
    assert subject.source_for("d1.test", "9.9.9.9") == addresses[3]


async def test_the_family_that_worked_is_remembered_for_a_day(dns_server: DnsServer) -> None:
    """Within a host: preferences among hosts stay what they are."""
    subject = sources(dns_server)
    subject.reached("far.test", "9.9.9.1", 1000.0)
    assert await order(subject, *HOSTS, now=80_000) == ["9.9.9.1", "2a00::1", "9.9.9.2", "2a00::2"]
    assert await order(subject, *HOSTS, now=90_000) == [address for _, address in HOSTS]
