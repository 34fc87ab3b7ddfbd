"""Who was told to come back later, so that nobody is told so for ever.

rspamd's action `greylist` comes again for each try unless its greylisting module, which needs Redis, takes it back. So
a retry of the same sender from the same network (/24, /64) to the same recipient counts as greylisting passed, once
`AFTER_S` have gone by. Kept in memory: at worst, with several processes or after a restart, a sender comes once more.
"""

from __future__ import annotations

from collections import OrderedDict

from pymx.checks.check import Facts
from pymx.mail.peer import wide_network

AFTER_S = 600.0  # twice as long as rspamd's own greylisting takes
_FORGET_S = 5 * 86400.0
_MAX_ENTRIES = 20_000

_Key = tuple[str, str, str]


class Retries:
    """First deferrals by network, sender and recipient. `now` is in seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._first: OrderedDict[_Key, float] = OrderedDict()

    def came_back(self, facts: Facts, now: float) -> bool:
        """Has this message been deferred long enough ago? If it never was, it is noted now."""
        key = _key(facts)
        since = self._first.get(key)
        if since is None or now - since > _FORGET_S:
            self._first[key] = now
            self._first.move_to_end(key)
            if len(self._first) > _MAX_ENTRIES:
                self._first.popitem(last=False)
            return False
        return now - since >= AFTER_S


def _key(facts: Facts) -> _Key:
    recipient = facts.recipients[0].address.key if facts.recipients else ""
    return wide_network(facts.origin.peer_ip), str(facts.mail_from or "").lower(), recipient
