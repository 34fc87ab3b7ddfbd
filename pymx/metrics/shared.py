"""What the processes of one server let each other know: a file for each in the runtime directory, written every few
seconds.

A process that is started in the place of a dead one counts on from its file, so that counters never fall while the
server runs. Files of an earlier run of the server are taken no notice of: `server` is the id of the run. A file that
was not written for `LATE_S` is of a process that hangs or is gone: its counters still count, its gauges don't.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pymx import metrics
from pymx.metrics import Numbers
from pymx.metrics.exposition import added_up

LATE_S = 20.0
_PREFIX = "metrics."


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`process` is role and number, such as session-1; times are Unix seconds."""

    process: str
    server: str
    pid: int
    started_s: float
    at_s: float
    numbers: Numbers

    def is_late(self, now: float) -> bool:
        return now - self.at_s > LATE_S


class Share:
    """This process's file."""

    def __init__(self, directory: Path, process: str, server: str) -> None:
        self._path = directory / f"{_PREFIX}{process}"
        self.process = process
        self._server = server
        self._started_s = time.time()

    def take_over(self) -> None:
        """Count on from where the predecessor in this place was."""
        found = _read(self._path)
        if found is not None and found.server == self._server:
            metrics.go_on_from(found.numbers)

    def current(self) -> Snapshot:
        return Snapshot(self.process, self._server, os.getpid(), self._started_s, time.time(), metrics.snapshot())

    def write(self, snapshot: Snapshot) -> None:
        """Blocking. Raises OSError."""
        part = self._path.with_name(self._path.name + ".new")
        part.write_text(json.dumps(asdict(snapshot)))
        part.rename(self._path)


def read_all(directory: Path) -> list[Snapshot]:
    """The latest of every process of the run that was heard of last. Blocking."""
    found = [s for path in directory.glob(_PREFIX + "*") if (s := _read(path)) is not None]
    if not found:
        return []
    server = max(found, key=lambda s: s.at_s).server
    return sorted((s for s in found if s.server == server), key=lambda s: s.process)


def total(snapshots: list[Snapshot], now: float) -> Numbers:
    """All processes together, and for each whether it is up."""
    numbers = added_up(
        Numbers(s.numbers.counters, {} if s.is_late(now) else s.numbers.gauges, s.numbers.histograms) for s in snapshots
    )
    for snapshot in snapshots:
        labels = (("process", snapshot.process),)
        numbers.gauges[metrics.series("up", labels)] = 0 if snapshot.is_late(now) else 1
    return numbers


def _read(path: Path) -> Snapshot | None:
    if path.name.endswith(".new"):
        return None
    try:
        document = json.loads(path.read_text())
        return Snapshot(**{**document, "numbers": Numbers(**document["numbers"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # of another version, or gone
