"""Which of our addresses we send from.

IPv6 is used only from an address whose name in reverse DNS leads back to it: the big providers refuse mail from others
(Gmail: 550 5.7.25), while the same message by IPv4 is taken. That is looked up at the start and once a day, and said
in the log and by `pymxctl status`. A host that has no IPv4 address is sent to by IPv6 anyway: refused is no worse than
not tried. IPv4 addresses are looked up too, but used whatever comes of it, since there is nothing else.

A destination sees the same address of ours each time, as greylisting wants it: of several source addresses one is
chosen by the destination's name, and the family that it was reached by is remembered for a day.
"""

from __future__ import annotations

import asyncio
import ipaddress
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from pymx import log
from pymx.config.model import Outbound
from pymx.mta.mx import Host
from pymx.net.source import system_addresses
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.public import is_public
from pymx.resolver.resolver import Resolver

_DAY_S = 86_400.0
_AGAIN_S = 300.0  # DNS did not answer
_REMEMBERED = 10_000

_log = log.get("mta")


@dataclass(frozen=True, slots=True)
class Source:
    """One of our addresses. `verdict` is confirmed, unconfirmed, unknown or private."""

    address: str
    verdict: str
    reason: str = ""


class Sources:
    """Before the first check, IPv6 is used."""

    def __init__(self, resolver: Resolver, outbound: Outbound) -> None:
        self._resolver = resolver
        self._configured = {
            family: [a for a in outbound.source_addresses if ipaddress.ip_address(a).version == family]
            for family in (4, 6)
        }
        self._found: dict[str, Source] = {}
        self._ipv6 = True
        self._families: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Check now and every day, until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._keep_checking())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_checking(self) -> None:
        while True:
            await self.check()
            unknown = any(source.verdict == "unknown" for source in self._found.values())
            await asyncio.sleep(_AGAIN_S if unknown else _DAY_S)

    async def check(self) -> None:
        """Look up the names of all addresses that we may send from."""
        found: dict[str, Source] = {}
        for family in (6, 4):
            for address in self._configured[family] or system_addresses(family):
                source = await self._look_up(address)
                before = self._found.get(address)
                if source.verdict == "unknown" and before is not None:
                    source = before  # nothing new is known
                elif before is None or before.verdict != source.verdict:
                    write = _log.warning if source.verdict in ("unconfirmed", "unknown") else _log.info
                    write("source_address_checked", key=address, verdict=source.verdict, reason=source.reason)
                found[address] = source
        self._found = found
        self._ipv6 = any(s.verdict == "confirmed" and ":" in s.address for s in found.values())

    async def _look_up(self, address: str) -> Source:
        if not is_public(address):
            return Source(address, "private", "others see another address of ours, or none")
        try:
            names = await self._resolver.ptr(address)
            for name in names:
                if ipaddress.ip_address(address) in map(ipaddress.ip_address, await self._addresses(name)):
                    return Source(address, "confirmed", name)
        except (NoSuchDomain, NoRecords):
            return Source(address, "unconfirmed", "it has no name in reverse DNS (PTR)")
        except TemporaryDnsError as e:
            return Source(address, "unknown", e.reason)
        return Source(address, "unconfirmed", f"its name {', '.join(names)} does not lead back to it")

    async def _addresses(self, name: str) -> list[str]:
        try:
            return await self._resolver.addresses(name)
        except (NoSuchDomain, NoRecords):
            return []

    def status(self) -> dict[str, object]:
        """For `pymxctl status`."""
        status: dict[str, object] = {"ipv6": "used" if self._ipv6 else "not used"}
        status.update((s.address, f"{s.verdict}: {s.reason}") for s in self._found.values())
        return status

    # -- for a delivery ---------------------------------------------------------------------------------------------

    def source_for(self, destination: str, to: str) -> str:
        """The local address for a connection; "" = the system's choice."""
        candidates = self._configured[6 if ":" in to else 4]
        confirmed = [a for a in candidates if a in self._found and self._found[a].verdict == "confirmed"]
        chosen = confirmed or candidates
        return chosen[zlib.crc32(destination.encode()) % len(chosen)] if chosen else ""

    def reached(self, destination: str, address: str, now: float) -> None:
        """A server there has answered at this address."""
        self._families[destination] = (6 if ":" in address else 4, now)
        self._families.move_to_end(destination)
        while len(self._families) > _REMEMBERED:
            self._families.popitem(last=False)

    async def of_family(self, hosts: AsyncGenerator[Host, None], source: str) -> AsyncGenerator[Host, None]:
        """The hosts that can be reached from `source`, as they come."""
        async with aclosing(hosts):
            async for host in hosts:
                if (":" in host.address) == (":" in source):
                    yield host

    async def ordered(
        self, hosts: AsyncGenerator[Host, None], destination: str, now: float
    ) -> AsyncGenerator[Host, None]:
        """Hosts in their order; of each, addresses of the family that is remembered first, and IPv6 only if we may."""
        family, at = self._families.get(destination, (0, 0.0))
        preferred = family if now - at < _DAY_S else 0
        last_resort: list[Host] = []
        any_given = False
        async with aclosing(_by_name(hosts)) as groups:
            async for addresses in groups:
                usable = [h for h in addresses if self._ipv6 or ":" not in h.address or not is_public(h.address)]
                if not usable:
                    last_resort += addresses
                for host in sorted(usable, key=lambda h: (6 if ":" in h.address else 4) != preferred):
                    any_given = True
                    yield host
        if not any_given:
            for host in last_resort:
                yield host


async def _by_name(hosts: AsyncGenerator[Host, None]) -> AsyncGenerator[list[Host], None]:
    """Addresses that follow each other and are of one host."""
    group: list[Host] = []
    async with aclosing(hosts):
        async for host in hosts:
            if group and group[0].name != host.name:
                yield group
                group = []
            group.append(host)
        if group:
            yield group
