"""Which certificates the server should have by ACME, for which names, and which of them are due.

One for the host (its name and `[acme] names`), and one for each domain (`[acme] prefixes` under it): a name that fails
takes no other domain along, nobody reads in a certificate who else has mail here, and a new domain changes no other's.

A name is asked for only if it leads here: if it shares an address with the host's name. That works behind NAT too, and
saves the authority's patience (it limits failures).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pymx.config.model import Config
from pymx.net.certificate import Facts


class LookupFailed(Exception):
    """DNS gave no answer just now; the text says why."""


Addresses = Callable[[str], Awaitable[frozenset[str]]]  # of a host name; empty when it has none

RENEW_AT = 1 / 3  # of the life that is left


@dataclass(frozen=True, slots=True)
class Wanted:
    """`name` is what it is called; without the names in `required` it makes no sense."""

    name: str
    names: tuple[str, ...]
    required: frozenset[str] = frozenset()


@dataclass(slots=True)
class Plan:
    """What is to be had, and the names that were left out, with the reason."""

    wanted: list[Wanted] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def candidates(config: Config, domains: Iterable[str]) -> list[Wanted]:
    """All that could be had; `domains` in A-labels. The host's is first."""
    host = config.hostname.lower()
    found = []
    if not config.tls.certificate:  # else somebody else keeps that one up
        names = dict.fromkeys([host, *(name.lower() for name in config.acme.names)])
        found.append(Wanted(host, tuple(names), frozenset({host})))
    taken = set(found[0].names) if found else {host}
    for domain in sorted(set(domains)):
        names = dict.fromkeys(f"{prefix.lower()}.{domain}" for prefix in config.acme.prefixes)
        under = tuple(name for name in names if name not in taken)
        if under and domain != host:
            found.append(Wanted(domain, under))
    return found


async def reachable(wanted: Sequence[Wanted], host: str, addresses: Addresses) -> Plan:
    """Leave out the names that don't lead to where `host` does. What DNS does not tell just now stays in: the authority
    asks by itself. Raises LookupFailed when that is so for `host`."""
    plan = Plan()
    here = await addresses(host.lower())
    for one in wanted:
        names = []
        for name in one.names:
            try:
                found = here if name == host.lower() else await addresses(name)
            except LookupFailed:
                names.append(name)
                continue
            if found & here:
                names.append(name)
            elif not found:
                plan.left_out[name] = "has no address in DNS"
            elif not here:
                plan.left_out[name] = f"{host}, this server's name, has no address in DNS"
            else:
                plan.left_out[name] = f"leads to {', '.join(sorted(found))}, and {host} to {', '.join(sorted(here))}"
        if names and one.required <= set(names):
            plan.wanted.append(Wanted(one.name, tuple(names), one.required))
    return plan


def due(wanted: Wanted, have: Facts | None, now: float, *, failing: Mapping[str, float], suggested: float = 0.0) -> str:
    """Why a certificate has to be got now; "" when it has not.

    `failing` are names that were refused, with the time before which they are not tried again; `suggested` is when the
    authority would have it renewed (RFC 9773), 0 = it did not say.
    """
    if have is None:
        return "there is none"
    if have.not_after - now < (have.not_after - have.not_before) * RENEW_AT:
        return "it expires"
    if suggested and suggested <= now:
        return "the authority wants it renewed"
    missing = [name for name in wanted.names if name not in have.names and failing.get(name, 0.0) <= now]
    return f"{', '.join(missing)} is not in it" if missing else ""
