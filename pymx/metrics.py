"""Counters, kept per process: `add("smtp_messages_accepted")`. Read by `pymxctl status`.

Plain integers in one dict; the event loop and the rooms' threads add to them, and a lost increment under a race would
only falsify a statistic, so there is no lock.
"""

from __future__ import annotations

_counts: dict[str, int] = {}


def add(name: str, n: int = 1) -> None:
    _counts[name] = _counts.get(name, 0) + n


def snapshot() -> dict[str, int]:
    return dict(_counts)
