"""Counters, gauges and histograms, added up over processes and written down for Prometheus."""

from __future__ import annotations

import ast
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.wait import wait_until

from pymx import metrics
from pymx.metrics import Numbers
from pymx.metrics.exposition import added_up, text
from pymx.metrics.lines import count_line
from pymx.metrics.names import METRICS, find
from pymx.metrics.pulse import Pulse
from pymx.metrics.shared import LATE_S, Share, read_all, total

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "pymx"


@pytest.fixture(autouse=True)
def own_numbers() -> Iterator[None]:
    """Nothing counted before the test, nothing left behind it."""
    stores = (metrics._counts, metrics._gauges, metrics._histograms)
    before = [dict(store) for store in stores]
    for store in stores:
        store.clear()
    yield
    for store, was in zip(stores, before, strict=True):
        store.clear()
        store.update(was)  # type: ignore[arg-type]


def test_series_are_counted_by_their_labels() -> None:
    metrics.add("logins")
    metrics.add("logins", 2)
    metrics.add("messages_checked", verdict="junk")
    metrics.add("messages_checked", verdict='a"b\\c\nd')
    assert metrics.snapshot().counters == {
        "logins": 3,
        'messages_checked{verdict="junk"}': 1,
        'messages_checked{verdict="a\\"b\\\\c\\nd"}': 1,
    }


def test_histogram_is_cumulative_on_the_page() -> None:
    """Prometheus: each bucket counts all values up to its bound."""
    for seconds in (0.0004, 0.003, 0.004, 99):
        metrics.observe("message_accept_seconds", seconds)
    page = text(metrics.snapshot())
    assert 'pymx_message_accept_seconds_bucket{le="0.001"} 1\n' in page
    assert 'pymx_message_accept_seconds_bucket{le="0.005"} 3\n' in page
    assert 'pymx_message_accept_seconds_bucket{le="10"} 3\n' in page
    assert 'pymx_message_accept_seconds_bucket{le="+Inf"} 4\n' in page
    assert "pymx_message_accept_seconds_sum 99.0074\npymx_message_accept_seconds_count 4\n" in page


def test_bound_of_a_bucket_belongs_to_it() -> None:
    """le means less or equal."""
    metrics.observe("message_accept_seconds", 0.001)
    assert 'le="0.001"} 1' in text(metrics.snapshot())


def test_gauges_are_asked_when_somebody_looks() -> None:
    values = {(("listener", "smtp"),): 1.0}
    metrics.gauge("sessions", lambda: values)
    metrics.gauge("queue_messages", lambda: 7)
    values[("listener", "imap"),] = 2
    assert metrics.snapshot().gauges == {
        'sessions{listener="smtp"}': 1, 'sessions{listener="imap"}': 2, "queue_messages": 7,
    }  # fmt: skip
    metrics.forget_gauge("sessions")
    assert metrics.snapshot().gauges == {"queue_messages": 7}


def test_processes_are_added_up() -> None:
    one = Numbers({"logins": 1}, {"sessions": 2}, {"delivery_seconds": [1, 2, 3]})
    two = Numbers({"logins": 5, "smtp_messages": 1}, {"sessions": 3}, {"delivery_seconds": [1, 1, 1]})
    both = added_up([one, two])
    assert both.counters == {"logins": 6, "smtp_messages": 1}
    assert both.gauges == {"sessions": 5}
    assert both.histograms == {"delivery_seconds": [2, 3, 4]}
    assert one.histograms == {"delivery_seconds": [1, 2, 3]}


def test_lines_of_the_log_are_counted() -> None:
    """One source for the log, the event store and the numbers."""
    count_line(logging.INFO, "mta", "message_accepted", {"listener": "smtp", "size_octets": 10, "duration_ms": 3.5})
    count_line(logging.WARNING, "queue", "delivery_attempt", {"verdict": "deferred", "duration_ms": 900})
    count_line(logging.ERROR, "queue", "queue_unavailable", {})
    count_line(logging.INFO, "imapd", "imap_session", {})
    counters = metrics.snapshot().counters
    assert counters == {
        'messages_accepted{listener="smtp"}': 1,
        "message_octets_accepted": 10,
        'deliveries{provider="other",result="deferred"}': 1,
        'log_lines{level="warning"}': 1,
        'log_lines{level="error"}': 1,
    }


def test_successor_counts_on(tmp_path: Path) -> None:
    """A worker that died does not take its counts along: no counter falls while the server runs."""
    metrics.add("logins", 5)
    metrics.observe("message_accept_seconds", 1)
    first = Share(tmp_path, "session-1", "run")
    first.write(first.current())
    metrics._counts.clear()
    metrics._histograms.clear()
    Share(tmp_path, "session-1", "run").take_over()
    metrics.add("logins", 1)
    assert metrics.snapshot().counters["logins"] == 6
    assert metrics.snapshot().histograms["message_accept_seconds"][-1] == 1


def test_earlier_run_is_not_counted(tmp_path: Path) -> None:
    """Another supervisor, perhaps with more workers: neither taken over nor added up."""
    metrics.add("logins", 5)
    for process in ("session-1", "session-2"):
        old = Share(tmp_path, process, "old run")
        old.write(old.current())
    metrics._counts.clear()
    new = Share(tmp_path, "session-1", "new run")
    new.take_over()
    assert metrics.snapshot().counters == {}
    new.write(new.current())
    assert [s.process for s in read_all(tmp_path)] == ["session-1"]


def test_process_not_heard_of_keeps_its_counts_and_loses_its_gauges(tmp_path: Path) -> None:
    """Its sessions are gone or hang; what it did is done."""
    metrics.add("logins", 5)
    metrics.gauge("sessions", lambda: 3)
    share = Share(tmp_path, "session-1", "run")
    share.write(share.current())
    numbers = total(read_all(tmp_path), time.time() + LATE_S + 1)
    assert numbers.counters == {"logins": 5}
    assert numbers.gauges == {'up{process="session-1"}': 0}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}', "null"])
def test_unreadable_file_is_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.session-1").write_text(content)
    assert read_all(tmp_path) == []


async def test_pulse_beats_and_shares(tmp_path: Path) -> None:
    """The supervisor hears of a turning loop, the others see the numbers, and what is measured is in them."""
    beats: list[float] = []
    measured: list[int] = []
    pulse = Pulse(
        Share(tmp_path, "runner", "run"), lambda: beats.append(time.monotonic()), [lambda: measured.append(1)]
    )
    pulse.start()
    await wait_until(lambda: len(beats) >= 2 and read_all(tmp_path), what="two beats")
    await pulse.close()
    (snapshot,) = read_all(tmp_path)
    assert snapshot.pid == os.getpid()
    assert measured
    assert snapshot.numbers.gauges['memory_octets{process="runner"}'] > 1_000_000
    assert snapshot.numbers.counters["cpu_seconds"] > 0


async def test_heart_beats_while_a_measure_is_stuck(tmp_path: Path) -> None:
    """A locked database or a dead disk is no reason to be killed for hanging."""
    beats: list[float] = []
    go_on = threading.Event()
    pulse = Pulse(
        Share(tmp_path, "runner", "run"), lambda: beats.append(time.monotonic()), [lambda: go_on.wait(60) and None]
    )
    pulse.start()
    await wait_until(lambda: len(beats) >= 3 and read_all(tmp_path), what="three beats, and shared numbers")
    go_on.set()
    await pulse.close()


def counted(package: Path) -> set[str]:
    """The names that the code counts under; of a name with a value in it, what is constant, and `*`."""
    names = set()
    for file in package.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            function = ast.unparse(call.func)
            own = file.parent.name == "metrics" and function in ("add", "observe")
            if not own and function not in ("metrics.add", "metrics.observe", "metrics.gauge"):
                continue
            name = call.args[0]
            if isinstance(name, ast.Constant):
                names.add(str(name.value))
            elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                names.add(f"{name.values[0].value}*")
    return names


def mentioned(package: Path) -> set[str]:
    """Every text constant of the code, but for the table of metrics itself: names may be passed on or chosen."""
    return {
        node.value
        for file in package.rglob("*.py")
        if file.name != "names.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_metric_is_described() -> None:
    """The page has a HELP line for each, and nothing is described that nobody counts."""
    names = counted(PACKAGE)
    assert {name for name in names if find(name.removesuffix("*") + "x" if "*" in name else name) is None} == set()
    used = names | mentioned(PACKAGE)
    unused = {name for name in METRICS if name not in used}
    assert {n for n in unused if not (n.endswith("*") and any(x.startswith(n[:-1]) for x in names))} == set()
