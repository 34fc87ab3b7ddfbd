"""Numbers that follow from the lines of the log: what a line says once need not be counted in another place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pymx.metrics import add, observe

Line = Mapping[str, object]


def count_line(level: int, _room: str, event: str, fields: Line) -> None:
    """For `log.tap`."""
    if level >= logging.WARNING:
        add("log_lines", level="error" if level >= logging.ERROR else "warning")
    if (count := _COUNTED.get(event)) is not None:
        count(fields)


def _accepted(fields: Line) -> None:
    add("messages_accepted", listener=str(fields.get("listener", "")))
    add("message_octets_accepted", _number(fields, "size_octets"))
    observe("message_accept_seconds", _number(fields, "duration_ms") / 1000)


def _checked(fields: Line) -> None:
    add("messages_checked", verdict=str(fields.get("verdict", "")))
    observe("message_check_seconds", _number(fields, "duration_ms") / 1000)


def _attempted(fields: Line) -> None:
    provider = str(fields.get("provider") or "other")
    add("deliveries", provider=provider, result=str(fields.get("verdict", "")))
    observe("delivery_seconds", _number(fields, "duration_ms") / 1000, provider=provider)


def _number(fields: Line, name: str) -> float:
    value = fields.get(name)
    return value if isinstance(value, int | float) else 0


_COUNTED: dict[str, Callable[[Line], None]] = {
    "message_accepted": _accepted,
    "message_checked": _checked,
    "delivery_attempt": _attempted,
}
