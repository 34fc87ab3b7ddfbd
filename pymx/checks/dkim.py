"""DKIM: which domains have signed the message as it is (RFC 6376).

A signature that is not right counts for as much as none (s. 6.3), so this check only reports. DMARC makes use of it.
"""

from __future__ import annotations

import time

from pymx.checks.body import hashed_body
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.authres import Result
from pymx.mailauth.dkim.verify import DkimResult, verify
from pymx.mailauth.questions import Questions


class Dkim:
    """The check of signatures."""

    name = "dkim"
    stages = (Stage.DATA,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions) -> None:
        self._resolver = resolver

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is not None
        facts.dkim = await verify(self._resolver, facts.content.head, await hashed_body(facts), now=time.time())
        return Verdict(results=tuple(_result(found) for found in facts.dkim))

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        facts.dkim = [DkimResult("temperror", reason=reason)]
        return Verdict(results=(Result("dkim", "temperror", reason=reason),), reason=f"dkim: {reason}")

    async def close(self) -> None:
        """Nothing is held."""


def _result(found: DkimResult) -> Result:
    properties = (
        ("header.d", found.domain),
        ("header.i", found.identity),
        ("header.s", found.selector),
        ("header.a", found.algorithm),
        ("header.b", found.signature_b),
    )
    reason = "" if found.result in ("pass", "none") else found.reason
    return Result("dkim", found.result, tuple((name, value) for name, value in properties if value), reason)
