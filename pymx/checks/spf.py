"""SPF: does the domain of MAIL FROM (of HELO, for a bounce) let this host send (RFC 7208)?

A hint by itself, whatever the domain asks for: forwarded mail fails, and that is nobody's fault. What the domain in
From wants done is DMARC's to say.

The name in HELO is asked as well (s. 2.3), unless it is what MAIL FROM has. Its results other than "none" are reported;
its fail weighs half, because names of hosts get records by mistake.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pymx.checks.budget import Budget
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.address import Address
from pymx.mail.authres import Result
from pymx.mail.spam import join_reasons
from pymx.mailauth.questions import Questions
from pymx.mailauth.spf.check import SpfResult, check, received_spf

MAX_QUESTIONS = 50
WEIGHTS = {"fail": 3.0, "softfail": 1.5, "permerror": 1.0}
_HELO_FAIL = 1.5


class Spf:
    """The check of the host against the sender's domain."""

    name = "spf"
    stages = (Stage.MAIL,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions, *, hostname: str) -> None:
        self._resolver = resolver
        self._hostname = hostname

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        origin = facts.origin
        questions = Budget(self._resolver, MAX_QUESTIONS)
        sender, helo = facts.mail_from, origin.helo.rstrip(".")
        if sender is None or not sender.domain or helo.lower() == sender.domain or not _is_host_name(helo):
            return self._verdict(facts, await self._check(questions, facts, sender))
        by_sender, by_helo = await asyncio.gather(
            self._check(questions, facts, sender), self._check(questions, facts, None)
        )
        return self._with_helo(self._verdict(facts, by_sender), by_helo)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        by_sender = facts.mail_from is not None and bool(facts.mail_from.domain)
        domain = facts.mail_from.domain if facts.mail_from is not None and by_sender else facts.origin.helo
        return self._verdict(facts, SpfResult("temperror", "mailfrom" if by_sender else "helo", domain, reason))

    async def close(self) -> None:
        """Nothing is held."""

    async def _check(self, questions: Budget, facts: Facts, mail_from: Address | None) -> SpfResult:
        origin = facts.origin
        return await check(questions, ip=origin.peer_ip, mail_from=mail_from, helo=origin.helo, receiver=self._hostname)

    def _with_helo(self, verdict: Verdict, found: SpfResult) -> Verdict:
        if found.result == "none":
            return verdict
        weight = _HELO_FAIL if found.result == "fail" else 0.0
        return replace(
            verdict,
            score=verdict.score + weight,
            reason=join_reasons([verdict.reason, f"SPF fail for HELO {found.domain}" if weight else ""]),
            results=(*verdict.results, Result("spf", found.result, (("smtp.helo", found.domain),))),
        )

    def _verdict(self, facts: Facts, found: SpfResult) -> Verdict:
        facts.spf = found
        origin, weight = facts.origin, WEIGHTS.get(found.result, 0.0)
        value = received_spf(
            found, ip=origin.peer_ip, mail_from=facts.mail_from, helo=origin.helo, receiver=self._hostname
        )
        identity = str(facts.mail_from) if found.identity == "mailfrom" else origin.helo
        reason = ""
        if weight or found.result == "temperror":
            reason = f"SPF {found.result} for {found.domain}" + (f": {found.explanation}" if found.explanation else "")
        return Verdict(
            score=weight,
            reason=reason,
            results=(Result("spf", found.result, ((f"smtp.{found.identity}", identity),)),),
            fields=(("Received-SPF", value),),
        )


def _is_host_name(helo: str) -> bool:
    """Could there be a record? An address literal, an address and a name without a dot have none (s. 2.3)."""
    return "." in helo and not helo.startswith("[") and not helo.rpartition(".")[2].isdigit()
