"""What the runner measures for everybody: queue, bans, disks, certificate, and how much happened lately."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from pymx import metrics
from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import FILE_NAME, LimitState, LimitStateError
from pymx.config.model import Config
from pymx.metrics import Labels
from pymx.metrics.exposition import added_up
from pymx.metrics.shared import read_all
from pymx.net.tls import certificate_files
from pymx.queue.browse import totals
from pymx.queue.state import State, StateDamaged

_EVERY_S = 4.0
_SHARE = 0.01  # of the time may be spent on measuring a long queue
_RATES_S = 900.0
# what `status` shows as rates: title → counters
RATES = {
    "received": ("mta_messages_accepted",),
    "stored": ("mda_messages_delivered",),
    "sent": ("queue_delivered",),
    "deferred": ("queue_deferred",),
    "refused": ("rcpt_refused", "message_refused", "mail_refused"),
    "wrong logins": ("logins_failed",),
}


class Vitals:
    """`measure` is blocking, and does nothing if it was called just before; the gauges give its last values."""

    def __init__(self, config: Config, runtime_dir: Path) -> None:
        self._config = config
        self._runtime_dir = runtime_dir
        self._next = 0.0
        self._values: dict[str, float | Mapping[Labels, float]] = {}
        self._history: deque[tuple[float, dict[str, float]]] = deque()

    def measure(self) -> None:
        began = time.monotonic()
        if began < self._next:
            return
        found: dict[str, float | Mapping[Labels, float]] = {"disk_free_octets": self._disks()}
        found |= self._queue()
        found |= self._bans()
        found |= self._certificate()
        for name in found.keys() - self._values.keys():
            metrics.gauge(name, lambda name=name: self._values[name])  # type: ignore[misc]  # bound now
        for name in self._values.keys() - found.keys():
            metrics.forget_gauge(name)
        self._values = found
        self._remember()
        took_s = time.monotonic() - began
        self._next = began + max(_EVERY_S, took_s / _SHARE)

    def rates(self) -> dict[str, dict[str, float]]:
        """By title: events per minute in the last minute and in the last quarter of an hour."""
        if len(self._history) < 2:
            return {}
        newest_at, newest = self._history[-1]
        return {
            title: {span: self._rate(title, seconds, newest_at, newest) for span, seconds in _SPANS} for title in RATES
        }

    def _rate(self, title: str, seconds: float, newest_at: float, newest: Mapping[str, float]) -> float:
        at, before = next((entry for entry in self._history if newest_at - entry[0] <= seconds), self._history[-2])
        minutes = (newest_at - at) / 60
        return round((newest[title] - before[title]) / minutes, 1) if minutes > 0 else 0.0

    def _remember(self) -> None:
        counters = added_up(s.numbers for s in read_all(self._runtime_dir)).counters
        now = time.monotonic()
        self._history.append((now, {t: sum(counters.get(n, 0) for n in names) for t, names in RATES.items()}))
        while now - self._history[0][0] > _RATES_S + _EVERY_S:
            self._history.popleft()

    def _disks(self) -> dict[Labels, float]:
        free: dict[Labels, float] = {}
        for name, path in (("data", self._config.data_dir), ("mail", self._config.mail.root)):
            try:
                found = os.statvfs(path)
            except OSError:
                continue
            free[(("path", name),)] = float(found.f_bavail * found.f_frsize)
        return free

    def _queue(self) -> dict[str, float | Mapping[Labels, float]]:
        state = State(Path(self._config.data_dir) / "queue" / "state.sqlite")
        try:
            state.open()
            found = totals(state)
        except (StateDamaged, OSError):
            return {}  # the queue says so itself
        finally:
            state.close()
        age_s = max(0.0, time.time() - found.oldest_s) if found.messages else 0.0
        deliveries: Mapping[Labels, float] = {
            (("state", name),): float(count) for name, count in found.deliveries.items()
        }
        return {"queue_messages": found.messages, "queue_oldest_seconds": age_s, "queue_deliveries": deliveries}

    def _bans(self) -> dict[str, float]:
        path = Path(self._config.data_dir) / FILE_NAME
        if not path.exists():
            return {}
        try:
            state = LimitState(path, Rules.of(self._config.limits))
            try:
                return {"bans": len(state.bans(time.time()))}
            finally:
                state.close()
        except LimitStateError:
            return {}

    def _certificate(self) -> dict[str, float]:
        """Of the one that expires first."""
        found = [expiry for path in certificate_files(self._config) if (expiry := certificate_expiry_s(path))]
        return {"certificate_expiry_seconds": min(found) - time.time()} if found else {}


_SPANS = (("1 min", 60.0), ("15 min", _RATES_S))


def certificate_expiry_s(path: Path) -> float | None:
    """Unix time after which the first certificate of the file is not valid any more; None if it can't be read."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return certificate.not_valid_after_utc.timestamp()
