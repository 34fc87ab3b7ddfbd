"""The hashes of a message's body, taken once for DKIM and ARC.

They are taken while the message arrives (`Inspection.body`), and then ready at the final dot. A message that did not
come that way is read again, a large one in a thread, so that nobody waits for it.
"""

from __future__ import annotations

import asyncio

from pymx.checks.check import Facts
from pymx.mailauth.dkim.body import body_hashes
from pymx.mailauth.dkim.verify import BodyHashes

_SMALL_OCTETS = 65536


async def hashed_body(facts: Facts) -> BodyHashes:
    """The body's hashes. Raises OSError when a spooled body can't be read."""
    content = facts.content
    assert content is not None
    async with facts.body_lock:
        if facts.bodies is None:
            chunks = content.body_chunks()
            if content.in_memory and content.body_octets <= _SMALL_OCTETS:
                facts.bodies = body_hashes(content.head, chunks)
            else:
                facts.bodies = await asyncio.to_thread(body_hashes, content.head, chunks)
        return facts.bodies
