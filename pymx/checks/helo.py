"""HELO: is what the sending host calls itself a name, and its own?

RFC 5321 s. 4.1.1.1 wants a full host name or an address literal, and s. 4.1.4 forbids to refuse mail because a name
does not fit. So this gives hints: our own name, which only a liar has; an address that is not the peer's; a bare
address; a name without a dot; a name that DNS says does not exist.
"""

from __future__ import annotations

import ipaddress
import re

from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.address import AddressError, domain_to_ascii
from pymx.mail.peer import peer_address
from pymx.mailauth.questions import Questions
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError

_OURS = 3.0
_WRONG_ADDRESS = 2.0
_NO_NAME = 1.5
_UNKNOWN_NAME = 1.0
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}\Z")


class Helo:
    """The check of the name in HELO."""

    name = "helo"
    stages = (Stage.HELO,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions, *, hostname: str) -> None:
        self._resolver = resolver
        self._hostname = hostname.lower()

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        helo = facts.origin.helo.rstrip(".").lower()
        if helo.startswith("["):
            return self._literal(helo, facts)
        if helo == self._hostname:
            return _hint(_OURS, facts, "is our own name")
        try:
            ipaddress.ip_address(helo)
        except ValueError:
            pass
        else:
            return _hint(_NO_NAME, facts, "is an address without brackets")
        try:
            name = domain_to_ascii(helo)
        except AddressError:
            name = ""
        if not _NAME.match(name):
            return _hint(_NO_NAME, facts, "is not a full host name")
        return await self._look_up(name, facts)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unknown", reason=f"helo: {reason}")

    async def close(self) -> None:
        """Nothing is held."""

    def _literal(self, helo: str, facts: Facts) -> Verdict:
        try:
            address = peer_address(helo.strip("[]").removeprefix("ipv6:"))
        except ValueError:
            return _hint(_NO_NAME, facts, "is not an address literal")
        if address != peer_address(facts.origin.peer_ip):
            return _hint(_WRONG_ADDRESS, facts, f"is not the address {facts.origin.peer_ip}")
        return Verdict(word="ok")

    async def _look_up(self, name: str, facts: Facts) -> Verdict:
        """A name with an address of either kind exists; who fails to say is not held against anybody."""
        for rdtype in ("A", "AAAA"):
            try:
                await self._resolver.resolve(name, rdtype)
            except NoSuchDomain:
                return _hint(_UNKNOWN_NAME, facts, "is a name that does not exist")
            except NoRecords:
                continue
            except TemporaryDnsError as e:
                return self.unavailable(facts, e.reason)
            return Verdict(word="ok")
        return _hint(_UNKNOWN_NAME, facts, "is a name without an address")


def _hint(weight: float, facts: Facts, why: str) -> Verdict:
    return Verdict(word="bad", score=weight, reason=f"HELO {facts.origin.helo} {why}")
