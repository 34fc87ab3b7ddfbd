"""When to try again, when to tell the sender, when to give up. PURE: `now` and the dice are arguments.

The wait after the n-th failed try is retry_first · 2^(n-1), at most retry_max, times 0.8 to 1.2: a burst that failed
together does not come back together. The last try falls on the end of the lifetime, so that a message is tried
until then and no longer.
"""

from __future__ import annotations

from pymx.config.model import Outbound

_JITTER = 0.2


def retry_wait_s(outbound: Outbound, attempts: int, dice: float) -> float:
    """The wait after `attempts` failed tries; `dice` is in [0, 1)."""
    doublings = min(max(attempts - 1, 0), 30)
    wait_s = min(outbound.retry_first_s * 2.0**doublings, outbound.retry_max_s)
    return wait_s * (1 - _JITTER + 2 * _JITTER * dice)


def next_try(outbound: Outbound, *, arrived_s: float, attempts: int, now: float, dice: float) -> float:
    """The time of the next try. Never past the end of the lifetime, while that lies ahead."""
    at = now + retry_wait_s(outbound, attempts, dice)
    end = expires_at(outbound, arrived_s)
    return min(at, end) if now < end else at


def expires_at(outbound: Outbound, arrived_s: float) -> float:
    return arrived_s + outbound.lifetime_s


def has_expired(outbound: Outbound, arrived_s: float, now: float) -> bool:
    """Whether a deferred recipient has to be given up."""
    return now >= expires_at(outbound, arrived_s)


def notice_is_due(outbound: Outbound, arrived_s: float, now: float, *, told: bool) -> bool:
    """Whether the sender has to be told that the message is late (RFC 5321 s. 4.5.4.1 leaves it to us)."""
    return not told and outbound.delay_notice_s > 0 and now >= arrived_s + outbound.delay_notice_s
