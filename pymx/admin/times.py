"""Times as an administrator types and reads them: `2h`, `3d`, `14:30`, `2026-11-24`, `2026-11-24 14:30`."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}
_AGO = re.compile(r"(\d+)([smhdw])")


def parse_since(text: str, *, now: float | None = None) -> float:
    """Unix time; local time where the text has no zone. Raises argparse.ArgumentTypeError."""
    now = time.time() if now is None else now
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text):
            text = f"{datetime.fromtimestamp(now):%Y-%m-%d} {text:0>5}"
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 30m, 2h, 3d, 14:30 or 2026-11-24 14:30") from None


def iso(unix_s: float) -> str:
    """For JSON: UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


def local(unix_s: float, *, milliseconds: bool = False) -> str:
    """For people: local time."""
    at = datetime.fromtimestamp(unix_s).astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}" + (f".{at.microsecond // 1000:03d}" if milliseconds else "")


def duration(seconds: float) -> str:
    """`0.2 s`, `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
