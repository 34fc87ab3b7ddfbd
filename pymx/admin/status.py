"""pymxctl status [--watch]: the running server on one screen: processes, sessions, rates, queue, bans, disks, trouble.

Everything comes from the runner, which knows what the other processes share; the last warnings and errors come from the
event store. On a terminal it is drawn by rich, else it is plain lines; `--json` has all numbers. Exit status 1 when
something is wrong with the server, so it fits into a script.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.control_client import ControlError
from pymx.admin.times import duration, local

if TYPE_CHECKING:
    from rich.console import RenderableType

_ERRORS = 8
_ERRORS_SINCE_S = 86400.0
_INTERVAL_S = 2.0
_EXPIRES_SOON_S = 14 * 86400.0
_DISK_LOW_OCTETS = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--watch", action="store_true", help="go on showing it, until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=float,
        default=_INTERVAL_S,
        metavar="S",
        help=f"seconds between looks (default {_INTERVAL_S:g})",
    )


class Section(NamedTuple):
    """A part of the screen: a title, and a table with or without a head."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def run(args: argparse.Namespace, context: Context) -> int:
    if args.watch and not context.json:
        return _watch(args.interval, context)
    facts = _ask(context)
    if context.json:
        context.out.details({**facts, "last_errors": _last_errors(context)})
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(_drawn(_screen(facts, _last_errors(context))))
    else:
        for section in _screen(facts, _last_errors(context)):
            print(f"{section.title}:")
            context.out.table(section.columns, section.rows)
            print()
    return Exit.FAILED if facts.get("problems") else Exit.OK


def _ask(context: Context) -> dict[str, Any]:
    facts = context.control.call("status")
    if not isinstance(facts, dict) or "processes" not in facts:
        raise CtlError(f"pymx answered {facts!r}; is it of another version than pymxctl?")
    return facts


def _watch(interval_s: float, context: Context) -> int:
    from rich.live import Live
    from rich.text import Text

    first = _ask(context)  # what does not run at all is said and not watched
    with Live(_drawn(_screen(first, _last_errors(context))), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(max(interval_s, 0.2))
            try:
                drawn: RenderableType = _drawn(_screen(_ask(context), _last_errors(context)))
            except (CtlError, ControlError) as e:  # it may be back at the next look
                drawn = Text(f"{time.strftime('%H:%M:%S')}  {e}")
            live.update(drawn, refresh=True)


def _last_errors(context: Context) -> list[dict[str, object]]:
    """The last warnings and errors but for what is only deferred, newest first; none when there is no store."""
    import logging

    from pymx.admin.wording import sentence
    from pymx.events.keeping import store_path
    from pymx.events.store import EventStore, StoreError

    store = EventStore(store_path(Path(context.config.data_dir)))
    try:
        store.open_to_read()
        found = store.containing([], since_s=time.time() - _ERRORS_SINCE_S, level=logging.WARNING, limit=_ERRORS * 50)
    except (StoreError, OSError):
        return []
    finally:
        store.close()
    return [
        {"at": event.at_s, "event": event.name, "queue_id": event.queue_id, "text": sentence(event)}
        for event in found
        if event.level >= logging.WARNING and event.text("verdict") != "deferred"  # the queue has those
    ][:_ERRORS]


# --- the screen


def _screen(facts: Mapping[str, Any], errors: Sequence[Mapping[str, object]]) -> list[Section]:
    sections = [
        Section(f"pymx {facts['version']}", ["What", "Value"], list(_overview(facts))),
        Section(
            "Processes",
            ["Process", "PID", "Up", "Sessions", "Memory", "CPU", "Lag"],
            [
                [
                    p["process"], str(p["pid"]), "not heard of" if p["late"] else duration(p["up_s"]),
                    str(int(p["sessions"])), _octets(p["memory_octets"]), duration(p["cpu_s"]),
                    f"{p['lag_s'] * 1000:.0f} ms",
                ]
                for p in facts["processes"]
            ],
        ),
        Section(
            "Per minute",
            ["What", "last minute", "last 15 min"],
            [[title, f"{r['1 min']:g}", f"{r['15 min']:g}"] for title, r in facts["rates"].items()],
        ),
        Section(
            "Last warnings and errors",
            ["Time", "Event", "ID", "What"],
            [[local(float(str(e["at"]))), str(e["event"]), str(e["queue_id"]), str(e["text"])[:160]] for e in errors],
        ),
    ]  # fmt: skip
    return [section for section in sections if section.rows]


def _overview(facts: Mapping[str, Any]) -> Iterable[list[str]]:
    gauges: dict[str, float] = facts["gauges"]
    yield ["state", "; ".join(facts["problems"]) or "all processes serve"]
    yield ["sessions", _labelled(gauges, "sessions") or "none"]
    if "queue_messages" in gauges:
        waiting = _labelled(gauges, "queue_deliveries", empty=False)
        oldest = f", oldest {duration(gauges.get('queue_oldest_seconds', 0))}" if gauges["queue_messages"] else ""
        yield ["queue", f"{int(gauges['queue_messages'])} messages{oldest}" + (f"; {waiting}" if waiting else "")]
    if "bans" in gauges:
        yield ["bans", str(int(gauges["bans"]))]
    for name, value in _by_label(gauges, "disk_free_octets"):
        yield [f"disk of {name}", f"{_octets(value)} free" + (" — LOW" if value < _DISK_LOW_OCTETS else "")]
    for name, said in facts.get("source_addresses", {}).items():
        yield [f"sends by {name}" if name != "ipv6" else "IPv6 out", str(said)]
    expires_s = gauges.get("certificate_expiry_seconds")
    if expires_s is not None:
        soon = " — SOON" if expires_s < _EXPIRES_SOON_S else ""
        yield ["certificate", f"expires in {duration(expires_s)}{soon}" if expires_s > 0 else "HAS EXPIRED"]
    if dropped := facts["counters"].get("events_dropped"):
        yield ["events dropped", str(int(dropped))]


def _by_label(gauges: Mapping[str, float], name: str) -> list[tuple[str, float]]:
    """`name{label="x"} 3` as ("x", 3)."""
    return [
        (key.partition('="')[2].removesuffix('"}'), value)
        for key, value in gauges.items()
        if key.startswith(name + "{")
    ]


def _labelled(gauges: Mapping[str, float], name: str, *, empty: bool = True) -> str:
    return ", ".join(f"{int(value)} {label}" for label, value in _by_label(gauges, name) if value or empty)


def _octets(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit != "GiB" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def _drawn(sections: Sequence[Section]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = []
    for section in sections:
        has_head = section.columns[0] != "What" or len(section.columns) > 2
        table = Table(
            box=box.SIMPLE_HEAD, title=section.title, title_justify="left", title_style="bold",
            show_header=has_head, header_style="bold", pad_edge=False,
        )  # fmt: skip
        for number, column in enumerate(section.columns):
            table.add_column(column, overflow="fold", no_wrap=number == 0)
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        drawn.append(table)
    return Group(*drawn)
