"""How much one message may have us ask.

SPF and ARC follow what strangers wrote, from name to name. The standards limit the steps, not the questions: ten "mx"
of ten hosts each are a hundred. Each of these checks has a budget of its own for each message, so that what one of them
spends is not missing to another. Beyond it a question is a temporary failure, which is what is true: nobody knows.
"""

from __future__ import annotations

from pymx.mailauth.questions import Questions
from pymx.resolver.answer import Answer, TemporaryDnsError


class Budget:
    """At most `limit` questions."""

    def __init__(self, resolver: Questions, limit: int) -> None:
        self._resolver = resolver
        self._limit = limit
        self.asked = 0

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """As the resolver does; TemporaryDnsError when the budget is spent."""
        self.asked += 1
        if self.asked > self._limit:
            raise TemporaryDnsError(name, rdtype, f"more than {self._limit} DNS questions for one check of a message")
        return await self._resolver.resolve(name, rdtype)
