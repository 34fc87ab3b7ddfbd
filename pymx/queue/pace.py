"""How fast one place may be sent to: connections, rates, pauses. PURE: `now` (Unix seconds) is an argument.

Connections. Two at first. While nothing has gone wrong, each accepted message allows one more (slow start); after the
first trouble, each round of them one more. A try that finds the hosts down halves them, once for all that run at the
time. Never more than the limit, never less than one.

Down. When as many tries in a row as connections were allowed, and at least two, found nobody to talk to (a cohort, as
in Postfix's qmgr), the place is dead: nothing is tried for `dead_first_s`, twice as long each further time, up to
`dead_max_s`. Then one message finds out. One answer, of whatever kind, and it is alive again, in slow start.

Slowed down. When the remote says that we send too much, nothing is tried for as long as its rule says, twice as long
each time again within six hours, up to four hours. After that one connection, and half of what was sent per minute
before; both grow back with success. Said again within six hours, when the rate was used and more was taken for a while,
it is about the rate: for eight times as long as the pause, six hours at most, the rate stays a tenth below the one that
was too much. Else it grows on, and is forgotten when it is twice that.

A clock that is set back moves all these times with it.

Rates. Messages per minute and per hour are spaced out, with a burst of a tenth; within any such span of time the limit
holds. The warm-up ceiling counts by UTC day.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from pymx.config.model import Outbound
from pymx.queue.place import Kind, Limits, Strain

FOREVER = math.inf
_FIRST_CONNECTIONS = 2.0
_MAX_COUNT = 1_000_000_000
_DAY_S = 86_400
_SLOW_AGAIN_S = 6 * 3600.0
_SLOW_MAX_S = 4 * 3600.0
_DEAD_MAX_S = 3600.0
_LEARNED_GROWTH = 1.1
_LEARNED_BELOW = 0.9  # less than one step of growth
_HOLD_PAUSES = 8.0
_IN_PEACE_S = 120.0  # a complaint sooner after a pause is about more than the rate
_SPREAD_S = 3600.0  # what is put back for a learned rate comes back within that time: the rate grows meanwhile
_SET_BACK_S = 1.0
_ROUNDING_S = 1e-6  # Unix seconds as floats are good to about that


class Change(enum.Enum):
    """What the end of an attempt changed, for the log."""

    DEAD = "dead"
    SLOWED = "slowed"
    ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings behind every pace."""

    dead_first_s: float
    dead_max_s: float
    warm_up_day: int = 0  # days since 1970 of the first day; 0 = no warm-up
    warm_up_first: int = 0
    warm_up_growth: int = 0  # percent
    warm_up_days: int = 0

    @classmethod
    def of(cls, outbound: Outbound) -> Rules:
        return cls(
            dead_first_s=outbound.retry_first_s,
            dead_max_s=max(outbound.retry_first_s, min(outbound.retry_max_s, _DEAD_MAX_S)),
            warm_up_day=_day_of(outbound.warm_up_since),
            warm_up_first=outbound.warm_up_first,
            warm_up_growth=outbound.warm_up_growth,
            warm_up_days=outbound.warm_up_days,
        )

    def ceiling(self, now: float) -> int:
        """Messages that one site may get on the day of `now`; 0 = no ceiling."""
        day = int(now // _DAY_S) - self.warm_up_day
        if not self.warm_up_day or day >= self.warm_up_days:
            return 0
        try:
            return min(_MAX_COUNT, int(self.warm_up_first * (1 + self.warm_up_growth / 100) ** max(0, day)))
        except OverflowError:
            return _MAX_COUNT


def _day_of(text: str) -> int:
    """Days since 1970 of YYYY-MM-DD (checked by pymx.config.check); 0 for nothing."""
    return (date.fromisoformat(text) - date(1970, 1, 1)).days if text else 0


class Rate:
    """At most `n` in any `span_s`: a burst of a tenth, then evenly spaced (GCRA)."""

    __slots__ = ("_at", "_burst", "interval_s", "n")

    def __init__(self, n: int, span_s: float, at: float = 0.0) -> None:
        self.n = n
        self._burst = max(1, n // 10)
        self.interval_s = span_s / (n - self._burst + 1) + _ROUNDING_S
        self._at = at

    @property
    def at(self) -> float:
        return self._at

    def free_at(self) -> float:
        return self._at - (self._burst - 1) * self.interval_s

    def take(self, now: float) -> None:
        self._at = max(self._at, now) + self.interval_s

    def move(self, by_s: float) -> None:
        """The clock was changed."""
        self._at += by_s


class Pace:
    """The state of one site or one set of hosts."""

    def __init__(self, limits: Limits, rules: Rules, *, warms_up: bool = False) -> None:
        self.limits = limits
        self._rules = rules
        self._warms_up = warms_up
        self.active = 0
        self.connections = min(_FIRST_CONNECTIONS, limits.connections)
        self._slow_start = True
        self._round = 0  # attempts begun in an earlier one can't cut the connections again
        self._failures = 0.0
        self.deaths = 0
        self.paused_until = 0.0
        self.reason = ""
        self._slowed = 0
        self._slowed_at = 0.0  # when the last slow-down's pause ends
        self._minute = Rate(limits.per_minute, 60.0) if limits.per_minute else None
        self._hour = Rate(limits.per_hour, 3600.0) if limits.per_hour else None
        self._learned: Rate | None = None
        self._learned_goal = 0  # what was too much
        self._held_until = 0.0  # until then the learned rate stays below it
        self._counted = (0, 0, 0)  # the current minute, messages in it, messages in the one before
        self.day = 0
        self.sent_today = 0
        self._postponed_until = 0.0
        self._now = 0.0  # when it was asked last

    # -- may one start? ---------------------------------------------------------------------------------------------

    def free_at(self, now: float) -> float:
        """When the next attempt may start: not after `now` = now, FOREVER = when one of those that run has ended."""
        if now < self._now - _SET_BACK_S:
            self._move(now - self._now)
        self._now = now
        if self.paused_until > now:
            return self.paused_until
        at = 0.0
        for rate in (self._minute, self._hour, self._learned):
            if rate is not None:
                at = max(at, rate.free_at())
        if self._warms_up:
            ceiling = self._rules.ceiling(now)
            if ceiling and self._today(now) >= ceiling:
                at = max(at, (now // _DAY_S + 1) * _DAY_S)
        if at <= now and self.active >= int(self.connections):
            return FOREVER
        return at

    def _move(self, by_s: float) -> None:
        """The clock was set back: what was a minute ahead is a minute ahead still."""
        for rate in (self._minute, self._hour, self._learned):
            if rate is not None:
                rate.move(by_s)
        self.paused_until = max(0.0, self.paused_until + by_s)
        self._slowed_at = max(0.0, self._slowed_at + by_s)
        self._held_until = max(0.0, self._held_until + by_s)
        self._postponed_until = max(0.0, self._postponed_until + by_s)

    def why(self, now: float) -> str:
        """Why nothing may start before `free_at`."""
        if self.paused_until > now:
            return self.reason
        if self._warms_up and 0 < self._rules.ceiling(now) <= self._today(now):
            return f"warm-up: {self._rules.ceiling(now)} messages a day by now"
        return "as many messages as the limits allow"

    def postponed_until(self, now: float) -> float:
        """The time for a message that can't be sent for a long while: one after the other, as the rates allow."""
        free_at = max(self.free_at(now), now)
        at = max(free_at, self._postponed_until)
        if self._learned is not None and at > free_at + _SPREAD_S:
            at = free_at
        step = max((r.interval_s for r in (self._minute, self._hour, self._learned) if r is not None), default=0.0)
        self._postponed_until = at + step
        return at

    def _today(self, now: float) -> int:
        day = int(now // _DAY_S)
        if day != self.day:
            self.day, self.sent_today = day, 0
        return self.sent_today

    # -- attempts ---------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> int:
        """An attempt starts; the number is for its end."""
        self.active += 1
        for rate in (self._minute, self._hour, self._learned):
            if rate is not None:
                rate.take(now)
        minute = int(now // 60)
        at, count, before = self._counted
        if minute != at:
            self._next_minute(minute, count if minute == at + 1 else 0, now)
        else:
            self._counted = (at, count + 1, before)
        self.sent_today = self._today(now) + 1
        return self._round

    def _next_minute(self, minute: int, before: int, now: float) -> None:
        self._counted = (minute, 1, before)
        if self._learned is not None and now > self._slowed_at:
            grown = max(self._learned.n + 1, int(self._learned.n * _LEARNED_GROWTH))
            if now < self._held_until:
                grown = max(self._learned.n, min(grown, int(self._learned_goal * _LEARNED_BELOW)))
            is_of_use = now < self._held_until or grown < self._learned_goal * 2
            self._learned = Rate(grown, 60.0, self._learned.at) if is_of_use else None

    def end(self, now: float, began: int, strain: Strain | None, *, accepted: bool) -> Change | None:
        """An attempt has ended. `accepted`: the remote took the message, or some of its recipients."""
        self.active -= 1
        if strain is None:
            return self._answered(accepted=accepted)
        if strain.kind is Kind.SLOW:
            return self._slow_down(now, strain)
        return self._down(now, began, strain)

    def _answered(self, *, accepted: bool) -> Change | None:
        change = Change.ALIVE if self.deaths else None
        self.deaths = 0
        self._failures = 0.0
        if accepted:
            self.connections = min(
                float(self.limits.connections),
                self.connections + (1.0 if self._slow_start else 1.0 / self.connections),
            )
        return change

    def _down(self, now: float, began: int, strain: Strain) -> Change | None:
        if self.paused_until > now:
            return None  # one of those that ran when it was found dead
        # after a death the one message that finds out is enough
        self._failures += 1.0 if self.deaths else 1.0 / max(2.0, self.connections)
        self._cut(began)
        if self._failures < 1.0:
            return None
        self.deaths += 1
        self._failures = 0.0
        self.connections = 1.0
        self._slow_start = True
        wait_s = min(self._rules.dead_first_s * 2.0 ** min(self.deaths - 1, 30), self._rules.dead_max_s)
        self._pause(now, wait_s, strain.reason)
        return Change.DEAD

    def _cut(self, began: int) -> None:
        if began == self._round:
            self.connections = max(1.0, self.connections / 2.0)
            self._slow_start = False
            self._round += 1

    def _slow_down(self, now: float, strain: Strain) -> Change | None:
        if now < self._slowed_at:
            return None  # said to one of those that ran when we slowed down already
        if now - self._slowed_at > _SLOW_AGAIN_S:
            self._slowed = 0
        wait_s = min(strain.pause_s * 2.0 ** min(self._slowed, 30), _SLOW_MAX_S)
        self._slowed += 1
        recent = self._in_last_minute(now)
        about_rate = now - self._slowed_at > _IN_PEACE_S and (self._learned is None or recent * 2 >= self._learned.n)
        self._slowed_at = now + wait_s
        self._round += 1
        self._slow_start = False
        self.connections = 1.0
        if self._learned is None:
            self._learned_goal = max(recent, 2)
        elif about_rate:
            self._learned_goal = max(min(recent, self._learned.n), 2)
        if about_rate and self._slowed > 1:
            self._held_until = self._slowed_at + min(wait_s * _HOLD_PAUSES, _SLOW_AGAIN_S)
        self._learned = Rate(
            max(1, (self._learned.n if self._learned else self._learned_goal) // 2), 60.0, now + wait_s
        )
        self._pause(now, wait_s, strain.reason)
        return Change.SLOWED

    def _in_last_minute(self, now: float) -> int:
        """Messages begun, about."""
        minute, count, before = self._counted
        gone = min(1.0, max(0.0, now / 60 - minute))
        return max(count, before, int(count + before * (1.0 - gone)))

    def _pause(self, now: float, wait_s: float, reason: str) -> None:
        self.paused_until = max(self.paused_until, now + wait_s)
        self.reason = reason

    def forgive(self) -> None:
        """An administrator wants it tried now: no pause, no rate but the set ones, one connection to find out."""
        if self.paused_until:
            self.connections = 1.0
        self.paused_until = self._slowed_at = self._held_until = 0.0
        self._learned = None
        self._postponed_until = 0.0

    # -- over a restart ---------------------------------------------------------------------------------------------

    def is_plain(self, now: float) -> bool:
        """Whether a new one would behave the same, or nearly: what is known of trouble a day ago is of no use."""
        trouble_until = self.paused_until
        if self.deaths or self._learned is not None:
            trouble_until = max(trouble_until, self._slowed_at) + _DAY_S
        quiet = self.active == 0 and trouble_until <= now
        rates = any(r is not None and r.at > now for r in (self._minute, self._hour))
        return quiet and not rates and not (self._warms_up and self._today(now))

    def saved(self) -> dict[str, object]:
        """What has to survive a restart."""
        return {
            "paused_until": self.paused_until, "reason": self.reason, "deaths": self.deaths,
            "slowed": self._slowed, "slowed_at": self._slowed_at, "held_until": self._held_until,
            "minute": self._minute.at if self._minute else 0.0, "hour": self._hour.at if self._hour else 0.0,
            "learned": self._learned.n if self._learned else 0, "learned_goal": self._learned_goal,
            "day": self.day, "sent_today": self.sent_today,
        }  # fmt: skip

    def restore(self, saved: Mapping[str, object], now: float) -> None:
        """Take over what `saved` wrote. What is missing or of another type is left as it is; nothing lies further
        ahead than a day, whatever the clock did."""

        def time_of(key: str) -> float:
            at = saved.get(key)
            return float(at) if isinstance(at, int | float) and 0 <= at <= now + _DAY_S else 0.0

        def count_of(key: str) -> int:
            count = saved.get(key)
            return count if isinstance(count, int) and 0 <= count <= _MAX_COUNT else 0

        self.paused_until = time_of("paused_until")
        reason = saved.get("reason", "")
        self.reason = reason if isinstance(reason, str) else ""
        self.deaths = count_of("deaths")
        self._slowed = count_of("slowed")
        self._slowed_at = time_of("slowed_at")
        self._held_until = time_of("held_until")
        for rate, key in ((self._minute, "minute"), (self._hour, "hour")):
            if rate is not None:
                rate.take(time_of(key) - rate.interval_s)
        if learned := count_of("learned"):
            self._learned = Rate(learned, 60.0)
            self._learned_goal = max(learned + 1, count_of("learned_goal"))
        self.day = count_of("day")
        self.sent_today = count_of("sent_today")
        if self.paused_until or self._slowed:
            self.connections, self._slow_start = 1.0, False
