"""Dates of messages and of the store, both ways (RFC 5322 s. 3.3 and 4.3, RFC 3501 s. 9)."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.date import format_date, parse_date, parse_internaldate, unix_seconds

moments = st.integers(0, 253_402_214_400 - 86_400)
offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59)


def _at(year: int, month: int, day: int, hour: int, minute: int, second: int, offset: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=timezone(timedelta(minutes=offset)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fri, 21 Nov 1997 09:55:06 -0600", _at(1997, 11, 21, 9, 55, 6, -360)),
        ("21 Nov 97 09:55:06 GMT", _at(1997, 11, 21, 9, 55, 6)),
        ("Fri, 21 Nov 1997 09(comment):   55  :  06 -0600", _at(1997, 11, 21, 9, 55, 6, -360)),
        ("Thu,\r\n 13 Feb 1969 23:32 -0330 (Newfoundland Time)", _at(1969, 2, 13, 23, 32, 0, -210)),
        ("1 Jan 49 00:00 PST", _at(2049, 1, 1, 0, 0, 0, -480)),
        ("1 Jan 50 00:00 EDT", _at(1950, 1, 1, 0, 0, 0, -240)),
        ("1 Jan 103 00:00 Z", _at(2003, 1, 1, 0, 0, 0)),
        ("1 Jan 2003 00:00:60 A", _at(2003, 1, 1, 0, 0, 59)),
        ("1 Jan 2003 10:00:00 -0000", _at(2003, 1, 1, 10, 0, 0)),
        ("1 Jan 2003 10:00:00 Nonsense", _at(2003, 1, 1, 10, 0, 0)),
        ("1 Jan 2003 10:00:00 CEST", _at(2003, 1, 1, 10, 0, 0, 120)),
        ("1 Jan 2003 10:00:00+0100", _at(2003, 1, 1, 10, 0, 0, 60)),
        ("1 Jan 2003 10:00:00 +01:00", _at(2003, 1, 1, 10, 0, 0, 60)),
        ("wednesday, 1 january 2003", _at(2003, 1, 1, 0, 0, 0)),
        ("1-Jan-2003 10.11.12 UT", _at(2003, 1, 1, 10, 11, 12)),
        ("Mon Jan  5 10:00:00 2004", _at(2004, 1, 5, 10, 0, 0)),
        ("Mon Jan  5 10:00:00 CET 2004", _at(2004, 1, 5, 10, 0, 0)),
    ],
)
def test_dates_that_can_be_read(text: str, expected: datetime) -> None:
    found = parse_date(text)
    assert found == expected
    assert found is not None
    assert found.utcoffset() == expected.utcoffset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "32 Jan 2003 10:00",
        "30 Feb 2003",
        "1 Foo 2003",
        "1 Jan 2003 25:00",
        "1 Jan 0 00:00",
        "1 Jan 2003 1:2:3 +9959",
        "(",
        "1 Jan",
    ],
)
def test_dates_that_cannot_be_read(text: str) -> None:
    assert parse_date(text) is None


@pytest.mark.parametrize("pattern", [" ", "1 ", "(", "((", ")", "a", ":", "1 Jan ", "\\(", "٣"])
def test_a_hostile_date_is_read_at_once(pattern: str) -> None:
    started = time.process_time()
    parse_date(pattern * (1 << 20))
    parse_date("1 Jan 2003 10:00" + pattern * (1 << 20))
    assert time.process_time() - started < 0.2


@given(moments, offsets)
def test_a_written_date_reads_back(unix_s: int, offset: int) -> None:
    text = format_date(unix_s, offset)
    found = parse_date(text)
    assert found is not None
    assert unix_seconds(found) == unix_s
    assert found == parsedate_to_datetime(text).replace(tzinfo=found.tzinfo)


@given(
    st.text(max_size=60)
    | st.from_regex(r"[0-9]{1,2} [A-Z][a-z]{2} [0-9]{2,4} [0-9]{2}:[0-9]{2}(:[0-9]{2})? [+-][0-9]{4}")
)
def test_no_text_raises(text: str) -> None:
    found = parse_date(text)
    assert found is None or found.tzinfo is not None
    assert parse_internaldate(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False), offsets)
def test_any_moment_can_be_written(unix_s: float, offset: int) -> None:
    """RFC 5322 s. 3.3 has four digits for the year."""
    assert len(format_date(unix_s, offset)) == 31


@pytest.mark.parametrize(
    ("text", "unix_s"),
    [
        ("17-Jul-1996 02:44:25 -0700", 837_596_665),
        (" 1-Jan-1970 00:00:00 +0000", 0),
        ("01-Jan-1970 00:00:00 +0100", -3600),
        ("1-Jan-1970 00:00:01 +0000", 1),
        ("17-jul-1996 02:44:25 -0700", 837_596_665),
    ],
)
def test_internaldates(text: str, unix_s: int) -> None:
    """RFC 3501 s. 9: date-day-fixed; one digit without the space is accepted."""
    assert parse_internaldate(text) == unix_s


@pytest.mark.parametrize(
    "text",
    [
        "",
        "17-Jul-1996",
        "17-Jul-1996 02:44:25",
        "31-Feb-1996 02:44:25 +0000",
        "17-Jul-1996 02:44:99 +0000",
        "17-Jul-1996 02:44:25 +2400",
    ],
)
def test_what_is_no_internaldate(text: str) -> None:
    assert parse_internaldate(text) is None


def test_dates_as_the_standard_has_them() -> None:
    assert format_date(837_596_665, -420) == "Wed, 17 Jul 1996 02:44:25 -0700"
