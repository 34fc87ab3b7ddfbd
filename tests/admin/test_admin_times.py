"""Times that administrators type."""

from __future__ import annotations

import argparse
from datetime import datetime

import pytest

from pymx.admin.times import duration, parse_since

NOW = datetime(2026, 11, 24, 15, 0).timestamp()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("30m", NOW - 1800),
        ("2h", NOW - 7200),
        ("3d", NOW - 3 * 86400),
        ("1w", NOW - 7 * 86400),
        ("14:30", datetime(2026, 11, 24, 14, 30).timestamp()),
        ("9:05", datetime(2026, 11, 24, 9, 5).timestamp()),
        ("2026-11-20", datetime(2026, 11, 20).timestamp()),
        ("2026-11-20 14:30", datetime(2026, 11, 20, 14, 30).timestamp()),
        ("2026-11-20T14:30:00+00:00", 1795185000.0),
    ],
)
def test_time_is_understood(text: str, at: float) -> None:
    assert parse_since(text, now=NOW) == at


@pytest.mark.parametrize("text", ["", "yesterday", "25:00", "2x", "-1h"])
def test_other_text_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="2h"):
        parse_since(text, now=NOW)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (45, "45 s"), (600, "10 min"), (7300, "2 h 2 min"), (200_000, "2 d 7 h")],
)
def test_duration_reads_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said
