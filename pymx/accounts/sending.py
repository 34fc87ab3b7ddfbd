"""How much one account may send in 24 hours: messages, and addresses elsewhere that it never wrote to before.

A stolen password sends to thousands of strangers; a person writes to a few new ones a day. What was sent is counted by
the hour in `Counters`, so it outlives a restart and holds for all processes together. A message is counted when it is
about to be accepted; one that then fails counts all the same.

`SendingCapped` says what the account's user is to hear, and whether this is the moment to tell the administrator: true
for one process, once in 24 hours. When the counters can't be had, nothing is capped.
"""

from __future__ import annotations

from collections.abc import Sequence

from pymx.accounts.account import AccountsError
from pymx.accounts.counters import Counters, LimitsUnavailable
from pymx.accounts.limitstate import LimitState, Sent
from pymx.config.model import Limits

_HOUR_S = 3600
_DAY_S = 86_400


class SendingCapped(AccountsError):
    """The account has sent as much as it may. `for_good`: this message can't be sent whenever it is tried."""

    def __init__(self, text: str, *, for_good: bool, tell: bool) -> None:
        super().__init__(text)
        self.text = text
        self.for_good = for_good
        self.tell = tell


class Sending:
    """The caps of `[limits]`, for all accounts."""

    def __init__(self, settings: Limits, counters: Counters) -> None:
        self._counters = counters
        self.reload(settings)

    def reload(self, settings: Limits) -> None:
        """Go by these settings from now on."""
        self._max_messages = settings.account_messages_per_day
        self._max_new = settings.account_new_recipients_per_day

    async def check(self, account: str, recipients: Sequence[str] = ()) -> None:
        """May the account send one more message, to these addresses elsewhere? Raises SendingCapped."""
        if not self._max_messages and not self._max_new:
            return
        try:
            refusal = await self._counters.read(lambda state: self._refusal(state, account, recipients))
            if refusal is not None:
                text, for_good = refusal
                now = self._counters.clock()
                tell = await self._counters.write(lambda state: state.first_notice(account, "sending", now, _DAY_S))
                raise SendingCapped(text, for_good=for_good, tell=tell)
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)

    async def count(self, account: str, recipients: Sequence[str]) -> None:
        """Count a message that is about to be accepted, if it may be. Raises SendingCapped."""
        if not self._max_messages and not self._max_new:
            return
        now = self._counters.clock()

        def take(state: LimitState) -> bool:
            if self._refusal(state, account, recipients) is not None:
                return False
            state.add_sent(account, recipients, now)
            return True

        try:
            if not await self._counters.write(take):
                await self.check(account, recipients)
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)

    def _refusal(self, state: LimitState, account: str, recipients: Sequence[str]) -> tuple[str, bool] | None:
        now = self._counters.clock()
        sent = state.sent(account, now)
        if self._max_messages and sent.messages >= self._max_messages:
            return f"{sent.messages} messages sent within 24 hours, which is the limit; {_when(sent, now)}", False
        if not self._max_new or not recipients:
            return None
        new = len(state.unknown_of(account, recipients))
        if not new:
            return None
        if new > self._max_new:
            return f"{new} new recipients in one message; the limit is {self._max_new} in 24 hours", True
        if sent.new_recipients + new > self._max_new:
            return (
                f"{sent.new_recipients} new recipients written to within 24 hours, and {self._max_new} is the limit; "
                f"{_when(sent, now)}"
            ), False
        return None


def _when(sent: Sent, now: float) -> str:
    """When the first hour of what was sent is 24 hours old."""
    minutes = max(1, round(((sent.oldest_hour + 24) * _HOUR_S - now) / 60))
    return f"try again in {minutes} minutes" if minutes < 120 else f"try again in {round(minutes / 60)} hours"
