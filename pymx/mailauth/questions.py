"""What mail authentication asks of the name system, and the two facts all its methods tell apart.

A record that does not exist is a fact about a domain; a failure to find out is not, and reaches the caller of a method
as its temporary result (RFC 8601 s. 2.7: temperror), never as an exception.
"""

from __future__ import annotations

from typing import Protocol

from pymx.resolver.answer import Answer, NoRecords, NoSuchDomain, TemporaryDnsError


class Questions(Protocol):
    """The resolver, or what stands in front of it to count questions."""

    async def resolve(self, name: str, rdtype: str) -> Answer:
        """The records of a type at a name. Raises NoSuchDomain, NoRecords or TemporaryDnsError."""


def unknown(error: TemporaryDnsError) -> str:
    """What may be told of a failure: headers and replies carry it, so nothing of our own servers. The log has that."""
    return f"{error.name} {error.rdtype} can't be looked up now"


async def texts(resolver: Questions, name: str) -> list[bytes]:
    """The TXT records at a name, the strings of each joined; none when there are none. Raises TemporaryDnsError."""
    try:
        answer = await resolver.resolve(name, "TXT")
    except (NoRecords, NoSuchDomain):
        return []
    return [b"".join(s for s in record if isinstance(s, bytes)) for record in answer.records]
