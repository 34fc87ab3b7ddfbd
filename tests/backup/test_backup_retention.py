"""Which backups are kept (pymx.admin.backup_retention)."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from pymx.admin.backup_retention import NAME, kept, when


def nightly(days: int, *, last: str = "20260315T030000Z") -> list[str]:
    end = when(last)
    assert end is not None
    return [(end - datetime.timedelta(days=n)).strftime(NAME) for n in range(days)][::-1]


def test_last_of_each_day_week_and_month_is_kept() -> None:
    names = nightly(100)
    assert kept(names, daily=3, weekly=2, monthly=3) == [
        "20260131T030000Z", "20260228T030000Z", "20260308T030000Z", "20260313T030000Z", "20260314T030000Z",
        "20260315T030000Z",
    ]  # fmt: skip


def test_several_of_one_day_count_as_one() -> None:
    names = ["20260314T030000Z", "20260315T030000Z", "20260315T120000Z", "20260315T180000Z"]
    assert kept(names, daily=2, weekly=0, monthly=0) == ["20260314T030000Z", "20260315T180000Z"]


def test_foreign_names_are_not_touched() -> None:
    assert kept(["holiday pictures", "20260315T030000Z"], daily=0, weekly=0, monthly=0) == ["20260315T030000Z"]


@given(
    st.lists(st.datetimes(datetime.datetime(2020, 1, 1), datetime.datetime(2030, 1, 1)), max_size=60),
    st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip
def test_newest_is_always_kept_and_never_more_than_asked_for(
    times: list[datetime.datetime], daily: int, weekly: int, monthly: int
) -> None:
    names = sorted({at.strftime(NAME) for at in times})
    keep = kept(names, daily=daily, weekly=weekly, monthly=monthly)
    assert keep == sorted(keep)
    assert set(keep) <= set(names)
    assert len(keep) <= max(1, daily + weekly + monthly + 1)
    assert keep[-1:] == names[-1:]
    assert kept(keep, daily=daily, weekly=weekly, monthly=monthly) == keep
