"""ARC: what forwarders saw before they changed the message (RFC 8617).

This check only reports. `vouched_by` is for DMARC: a chain that holds says who sealed, not that they are honest, so it
counts only when the sealers are ones that the administrator trusts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection

from pymx.checks.body import hashed_body
from pymx.checks.budget import Budget
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict
from pymx.mail.authres import Result
from pymx.mailauth.arc.verify import ArcResult, verify
from pymx.mailauth.questions import Questions

_MAX_QUESTIONS = 25  # keys: chains of more than a handful are not met with
_DMARC_FAILED = re.compile(r"(?:^|;)\s*dmarc\s*=\s*fail\b", re.IGNORECASE)


class Arc:
    """The check of the chain."""

    name = "arc"
    stages = (Stage.DATA,)
    needs: tuple[str, ...] = ()

    def __init__(self, resolver: Questions) -> None:
        self._resolver = resolver

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is not None
        questions = Budget(self._resolver, _MAX_QUESTIONS)
        found = await verify(questions, facts.content.head, await hashed_body(facts), now=time.time())
        facts.arc = found
        if found.result == "none":
            return Verdict(word="none")
        properties = [("smtp.remote-ip", facts.origin.peer_ip)]
        if found.result == "pass":
            properties.append(("header.oldest-pass", str(found.oldest_pass)))  # RFC 8617 s. 10.2
        return Verdict(
            results=(Result("arc", found.result, tuple(properties), found.reason if found.result != "pass" else ""),)
        )

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        facts.arc = ArcResult("fail", reason=reason, temporary=True)
        return Verdict(word="unknown", reason=f"arc: {reason}")

    async def close(self) -> None:
        """Nothing is held."""


def vouched_by(arc: ArcResult | None, trusted: Collection[str]) -> str:
    """The trusted sealer whose word the message can be taken on, or "".

    From the newest seal backwards every sealer must be trusted; the oldest of these saw the message first, and must not
    have seen DMARC fail already.
    """
    if arc is None or arc.result != "pass":
        return ""
    voucher = ""
    seen = ""
    for sealer, results in zip(reversed(arc.sealers), reversed(arc.authentication_results), strict=False):
        if sealer.lower() not in trusted:
            break
        voucher, seen = sealer, results
    return "" if _DMARC_FAILED.search(seen) else voucher


def could_be_vouched(arc: ArcResult | None, trusted: Collection[str]) -> bool:
    """Is there a chain that can't be checked now, but might be a trusted sealer's?"""
    if arc is None or not arc.temporary or not trusted:
        return False
    return not arc.sealers or arc.sealers[-1].lower() in trusted
