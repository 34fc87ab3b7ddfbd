"""Did the sending host talk before it was greeted?

RFC 5321 s. 4.3.1 has the client wait for the greeting, and every mail server does; programs that only pour out spam
save themselves the wait. `[smtp] greeting_wait_ms` gives them time to show it. A hint, and the commands that came too
early were refused (503 5.5.1).
"""

from __future__ import annotations

from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Verdict

_WEIGHT = 3.0


class EarlyTalker:
    """The check of who talks before the greeting."""

    name = "early_talker"
    stages = (Stage.CONNECT,)
    needs: tuple[str, ...] = ()

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        if facts.origin.early_talker:
            return Verdict(word="bad", score=_WEIGHT, reason="the host talked before the greeting")
        return Verdict(word="ok")

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unknown", reason=f"early_talker: {reason}")

    async def close(self) -> None:
        """Nothing is held."""
