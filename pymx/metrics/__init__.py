"""Counters, gauges and histograms of this process.

    add("smtp_messages")            add("messages_checked", verdict="junk")
    observe("delivery_seconds", 0.7, provider="google")
    gauge("sessions", lambda: {(("listener", "smtp"),): 12})

Plain dicts; the event loop and the rooms' threads add to them, and a lost increment under a race would only falsify a
statistic, so there is no lock. A series is named as Prometheus names it, `name{label="value"}`, so that those of
several processes are added up by name. Each name stands in `names.METRICS`. Read by `pymxctl status` and at /metrics.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pymx.metrics.names import METRICS

Labels = tuple[tuple[str, str], ...]
Source = Callable[[], float | Mapping[Labels, float]]

_counts: dict[str, float] = {}
_histograms: dict[str, list[float]] = {}  # one count per bucket, not cumulative, one beyond them, and the sum
_gauges: dict[str, Source] = {}


@dataclass(slots=True)
class Numbers:
    """All series of a process at one time."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)


def add(name: str, n: float = 1, **labels: str) -> None:
    key = series(name, tuple(labels.items())) if labels else name
    _counts[key] = _counts.get(key, 0) + n


def observe(name: str, value: float, **labels: str) -> None:
    """Count a value in the histogram of that name."""
    key = series(name, tuple(labels.items())) if labels else name
    bounds = METRICS[name].buckets
    histogram = _histograms.get(key)
    if histogram is None:
        histogram = _histograms[key] = [0] * (len(bounds) + 2)
    histogram[bisect_left(bounds, value)] += 1
    histogram[-1] += value


def gauge(name: str, source: Source) -> None:
    """Have `source` asked for the value, or for values by labels, whenever somebody looks."""
    _gauges[name] = source


def forget_gauge(name: str) -> None:
    _gauges.pop(name, None)


def series(name: str, labels: Labels) -> str:
    """`name{a="b",c="d"}`."""
    return name + "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}" if labels else name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def snapshot() -> Numbers:
    gauges: dict[str, float] = {}
    for name, source in _gauges.items():
        found = source()
        if isinstance(found, int | float):
            gauges[name] = found
        else:
            gauges.update((series(name, labels), value) for labels, value in found.items())
    return Numbers(dict(_counts), gauges, {key: list(values) for key, values in _histograms.items()})


def go_on_from(earlier: Numbers) -> None:
    """Count on from where a predecessor of this process was, so that no counter ever falls."""
    for key, value in earlier.counters.items():
        _counts[key] = _counts.get(key, 0) + value
    for key, values in earlier.histograms.items():
        mine = _histograms.get(key)
        if mine is None or len(mine) != len(values):
            _histograms[key] = list(values)
        else:
            _histograms[key] = [a + b for a, b in zip(mine, values, strict=True)]
