"""The runner's end of the event store: takes the datagrams of all processes and writes them, in one commit a batch.

Works in a thread of its own. A store that can't be written (disk full) loses the batch, which is counted and logged at
most once a minute; a damaged one is moved aside and begun anew. Old events are forgotten by age and by size.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import msgspec

from pymx import log, metrics
from pymx.events.event import Row, pack, unpack
from pymx.events.store import EventStore, StoreDamaged, StoreError

GATHER_S = 0.3
_MAX_ROWS = 2000  # in one commit
_MAX_DATAGRAM = 262_144
_IDLE_S = 1.0
_TIDY_S = 60.0
_DAY_S = 86400

_log = log.get("events")


class Recorder:
    """`keep_days` and `max_octets` bound the store."""

    def __init__(self, store: EventStore, socket_path: Path, *, keep_days: int, max_octets: int) -> None:
        self._store = store
        self._path = socket_path
        self._keep_s = keep_days * _DAY_S
        self._max_octets = max_octets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._tidied = 0.0
        self._said = -_TIDY_S
        self._lost = 0

    def start(self) -> None:
        """Open the socket and begin. Raises OSError."""
        self._store.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(before)
        self._thread.start()

    def close(self) -> None:
        """Write what has arrived, and end."""
        self._stop.set()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waker:
            waker.setblocking(False)
            waker.sendto(pack([]), str(self._path))  # if it is full, the thread is awake anyway
        self._thread.join(10)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            self._open()
            while not self._stop.is_set():
                self._write(self._gather())
                if time.monotonic() - self._tidied >= _TIDY_S:
                    self._tidy()
            self._socket.setblocking(False)
            while rows := self._received():
                self._write(rows)
        finally:
            self._store.close()

    def _gather(self) -> list[Row]:
        """What arrives within a moment of the first."""
        self._socket.settimeout(_IDLE_S)
        rows = self._received()
        until = time.monotonic() + GATHER_S
        while rows and len(rows) < _MAX_ROWS and (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            more = self._received()
            if not more:
                break
            rows += more
        return rows

    def _received(self) -> list[Row]:
        try:
            return unpack(self._socket.recv(_MAX_DATAGRAM))
        except (TimeoutError, BlockingIOError):
            return []
        except msgspec.DecodeError as e:
            _log.warning("event_store_failed", reason=f"a datagram of another version: {e}")
            return []

    def _open(self) -> None:
        try:
            aside = self._store.open()
        except (StoreError, OSError) as e:
            self._complain(str(e))
            return
        if aside is not None:
            self._tell_damaged(aside)

    def _tell_damaged(self, aside: Path) -> None:
        _log.error("event_store_damaged", path=aside, reason="a new one is begun")

    def _write(self, rows: list[Row]) -> None:
        if not rows:
            return
        try:
            self._store.add(rows)
        except StoreError as e:
            self._lost += len(rows)
            metrics.add("events_dropped", len(rows))
            self._complain(str(e))
            self._mend(damaged=isinstance(e, StoreDamaged))

    def _mend(self, *, damaged: bool) -> None:
        """Whatever it was, perhaps it is better after opening the store again."""
        if not damaged:
            self._store.close()
            self._open()
            return
        try:
            self._tell_damaged(self._store.begin_anew())
        except (StoreError, OSError) as e:
            self._complain(str(e))

    def _complain(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._said >= _TIDY_S:
            self._said = now
            lost, self._lost = self._lost, 0
            _log.error("event_store_failed", path=self._store.path, count=lost, reason=reason)

    def _tidy(self) -> None:
        self._tidied = time.monotonic()
        try:
            self._store.forget(before_s=time.time() - self._keep_s, max_octets=self._max_octets)
        except StoreError as e:
            self._complain(str(e))
