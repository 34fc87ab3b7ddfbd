"""The hosts that take mail for a domain, in the order in which to try them (RFC 5321 s. 5.1, RFC 7505).

Equal preferences are shuffled. No MX records: the domain's own addresses. A null MX, a domain that does not exist and
one without any address are refused for good, a temporary DNS failure is not. Hosts from our own preference on are cut
off (s. 5.1: we must not send to ourselves); when nothing is left before that, the mail loops.

Private, loopback and link-local addresses of other people's MX records are not connected to, unless
`[outbound] allow_private` says so: a name in public DNS must not make us knock at doors inside.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, replace
from itertools import groupby

from pymx.resolver.answer import Located, NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.public import is_public
from pymx.resolver.resolver import Resolver

MAX_HOSTS = 20
_MAX_ADDRESSES = 8  # of one host


class Unroutable(Exception):
    """There is nowhere to send to. `status` begins with 4 when it may be otherwise later."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason

    @property
    def temporary(self) -> bool:
        return self.status.startswith("4")


@dataclass(frozen=True, slots=True)
class Found:
    """Mail servers' names, best first. `canonical_name` is the domain with its CNAMEs followed.

    `authenticated`: DNSSEC proves the list, or that the domain is its own mail server.
    """

    names: tuple[str, ...]
    canonical_name: str
    authenticated: bool


@dataclass(frozen=True, slots=True)
class Host:
    """One address of one host.

    `mx` says how the name was found (None: it was configured, or is an address). `authenticated`: the address, and the
    way from `name` to `canonical_name`, are proven by DNSSEC.
    """

    name: str
    address: str
    mx: Found | None = None
    canonical_name: str = ""
    authenticated: bool = False


class MxLookup:
    """`own_names` and `own_addresses` are ours: the self-loop guard."""

    def __init__(
        self, resolver: Resolver, *, own_names: Collection[str], own_addresses: Collection[str], allow_private: bool
    ) -> None:
        self._resolver = resolver
        self._own_names = {name.lower().rstrip(".") for name in own_names}
        self._own_addresses = {str(ipaddress.ip_address(a)) for a in own_addresses}
        self._allow_private = allow_private

    async def hosts(self, domain: str) -> AsyncGenerator[Host, None]:
        """Addresses to try, in order, looked up as they are needed. Raises Unroutable when there is not one."""
        if domain.startswith("["):
            yield self._literal(domain)
            return
        found = await self._names(domain)
        trouble: Unroutable | None = None
        any_host = False
        for name in found.names:
            try:
                located = await self._located(name)
            except Unroutable as e:
                # One host's temporary trouble says more than another's permanent one: it may be the one that works.
                if trouble is None or e.temporary:
                    trouble = e
                continue
            for address in located.addresses:
                any_host = True
                yield Host(name, address, found, located.canonical_name, located.authenticated)
        if not any_host:
            raise trouble or Unroutable("5.4.4", f"{domain} has no mail server with an address")

    async def fixed(self, host: str) -> AsyncGenerator[Host, None]:
        """The addresses of a configured host; it may be private. Never fails for good: the setting may be mended."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            yield Host(host, host)
            return
        try:
            for address in await self._resolver.addresses(host):
                yield Host(host, address)
        except (NoSuchDomain, NoRecords, TemporaryDnsError) as e:
            raise Unroutable("4.4.3", f"the next hop {host} has no address: {e.reason}") from e

    def _literal(self, domain: str) -> Host:
        text = domain.strip("[]").removeprefix("ipv6:")
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            raise Unroutable("5.1.2", f"{domain} is no address") from None
        if self._is_own(address):
            raise Unroutable("5.4.6", f"{domain} is this server, but it does not take mail for it")
        if not self._may_connect(address):
            raise Unroutable("5.4.4", f"{domain} is a private address")
        return Host(domain, address)

    async def _names(self, domain: str) -> Found:
        try:
            answer = await self._resolver.resolve(domain, "MX")
        except NoSuchDomain as e:
            raise Unroutable("5.1.2", f"the domain {domain} does not exist") from e
        except NoRecords as e:
            if domain in self._own_names:
                raise Unroutable("5.4.6", f"{domain} is this server, but it does not take mail for it") from None
            return Found((domain,), domain, e.authenticated)  # RFC 5321 s. 5.1: the implicit MX
        except TemporaryDnsError as e:
            raise Unroutable("4.4.3", f"the mail servers of {domain} can't be looked up now: {e.reason}") from e
        real = [(int(str(preference)), str(host)) for preference, host in answer.records if host]
        if not real:
            raise Unroutable("5.1.10", f"the domain {domain} takes no mail (null MX)")  # RFC 7505 s. 3, 4.2
        return Found(tuple(await self._in_order(domain, real)), answer.canonical_name, answer.authenticated)

    async def _in_order(self, domain: str, records: list[tuple[int, str]]) -> list[str]:
        ordered: list[str] = []
        for preference, group in groupby(sorted(records), key=lambda record: record[0]):
            names = [name for _, name in group]
            if await self._any_own(names):
                if not ordered:
                    raise Unroutable("5.4.6", f"{domain} has this server as its best MX (preference {preference})")
                break
            random.shuffle(names)
            ordered += names
        return list(dict.fromkeys(ordered))[:MAX_HOSTS]

    async def _any_own(self, names: list[str]) -> bool:
        if any(name.lower() in self._own_names for name in names):
            return True
        if not self._own_addresses:
            return False
        for name in names:
            try:
                if self._own_addresses.intersection(await self._resolver.addresses(name)):
                    return True
            except (NoSuchDomain, NoRecords, TemporaryDnsError):
                continue  # it is looked up again, and judged, when it is its turn
        return False

    async def _located(self, name: str) -> Located:
        try:
            located = await self._resolver.located(name)
        except TemporaryDnsError as e:
            raise Unroutable("4.4.3", f"the address of {name} can't be looked up now: {e.reason}") from e
        except (NoSuchDomain, NoRecords) as e:
            raise Unroutable("5.4.4", f"the mail server {name} has no address") from e
        usable = [a for a in located.addresses if self._may_connect(a) and not self._is_own(a)]
        if not usable:
            raise Unroutable("5.4.4", f"the mail server {name} has only private addresses")
        return replace(located, addresses=tuple(usable[:_MAX_ADDRESSES]))

    def _is_own(self, address: str) -> bool:
        return str(ipaddress.ip_address(address)) in self._own_addresses

    def _may_connect(self, address: str) -> bool:
        return self._allow_private or is_public(address)
