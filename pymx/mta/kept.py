"""Connections that wait for the next message.

They are kept by hop, because what one hop demands (login, verified TLS) must hold for its messages, and counted by
site, because a provider counts connections whoever they are for: those that wait and those at work together are never
more than the site's limit. The oldest make room for new ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pymx.config.model import Outbound
from pymx.mta.client import Connection
from pymx.queue.place import Place


@dataclass(slots=True, eq=False)
class _Entry:
    key: str
    site: str
    connection: Connection
    timer: asyncio.TimerHandle | None = None


class Kept:
    """At most as many connections as there may be deliveries; a list does, it is short."""

    def __init__(self, outbound: Outbound) -> None:
        self._keep_s = outbound.keep_connection_s
        self._limit = outbound.max_deliveries
        self._waiting: list[_Entry] = []  # the oldest first
        self._at_work: Counter[str] = Counter()

    @contextmanager
    def work(self, place: Place) -> Iterator[None]:
        """Around an attempt, which has at most one connection open at a time."""
        self._at_work[place.site] += 1
        try:
            yield
        finally:
            self._at_work[place.site] -= 1
            if not self._at_work[place.site]:
                del self._at_work[place.site]

    def take(self, key: str) -> Connection | None:
        """One that is alive, or None."""
        for entry in [e for e in reversed(self._waiting) if e.key == key]:
            self._forget(entry)
            if entry.connection.usable:
                entry.connection.was_kept()
                return entry.connection
            entry.connection.abort()
        return None

    def distrust(self, key: str, silent: Connection) -> None:
        """That one was dead, and nobody had said so: those to the same address that are idle for longer are, too."""
        for entry in list(self._waiting):
            other = entry.connection
            if entry.key == key and other.host == silent.host and other.idle_since <= silent.idle_since:
                self._forget(entry)
                other.abort()

    def make_room(self, place: Place) -> None:
        """A new connection is about to be made: end the oldest that would be too many."""
        waiting = [e for e in self._waiting if e.site == place.site]
        for entry in waiting[: max(0, len(waiting) + self._at_work[place.site] - place.limits.connections)]:
            self._forget(entry)
            entry.connection.close()

    def give(self, key: str, place: Place, connection: Connection) -> None:
        """Keep it, if it may be used again."""
        if not connection.usable or connection.sent >= place.limits.messages_per_connection or not self._keep_s:
            connection.close()
            return
        self.make_room(place)
        entry = _Entry(key, place.site, connection)
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        entry.timer = loop.call_later(self._keep_s, self._expire, entry)
        self._waiting.append(entry)
        if len(self._waiting) > self._limit:
            self._expire(self._waiting[0])

    def _expire(self, entry: _Entry) -> None:
        self._forget(entry)
        entry.connection.close()

    def _forget(self, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        self._waiting.remove(entry)

    def close(self) -> list[Connection]:
        """Begin to hang up; those that are not gone yet."""
        closing = [entry.connection for entry in self._waiting]
        for entry in list(self._waiting):
            self._expire(entry)
        return closing
