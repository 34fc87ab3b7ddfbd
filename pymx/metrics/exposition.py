"""The numbers of all processes as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pymx.metrics import Numbers
from pymx.metrics.names import METRICS, Metric, find

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "pymx_"
_UNKNOWN = Metric("counter", "no description")
_NEVER = {
    name: 0.0
    for name, metric in METRICS.items()
    if metric.kind == "counter" and not metric.labelled and not name.endswith("_*")
}


def added_up(processes: Iterable[Numbers]) -> Numbers:
    """One set of numbers: each series is the sum over the processes."""
    total = Numbers()
    for one in processes:
        for mine, theirs in ((total.counters, one.counters), (total.gauges, one.gauges)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value
        for key, values in one.histograms.items():
            known = total.histograms.get(key)
            same = known is not None and len(known) == len(values)
            total.histograms[key] = [a + b for a, b in zip(known or (), values, strict=True)] if same else list(values)
    return total


def text(numbers: Numbers) -> str:
    """All series, by name. What was never counted stands there with 0, so that an alarm can be set on it."""
    lines: list[str] = []
    for name, group in sorted(_by_name({**_NEVER, **numbers.counters}).items()):
        lines += _family(f"{_PREFIX}{name}_total", "counter", _describe(name), group)
    for name, group in sorted(_by_name(numbers.gauges).items()):
        lines += _family(_PREFIX + name, "gauge", _describe(name), group)
    histograms: dict[str, dict[str, list[float]]] = {}
    for key, values in numbers.histograms.items():
        name, labels = _split(key)
        histograms.setdefault(name, {})[labels] = values
    for name, by_labels in sorted(histograms.items()):
        lines += _histogram(name, by_labels)
    return "\n".join(lines) + "\n"


def _by_name(all_series: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for key, value in all_series.items():
        name, labels = _split(key)
        found.setdefault(name, {})[labels] = value
    return found


def _split(key: str) -> tuple[str, str]:
    """`a{b="c"}` → `a`, `b="c"`."""
    name, _, labels = key.partition("{")
    return name, labels.removesuffix("}")


def _describe(name: str) -> str:
    return (find(name) or _UNKNOWN).help


def _family(name: str, kind: str, description: str, group: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {description}"
    yield f"# TYPE {name} {kind}"
    for labels, value in sorted(group.items()):
        yield f"{name}{{{labels}}} {_number(value)}" if labels else f"{name} {_number(value)}"


def _histogram(name: str, by_labels: Mapping[str, list[float]]) -> Iterator[str]:
    full = _PREFIX + name
    yield f"# HELP {full} {_describe(name)}"
    yield f"# TYPE {full} histogram"
    bounds = (find(name) or _UNKNOWN).buckets
    for labels, values in sorted(by_labels.items()):
        if len(values) != len(bounds) + 2:
            continue  # of a predecessor of another version
        before = f"{labels}," if labels else ""
        count = 0.0
        for bound, inside in zip((*bounds, float("inf")), values, strict=False):
            count += inside
            yield f'{full}_bucket{{{before}le="{_number(bound)}"}} {_number(count)}'
        behind = f"{{{labels}}}" if labels else ""
        yield f"{full}_sum{behind} {_number(values[-1])}"
        yield f"{full}_count{behind} {_number(count)}"


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(round(value, 6))
