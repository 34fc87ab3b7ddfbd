"""A resolver that gives up a question sooner.

The domains that a message's signatures name are the sender's choice. One whose servers never answer must cost its own
signature the result, and not the message's other checks theirs.
"""

from __future__ import annotations

import asyncio

from pymx.mailauth.questions import Questions
from pymx.resolver.answer import Answer, TemporaryDnsError


class Patience:
    """Questions with a time limit each."""

    def __init__(self, resolver: Questions, timeout_s: float) -> None:
        self._resolver = resolver
        self._timeout_s = timeout_s

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """As the resolver does; TemporaryDnsError when the time is over."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._resolver.resolve(name, rdtype)
        except TimeoutError:
            raise TemporaryDnsError(name, rdtype, f"no answer within {self._timeout_s:g} s") from None
