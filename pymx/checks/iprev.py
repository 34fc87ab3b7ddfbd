"""iprev: the sending host has a name that leads back to its address (RFC 8601 s. 3).

A hint only: many a legitimate server has no such name. Failure to find out counts for nothing.
"""

from __future__ import annotations

from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.authres import Result
from pymx.mailauth.iprev import iprev
from pymx.mailauth.questions import Questions

_WEIGHTS = {"permerror": 1.5, "fail": 1.0}  # no name at all; a name that does not lead back


class Iprev:
    """The check of the peer's name."""

    name = "iprev"
    stages = (Stage.CONNECT,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions) -> None:
        self._resolver = resolver

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        found = await iprev(self._resolver, facts.origin.peer_ip)
        facts.iprev = found
        weight = _WEIGHTS.get(found.result, 0.0)
        return Verdict(
            score=weight,
            reason=f"the host {facts.origin.peer_ip}: {found.reason}" if weight else "",
            results=(_result(facts, found.result, found.name),),
        )

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(results=(_result(facts, "temperror", ""),), reason=f"iprev: {reason}")

    async def close(self) -> None:
        """Nothing is held."""


def _result(facts: Facts, result: str, name: str) -> Result:
    # RFC 8601 s. 2.7.3: policy.iprev is the address that was looked up
    properties = (("policy.iprev", facts.origin.peer_ip),)
    return Result("iprev", result, properties, name if result == "pass" else "")
