"""SPF: does the domain of MAIL FROM (of HELO, for a bounce) let this host send (RFC 7208)?

A hint by itself, whatever the domain asks for: forwarded mail fails, and that is nobody's fault. What the domain in
From wants done is DMARC's to say.
"""

from __future__ import annotations

from pymx.checks.budget import Budget
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.authres import Result
from pymx.mailauth.questions import Questions
from pymx.mailauth.spf.check import SpfResult, check, received_spf

MAX_QUESTIONS = 50
WEIGHTS = {"fail": 3.0, "softfail": 1.5, "permerror": 1.0}


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
        found = await check(
            Budget(self._resolver, MAX_QUESTIONS),
            ip=origin.peer_ip,
            mail_from=facts.mail_from,
            helo=origin.helo,
            receiver=self._hostname,
        )
        return self._verdict(facts, found)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        by_sender = facts.mail_from is not None and bool(facts.mail_from.domain)
        domain = facts.mail_from.domain if facts.mail_from is not None and by_sender else facts.origin.helo
        return self._verdict(facts, SpfResult("temperror", "mailfrom" if by_sender else "helo", domain, reason))

    async def close(self) -> None:
        """Nothing is held."""

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
