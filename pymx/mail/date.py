"""Dates of messages (RFC 5322 s. 3.3 and 4.3), both ways, and of the store (INTERNALDATE, RFC 3501 s. 9), read.

Reading a Date field is tolerant: comments, obsolete zones, two-digit years, a missing day of week, zone or seconds.
What can't be read gives None, never an exception. A zone that says nothing (`-0000`, unknown letters) is UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from pymx.mail.mime import strip_comments

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH_NUMBER = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}

_DATE = re.compile(
    r"\s*+(?:[A-Za-z]++\s*+[,.]?\s*+)?([0-9]{1,2})[\s\-.]*+([A-Za-z]{3})[A-Za-z]*+[\s\-.]*+([0-9]{2,4})\b,?"
    r"(?:\s++([0-9]{1,2})\s*+[:.]\s*+([0-9]{1,2})(?:\s*+[:.]\s*+([0-9]{1,2})(?:\.[0-9]++)?)?)?"
    r"(?:\s*+([+\-][0-9]{4})|\s*+([+\-][0-9]{2}:[0-9]{2})|\s*+([A-Za-z]++))?"
)
# ctime's form, as some old programs write it: "Mon Jan  5 10:00:00 2004".
_CTIME = re.compile(
    r"\s*+[A-Za-z]{3}[, ]\s*+([A-Za-z]{3})\s++([0-9]{1,2})\s++([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?"
    r"(?:\s++[A-Z]{1,4})?\s++([0-9]{4})"
)
_INTERNALDATE = re.compile(
    r"([ 0-9]?[0-9])-([A-Za-z]{3})-([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+\-])([0-9]{2})([0-9]{2})"
)
# RFC 5322 s. 4.3: all other obsolete zones, single letters too, "SHOULD be considered equivalent to -0000".
_ZONES = {"edt": -240, "est": -300, "cdt": -300, "cst": -360, "mdt": -360, "mst": -420, "pdt": -420, "pst": -480}
# Not in the standard, but in mail.
_ZONES.update(
    {"bst": 60, "cet": 60, "met": 60, "mez": 60, "cest": 120, "mest": 120, "mesz": 120, "eet": 120, "jst": 540}
)
_MAX_CHARS = 200


def parse_date(text: str) -> datetime | None:
    """The moment a Date field names, with its zone; None when it can't be read."""
    text = text[:_MAX_CHARS]
    if "(" in text:
        text = strip_comments(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    match = _DATE.match(text)
    if match is None:
        ctime = _CTIME.match(text)
        if ctime is None:
            return None
        month, day, hour, minute, second, year = ctime.groups()
        return _moment(year, month, day, hour, minute, second, 0)
    day, month, year, hour, minute, second, numeric, colon, name = match.groups()
    if numeric or colon:
        sign, digits = (numeric or colon)[0], (numeric or colon)[1:].replace(":", "")
        offset = int(digits[:2]) * 60 + int(digits[2:])
        offset = -offset if sign == "-" else offset
    else:
        offset = _ZONES.get((name or "").lower(), 0)
    return _moment(year, month, day, hour, minute, second, offset)


def _moment(
    year: str, month: str, day: str, hour: str | None, minute: str | None, second: str | None, offset: int
) -> datetime | None:
    number = _MONTH_NUMBER.get(month.lower())
    if number is None or abs(offset) >= 24 * 60:
        return None
    full_year = int(year)
    # RFC 5322 s. 4.3: 00 to 49 are 2000 to 2049; 50 to 99, and any year of three digits, count from 1900.
    if len(year) == 2:
        full_year += 2000 if full_year < 50 else 1900
    elif len(year) == 3:
        full_year += 1900
    try:
        # A leap second is the last second of its minute here.
        return datetime(
            full_year,
            number,
            int(day),
            int(hour or 0),
            int(minute or 0),
            min(int(second or 0), 59) if int(second or 0) <= 60 else 60,
            tzinfo=timezone(timedelta(minutes=offset)) if offset else UTC,
        )
    except ValueError:
        return None


def format_date(unix_s: float, utc_offset_min: int = 0) -> str:
    """`Wed, 17 Jul 1996 02:44:25 -0700` (RFC 5322 s. 3.3)."""
    when, zone = _local(unix_s, utc_offset_min)
    return (
        f"{_DAYS[when.weekday()]}, {when.day:02} {_MONTHS[when.month - 1]} {when.year:04} "
        f"{when.hour:02}:{when.minute:02}:{when.second:02} {zone}"
    )


def parse_internaldate(text: str) -> int | None:
    """Unix seconds of an IMAP date-time without its quotes, or None."""
    match = _INTERNALDATE.fullmatch(text)
    if match is None:
        return None
    day, month, year, hour, minute, second, sign, zone_hour, zone_minute = match.groups()
    offset = int(zone_hour) * 60 + int(zone_minute)
    when = _moment(year, month, day, hour, minute, second, -offset if sign == "-" else offset)
    return None if when is None or int(second) > 60 else unix_seconds(when)


def unix_seconds(when: datetime) -> int:
    """Whole seconds since 1970, exact for any year (datetime.timestamp is a float)."""
    return (when - _EPOCH) // timedelta(seconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _local(unix_s: float, utc_offset_min: int) -> tuple[datetime, str]:
    """The wall clock of a zone, and the zone's text; moments outside the years 1 to 9999 are moved to their edge."""
    sign = "-" if utc_offset_min < 0 else "+"
    zone = f"{sign}{abs(utc_offset_min) // 60:02}{abs(utc_offset_min) % 60:02}"
    seconds = min(max(int(unix_s // 1), -62_135_510_400), 253_402_214_400)
    return _EPOCH + timedelta(seconds=seconds, minutes=utc_offset_min), zone
