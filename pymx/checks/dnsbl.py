"""DNSBL and DNSWL: what lists of addresses say of the sending host (RFC 5782), each with a weight.

An address is on a list if there is an A record in 127.0.0.0/8 at its reversed octets (nibbles for IPv6) under the
zone. Which address it is can mean something: an entry of the setting may count some answers only; the heaviest entry
that fits is a zone's weight. A list of good hosts takes its weight off.

Lists refuse service in answers too: 127.255.255.x means that the question came by a public resolver or too often (as
Spamhaus and others have it), and an answer outside 127.0.0.0/8 that somebody parks the zone. Neither says anything
about the host; both are logged, once an hour for each list. A list that does not answer counts for nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence

from pymx import log
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.config.zones import Rule, by_zone
from pymx.mail.authres import Result
from pymx.mail.peer import IpAddress, peer_address
from pymx.mailauth.questions import Questions
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError

_LOG_EVERY_S = 3600.0
_ANSWERS = ipaddress.ip_network("127.0.0.0/8")
_REFUSALS = ipaddress.ip_network("127.255.255.0/24")

_log = log.get("checks")


class Dnsbl:
    """The lists of one kind: bad hosts, or with `good=True` good ones."""

    stages = (Stage.CONNECT,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions, specs: Sequence[str], *, good: bool = False) -> None:
        self.name = "dnswl" if good else "dnsbl"
        self._resolver = resolver
        self._good = good
        self._zones: Mapping[str, list[Rule]] = by_zone(specs)
        self._complained: dict[str, float] = {}

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        address = peer_address(facts.origin.peer_ip)
        answers = await asyncio.gather(*(self._ask(zone, address) for zone in self._zones))
        score = 0.0
        listed: list[str] = []
        results: list[Result] = []
        for (zone, rules), codes in zip(self._zones.items(), answers, strict=True):
            weight = max((rule.weight for rule in rules for code in codes if rule.matches(code)), default=0.0)
            if not weight:
                continue
            score += -weight if self._good else weight
            listed.append(f"{zone} ({', '.join(codes)})")
            if self._good:
                # RFC 8904: only a list of good hosts has a method
                properties = (("dns.zone", zone), ("policy.ip", codes[0]))
                results.append(Result("dnswl", "pass", properties))
        if not listed:
            return Verdict(word="clean" if not self._good else "none")
        kind = "a list of good hosts" if self._good else "a list of bad hosts"
        reason = f"{facts.origin.peer_ip} is on {kind}: {', '.join(listed)}"
        return Verdict(word="listed", score=score, reason=reason, results=tuple(results))

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unknown", reason=f"{self.name}: {reason}")

    async def close(self) -> None:
        """Nothing is held."""

    async def _ask(self, zone: str, address: IpAddress) -> list[str]:
        """What the list answers for the address; nothing when it is not listed or nobody knows."""
        try:
            answer = await self._resolver.resolve(f"{_reversed(address)}.{zone}", "A")
        except (NoSuchDomain, NoRecords, TemporaryDnsError):
            return []  # the resolver has logged a failure
        codes = [str(record[0]) for record in answer.records]
        usable = [c for c in codes if (ip := ipaddress.ip_address(c)) in _ANSWERS and ip not in _REFUSALS]
        if not usable:
            self._complain(zone, codes)
        return usable

    def _complain(self, zone: str, codes: Sequence[str]) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(zone, -_LOG_EVERY_S) < _LOG_EVERY_S:
            return
        self._complained[zone] = now
        reason = "the list refuses our resolver" if codes[0].startswith("127.") else "not an answer of such a list"
        _log.warning("dnsbl_refused", key=zone, reason=f"{reason}: {', '.join(codes)}")


def _reversed(address: IpAddress) -> str:
    """RFC 5782 s. 2.1 and 2.4."""
    return address.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
