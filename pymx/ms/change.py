"""What a user's session moved from one mailbox to another: told to whoever wants to draw conclusions.

A COPY is told as a MOVE is: clients without MOVE copy, mark as deleted and expunge, and the copy is when the user said
where the message belongs. What is delivered, appended or renamed is no change of mind and is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pymx.ms.owner import Owner


@dataclass(frozen=True, slots=True)
class Change:
    """Messages that came from `source` to `target`; `uids` are theirs in `target`. A use is "" or as `\\Junk`."""

    owner: Owner
    source: str
    target: str
    source_use: str
    target_use: str
    uidvalidity: int
    uids: tuple[int, ...]


Changed = Callable[[Change], None]
"""Called in the event loop of the process whose session did it, after the answer is certain. Must not block."""
