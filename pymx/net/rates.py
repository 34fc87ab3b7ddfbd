"""How often something may happen from one address: connections, messages, recipients.

Each process counts in memory, and gives what it counted to `exchange` once a second, which adds it to what the other
processes counted and answers with the sums (pymx.accounts.counters keeps them over restarts). So a limit holds for all
of them together, give or take a second.

A limit is for a sliding period: what was counted in the period before weighs as much as is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pymx.mail.peer import Networks, counted_network

_EXCHANGE_EVERY_S = 1.0
_MAX_NETWORKS = 50_000  # counted at the same time, per process; the oldest are forgotten

Change = tuple[str, str, int, int]  # kind, network, when the period began, how many


@dataclass(frozen=True, slots=True)
class Limit:
    """`count` in `period_s`; 0 is unlimited."""

    count: int
    period_s: int


class _Window:
    """What one network did in this period and in the one before."""

    __slots__ = ("before", "count", "since", "untold")

    def __init__(self, since: int) -> None:
        self.since = since
        self.before = 0
        self.count = 0
        self.untold = 0  # of count, what the other processes don't know yet


class Rates:
    """The counters of a process. `start` in the running loop when there are other processes, `close` at the end."""

    def __init__(
        self,
        limits: Mapping[str, Limit],
        trusted: Sequence[str] = (),
        *,
        exchange: Callable[[list[Change]], Awaitable[list[int]]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = dict(limits)
        self.trusted = Networks(trusted)
        self._exchange = exchange
        self._clock = clock
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_exchanging())

    async def close(self) -> None:
        """Tell the others the rest."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self.share()

    def allows(self, kind: str, peer_ip: str, count: int = 1) -> bool:
        """Count something that happens; False when it is too much (then it is not counted)."""
        limit = self.limits.get(kind)
        if limit is None or not limit.count or not peer_ip or peer_ip in self.trusted:
            return True
        now = self._clock()
        window = self._window((kind, counted_network(peer_ip)), limit.period_s, now)
        left = 1.0 - (now - window.since) / limit.period_s
        if window.before * left + window.count + count > limit.count:
            return False
        window.count += count
        window.untold += count
        return True

    def is_over(self, kind: str, peer_ip: str) -> bool:
        """Would one more be too much? Counts nothing."""
        limit = self.limits.get(kind)
        if limit is None or not limit.count or not peer_ip or peer_ip in self.trusted:
            return False
        key = (kind, counted_network(peer_ip))
        if key not in self._windows:
            return False
        now = self._clock()
        window = self._window(key, limit.period_s, now)
        return window.before * (1.0 - (now - window.since) / limit.period_s) + window.count + 1 > limit.count

    async def share(self) -> None:
        """Exchange what was counted since the last time."""
        if self._exchange is None:
            return
        told = [(key, window, window.since, window.untold) for key, window in self._windows.items() if window.untold]
        if not told:
            return
        for _, window, _, _ in told:
            window.untold = 0
        sums = await self._exchange([(*key, since, count) for key, _, since, count in told])
        for (_, window, since, _), total in zip(told, sums, strict=False):
            if window.since == since:
                window.count = total + window.untold

    async def _keep_exchanging(self) -> None:
        while True:
            await asyncio.sleep(_EXCHANGE_EVERY_S)
            await self.share()

    def _window(self, key: tuple[str, str], period_s: int, now: float) -> _Window:
        since = int(now // period_s) * period_s
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= _MAX_NETWORKS:
                self._windows.popitem(last=False)
            window = self._windows[key] = _Window(since)
        elif window.since != since:
            window.before = window.count if window.since == since - period_s else 0
            window.since, window.count, window.untold = since, 0, 0
        return window
