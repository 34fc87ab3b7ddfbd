"""A process's end of the event store: takes what is logged, and sends it to the recorder in the runner.

`take` is called by `pymx.log` with every line, from any thread; it appends to a queue in memory and returns. A thread
gathers for a quarter of a second, then sends what there is as datagrams. When the runner is away or slow the queue
fills; beyond its limit events are dropped, counted, and the count is logged (`events_dropped`) when there is room
again, so that it stands in the store too. Only a process that ends after the runner writes the store itself, once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from pymx import log, metrics
from pymx.events.event import Row, is_kept, pack, to_row
from pymx.events.store import EventStore, StoreError

SOCKET = "events.sock"
GATHER_S = 0.25
_MAX_WAITING = 10_000
_MAX_ROWS = 200
_MAX_OCTETS = 60_000  # of a datagram: far below what Linux takes
_SEND_S = 1.0

_log = log.get("events")
_Logged = tuple[float, int, str, str, Mapping[str, object]]


class Feed:
    """`socket_path` is the recorder's, `store` what it writes."""

    def __init__(self, socket_path: Path, store: EventStore, *, max_waiting: int = _MAX_WAITING) -> None:
        self._path = str(socket_path)
        self._store = store
        self._limit = max_waiting
        self._waiting: deque[_Logged] = deque()
        self._unsent: list[Row] = []
        self._dropped = 0
        self._due = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_S)

    def start(self) -> None:
        """Begin; once per process, after the fork."""
        self._thread.start()
        log.tap(self.take)

    def take(self, level: int, room: str, name: str, fields: Mapping[str, object]) -> None:
        """One line of the log. Never blocks."""
        if not is_kept(level, name, fields):
            return
        if len(self._waiting) >= self._limit:
            self._dropped += 1
            return
        self._waiting.append((time.time(), level, room, name, fields))
        if not self._due.is_set():
            self._due.set()

    def close(self) -> None:
        """Send what is left, or write it if nobody takes it any more."""
        log.untap(self.take)
        self._closing.set()
        self._due.set()
        self._thread.join(3 * _SEND_S)
        self._socket.close()

    def _run(self) -> None:
        while True:
            self._due.wait()
            ending = self._closing.wait(GATHER_S)
            self._due.clear()
            sent = self._send()
            if ending:
                if not sent:
                    self._write()
                return
            if not sent:
                self._due.set()  # again after a moment
            elif self._dropped:
                lost, self._dropped = self._dropped, 0
                metrics.add("events_dropped", lost)
                _log.warning("events_dropped", count=lost, reason="the runner did not take them in time")

    def _send(self) -> bool:
        """Everything that waits; False when the recorder does not take it now."""
        while self._unsent or self._waiting:
            if not self._unsent:
                self._unsent = self._next_rows()
            try:
                self._socket.sendto(pack(self._unsent), self._path)
            except OSError:
                return False  # no runner now, or one that can't keep up
            self._unsent = []
        return True

    def _next_rows(self) -> list[Row]:
        rows: list[Row] = []
        octets = 0
        while self._waiting and len(rows) < _MAX_ROWS and octets < _MAX_OCTETS:
            row = to_row(*self._waiting.popleft())
            if len(row[3]) > _MAX_OCTETS:
                self._dropped += 1
                continue
            rows.append(row)
            octets += len(row[3]) + 64
        return rows

    def _write(self) -> None:
        rows = self._unsent
        while self._waiting:
            rows += self._next_rows()
        with contextlib.suppress(StoreError, OSError):  # there is nobody left to tell
            self._store.open()
            self._store.add(rows)
            self._store.close()
