"""How long answers are remembered, by the clock, and what a question looks like on the wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from support.clock import loop_clock
from support.dns_server import DnsServer, Failure

from pymx.config.model import Dns
from pymx.resolver.answer import DnsError
from pymx.resolver.resolver import Resolver


@pytest.fixture
async def later() -> AsyncIterator[Callable[[float], None]]:
    """Sets the loop's clock forward by so many seconds."""
    with loop_clock() as forward:
        yield forward


@pytest.mark.parametrize(
    ("ttl", "kept_s"),
    [(0, 5), (60, 60), (3600, 3600), (10_000_000, 86_400)],
    ids=["nought", "a minute", "an hour", "for ever"],
)
async def test_an_answer_is_kept_for_its_ttl(
    ttl: int, kept_s: int, dns_server: DnsServer, later: Callable[[float], None]
) -> None:
    """RFC 1035 s. 3.2.1; not less than the questions of a message take, not more than `[dns] max_ttl_s`."""
    dns_server.add("a.example", "A", "192.0.2.1", ttl=ttl)
    found = Resolver(Dns(nameservers=[dns_server.spec], max_ttl_s=86_400))
    await found.resolve("a.example", "A")
    later(kept_s - 2)
    await found.resolve("a.example", "A")
    assert dns_server.asked("a.example", "A") == 1
    later(3)
    await found.resolve("a.example", "A")
    assert dns_server.asked("a.example", "A") == 2


@pytest.mark.parametrize(("name", "kept_s"), [("none.example", 60), ("empty.example", 60), ("broken.example", 5)])
async def test_absence_and_failure_are_kept_for_short(
    name: str, kept_s: int, dns_server: DnsServer, later: Callable[[float], None]
) -> None:
    """RFC 2308 s. 5: as long as the SOA record says (60 s here); s. 7.1: a failure for seconds."""
    dns_server.add("empty.example", "TXT", '"x"')
    dns_server.fail("broken.example", Failure.REFUSED)
    found = Resolver(Dns(nameservers=[dns_server.spec]))

    async def questions() -> int:
        with pytest.raises(DnsError):
            await found.resolve(name, "A")
        return dns_server.asked(name, "A")

    first = await questions()
    later(kept_s - 1)
    assert await questions() == first
    later(2)
    assert await questions() == 2 * first


async def test_absence_is_forgotten_after_five_minutes_whatever_the_zone_says(later: Callable[[float], None]) -> None:
    """Who has mended his DNS wants his mail."""
    server = DnsServer(negative_ttl=86_400)
    try:
        found = Resolver(Dns(nameservers=[server.spec]))
        for wait_s, asked in ((0, 1), (299, 1), (2, 2)):
            later(wait_s)
            with pytest.raises(DnsError):
                await found.resolve("none.example", "A")
            assert server.asked("none.example", "A") == asked
    finally:
        server.close()


class Old(asyncio.DatagramProtocol):
    """A name server that knows EDNS, or not, and keeps the questions."""

    def __init__(self, *, edns: bool) -> None:
        self.questions: list[dns.message.Message] = []
        self._edns = edns

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = dns.message.from_wire(data)
        self.questions.append(question)
        answer = dns.message.make_response(question)
        if question.edns >= 0 and not self._edns:
            answer.use_edns(False)
            answer.set_rcode(dns.rcode.FORMERR)
        else:
            name = question.question[0].name
            answer.answer.append(dns.rrset.from_text(name, 300, "IN", "A", "192.0.2.1"))
        self._transport.sendto(answer.to_wire(), addr)


@contextlib.asynccontextmanager
async def serving(*, edns: bool) -> AsyncIterator[tuple[Old, Resolver]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Old(edns=edns), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        yield server, Resolver(Dns(nameservers=[f"127.0.0.1:{port}"]))
    finally:
        transport.close()


async def test_questions_carry_edns_and_ask_what_was_authenticated() -> None:
    """RFC 6891, RFC 9715: answers of up to 1,232 octets by UDP; RFC 6840 s. 5.7: AD."""
    async with serving(edns=True) as (server, resolver):
        assert await resolver.addresses("a.example", ipv6=False) == ["192.0.2.1"]
    (question,) = server.questions
    assert (question.edns, question.payload) == (0, 1232)
    assert question.flags & dns.flags.AD
    assert question.flags & dns.flags.RD


async def test_a_server_that_does_not_know_edns_is_asked_without_it() -> None:
    """RFC 6891 s. 7: at once, and from then on."""
    async with serving(edns=False) as (server, resolver):
        for name in ("a.example", "b.example"):
            assert await resolver.addresses(name, ipv6=False) == ["192.0.2.1"]
    assert [question.edns for question in server.questions] == [0, -1, -1]
