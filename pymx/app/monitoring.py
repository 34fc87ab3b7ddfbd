"""The heartbeat and the shared numbers of a process; in the runner also what shows those of all processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from pymx import __version__, metrics
from pymx.admin.vitals import Vitals
from pymx.metrics.pulse import Pulse
from pymx.metrics.shared import Share, Snapshot, total
from pymx.net.sessions import Sessions
from pymx.startup import Site
from pymx.web.status import StatusServer, ailments

_LISTENERS = ("smtp", "submission", "lmtp", "imap")


class Monitoring:
    """Started before the rooms, closed after them."""

    def __init__(self, site: Site, role: str, number: int, alive: Callable[[], None]) -> None:
        self._site = site
        # workers live and die with their supervisor; a single process is a run of its own
        run = os.getpid() if role == "all" else os.getppid()
        process = role if role != "session" else f"session-{number}"
        self._share = Share(site.runtime_dir, process, str(run))
        self._pulse = Pulse(self._share, alive)
        self._status: StatusServer | None = None
        self._vitals: Vitals | None = None

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        self._pulse.start()
        stack.push_async_callback(self._pulse.close)

    def show_sessions(self, sessions: Sessions) -> None:
        """Count them by listener."""
        none = dict.fromkeys(_LISTENERS, 0)
        metrics.gauge(
            "sessions", lambda: {(("listener", name),): n for name, n in (none | sessions.by_listener()).items()}
        )

    async def show_server(self, stack: contextlib.AsyncExitStack) -> None:
        """In the runner: measure what is everybody's, and listen at `[status] listen`."""
        self._vitals = Vitals(self._site.config, self._site.runtime_dir)
        self._pulse.measures.append(self._vitals.measure)
        self._status = StatusServer(self._site.sockets.get("status", ()), self._site.runtime_dir, self._share)
        await self._status.start()
        stack.push_async_callback(self._status.close)

    async def status(self) -> dict[str, object]:
        """For `pymxctl status`."""
        assert self._status is not None
        assert self._vitals is not None
        now = time.time()
        snapshots = await self._status.snapshots()
        numbers = total(snapshots, now)
        return {
            "version": __version__,
            "processes": [_facts(s, now) for s in snapshots],
            "problems": list(ailments(snapshots, now)),
            "gauges": numbers.gauges,
            "counters": numbers.counters,
            "rates": self._vitals.rates(),
        }


def _facts(snapshot: Snapshot, now: float) -> dict[str, object]:
    gauges = {name.partition("{process=")[0]: value for name, value in snapshot.numbers.gauges.items()}
    return {
        "process": snapshot.process,
        "pid": snapshot.pid,
        "up_s": round(now - snapshot.started_s),
        "late": snapshot.is_late(now),
        "memory_octets": gauges.get("memory_octets", 0),
        "cpu_s": round(snapshot.numbers.counters.get("cpu_seconds", 0), 1),
        "lag_s": round(gauges.get("event_loop_lag_seconds", 0), 3),
        "sessions": sum(n for name, n in gauges.items() if name.startswith("sessions{")),
    }
