"""INTERNALDATE and search dates (`date-time`, `date`, RFC 3501 s. 9) to and from Unix seconds, fast enough for rows.

INTERNALDATE is read by `pymx.mail.date`.
"""

from __future__ import annotations

import datetime
import re
from functools import lru_cache

from pymx.mail.date import parse_internaldate
from pymx.proto.imap.errors import Bad

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = {name.lower().encode(): number for number, name in enumerate(_MONTHS, 1)}
_DATE = re.compile(rb"(\d{1,2})-([A-Za-z]{3})-(\d{4})")
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_LAST_DAY = datetime.date.max.toordinal() - _EPOCH_DAY


@lru_cache(maxsize=4096)
def day(days: int) -> str:
    """The date so many days after the first of 1970, as INTERNALDATE has it."""
    date = datetime.date.fromordinal(_EPOCH_DAY + min(max(days, 1 - _EPOCH_DAY), _LAST_DAY))
    return f"{date.day:2d}-{_MONTHS[date.month - 1]}-{date.year:04d}"


def internaldate(unix_s: int) -> bytes:
    """`"24-Nov-2026 10:13:13 +0000"`, with its quotes."""
    days, seconds = divmod(unix_s, 86400)
    return b'"%b %02d:%02d:%02d +0000"' % (day(days).encode(), seconds // 3600, seconds // 60 % 60, seconds % 60)


def parse_date_time(text: bytes) -> int:
    """Unix seconds of a `date-time` without its quotes."""
    found = parse_internaldate(text.decode("ascii", "replace"))
    if found is None:
        raise Bad("Invalid date and time")
    return found


def parse_date(text: bytes) -> datetime.date:
    """A `date`, its quotes already taken off."""
    match = _DATE.fullmatch(text)
    number = _MONTH.get(match[2].lower()) if match else None
    if match is None or number is None:
        raise Bad("Invalid date")
    try:
        return datetime.date(int(match[3]), number, int(match[1]))
    except ValueError:
        raise Bad("Invalid date") from None
