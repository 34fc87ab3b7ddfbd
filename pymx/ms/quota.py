"""What an account may hold: octets and messages, and when it is told that it comes close.

The use is what the index counts in all mailboxes. A warning is due when a level (80 %, 95 %) is passed upwards; that it
was is written down in the index in the same step, so of several processes one tells it. A level is free to be passed
again once the use was five points below it. A lost index warns again.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymx.ms.account import Account
from pymx.ms.errors import OverQuota
from pymx.ms.owner import Owner

LEVELS = (80, 95)
_FREE_AGAIN = 5
_KEY = "quota_warned"


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account holds."""

    octets: int
    messages: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """A level was passed: percent of the limit that is nearer to its end."""

    level: int
    usage: Usage


def percent(owner: Owner, usage: Usage) -> float:
    """Of the limit that is nearer to its end; 0 without limits."""
    parts = [0.0]
    if owner.quota_octets:
        parts.append(100 * usage.octets / owner.quota_octets)
    if owner.quota_messages:
        parts.append(100 * usage.messages / owner.quota_messages)
    return max(parts)


def check_room(account: Account, owner: Owner, octets: int, messages: int) -> None:
    """OverQuota if so much more would be too much; in a thread."""
    if not owner.is_limited:
        return
    usage = Usage(*account.usage())
    _lower(account, percent(owner, usage))
    if owner.quota_octets and usage.octets + octets > owner.quota_octets:
        raise OverQuota(
            "Mailbox is over quota", reason=f"{usage.octets} + {octets} octets would be more than {owner.quota_octets}"
        )
    if owner.quota_messages and usage.messages + messages > owner.quota_messages:
        raise OverQuota(
            "Mailbox is over quota",
            reason=f"{usage.messages} + {messages} messages would be more than {owner.quota_messages}",
        )


def crossing(account: Account, owner: Owner) -> Crossing | None:
    """After something came in: the level that was passed, told once; in a thread."""
    if not owner.is_limited:
        return None
    usage = Usage(*account.usage())
    level = max((each for each in LEVELS if percent(owner, usage) >= each), default=0)
    if level <= _warned(account):
        return None
    with account.home.index.write() as db:
        found = db.execute("SELECT value FROM meta WHERE key=?", (_KEY,)).fetchone()
        if found and found[0] >= level:
            return None
        db.execute("REPLACE INTO meta VALUES(?, ?)", (_KEY, level))
    return Crossing(level, usage)


def _warned(account: Account) -> int:
    with account.home.index.read() as db:
        found = db.execute("SELECT value FROM meta WHERE key=?", (_KEY,)).fetchone()
    return int(found[0]) if found else 0


def _lower(account: Account, now: float) -> None:
    """Forget levels that the use is well below of."""
    warned = _warned(account)
    if not warned or now >= warned - _FREE_AGAIN:
        return
    left = max((each for each in LEVELS if each < warned and now >= each - _FREE_AGAIN), default=0)
    with account.home.index.write() as db:
        db.execute("UPDATE meta SET value=? WHERE key=? AND value=?", (left, _KEY, warned))
