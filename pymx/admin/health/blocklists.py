"""Lists of bad hosts: are our addresses on one, and does it answer us at all?

A list that refuses our resolver answers with 127.255.255.x (Spamhaus: .252 a typing error, .254 a public resolver,
.255 too many questions). Then nothing is known, and the check of incoming mail against it is worth nothing either.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator

from pymx.admin.health.finding import Finding, fail, info, ok, warn
from pymx.admin.health.subject import Subject
from pymx.config.zones import by_zone
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError

_ANSWERS = ipaddress.ip_network("127.0.0.0/8")
_REFUSALS = ipaddress.ip_network("127.255.255.0/24")
_REFUSED = {
    "127.255.255.252": "the zone's name is misspelt",
    "127.255.255.254": "the question came by a public resolver",
    "127.255.255.255": "too many questions came from our resolver",
}
# Spamhaus' PBL has addresses that should not send at all, as their provider says: another way out of it
_POLICY = {"127.0.0.10", "127.0.0.11"}


async def check(subject: Subject) -> AsyncIterator[Finding]:
    zones = list(dict.fromkeys((*subject.places.public_lists, *by_zone(subject.config.checks.dnsbl))))
    pairs = [(zone, address) for zone in zones for address in subject.server.sends]
    answers = await asyncio.gather(*(_ask(subject, zone, address) for zone, address in pairs))
    told: set[str] = set()
    for (zone, address), codes in zip(pairs, answers, strict=True):
        check = f"blocklist:{zone}:{address}"
        if codes is None:
            yield info(check, f"{zone} does not answer")
        elif refusal := next((c for c in codes if ipaddress.ip_address(c) in _REFUSALS), ""):
            if zone not in told:
                told.add(zone)
                reason = _REFUSED.get(refusal, "see its pages")
                yield warn(
                    f"blocklist:{zone}", f"{zone} refuses to answer us ({refusal}): {reason}",
                    'a resolver of your own: apt-get install unbound, then [dns] nameservers = ["127.0.0.1"]',
                    "incoming mail is not checked against it, and nobody knows whether we are on it",
                )  # fmt: skip
        elif not codes:
            yield ok(check, f"{address} is not on {zone}")
        elif any(ipaddress.ip_address(c) not in _ANSWERS for c in codes):
            yield warn(
                check,
                f"{zone} answers {codes[0]}, which no such list does: has it ended?",
                "take it out of dnsbl",
                "a list that has ended may answer for everybody: then all incoming mail counts as bad",
            )
        elif set(codes) <= _POLICY:
            yield fail(
                check, f"{address} is on {zone} ({', '.join(codes)}) as an address that should not send mail",
                f"ask your hoster whether it is for servers; take it out at https://check.spamhaus.org/results/?query={address}",
                "many servers refuse mail from the addresses on it",
            )  # fmt: skip
        else:
            yield fail(
                check, f"{address} is on {zone} ({', '.join(codes)})",
                f"find out why (pymxctl queue list, pymxctl log), then ask the list to take it out: "
                f"https://check.spamhaus.org/results/?query={address}" if "spamhaus" in zone else
                f"find out why (pymxctl queue list, pymxctl log), then ask {zone} to take it out",
                "many servers refuse mail from it",
            )  # fmt: skip


async def _ask(subject: Subject, zone: str, address: str) -> list[str] | None:
    reverse = ipaddress.ip_address(address).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
    try:
        answer = await subject.resolver.resolve(f"{reverse}.{zone}", "A")
    except (NoSuchDomain, NoRecords):
        return []
    except TemporaryDnsError:
        return None
    return [str(record[0]) for record in answer.records]
