"""A circuit breaker: what has failed several times in a row is not waited for again and again.

After `failures` failures without a success between them `may_ask` says no, save to one every `pause_s` seconds, who
finds out whether it works again. A success closes the circuit. Messages that were asking already when it opened wait
as long as ever; those that come after it do not.
"""

from __future__ import annotations

FAILURES = 3
PAUSE_S = 5.0


class Breaker:
    """Counts failures in a row. `now` is in seconds of any monotonic clock."""

    def __init__(self, *, failures: int = FAILURES, pause_s: float = PAUSE_S) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._failed = 0
        self._next_try = 0.0

    @property
    def is_open(self) -> bool:
        return self._failed >= self._limit

    def may_ask(self, now: float) -> bool:
        """Ask, or answer at once that it is down? Who is told to ask says how it went."""
        if not self.is_open:
            return True
        if now < self._next_try:
            return False
        self._next_try = now + self._pause_s
        return True

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self, now: float) -> None:
        self._failed += 1
        # counted from the end of a try: one that hung must not be followed by the next at once
        self._next_try = now + self._pause_s
