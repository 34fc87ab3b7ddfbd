"""Search criteria as data (RFC 3501 s. 6.4.4): no parser, no evaluator.

A criterion is one of the frozen classes below; `And`, `Or` and `Not` combine them. Texts are decoded `str`, dates are
`datetime.date`, sequence numbers are already resolved to UIDs by whoever has the view.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class All:
    """Every message."""


@dataclass(frozen=True, slots=True)
class Flags:
    """All bits of `bits` set (`want`) or none of them; `bits` as in pymx.mail.flags."""

    bits: int
    want: bool


@dataclass(frozen=True, slots=True)
class Keyword:
    """The keyword `name` (caseless) set or not."""

    name: str
    want: bool


@dataclass(frozen=True, slots=True)
class Recent:
    """\\Recent in this session, or not."""

    want: bool


@dataclass(frozen=True, slots=True)
class Uids:
    """UIDs within any of the inclusive ranges."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Octets:
    """RFC822.SIZE larger (or smaller) than `octets`."""

    larger: bool
    octets: int


@dataclass(frozen=True, slots=True)
class Date:
    """`which` is "internal", "sent" or "saved"; `op` is "before", "on" or "since"; without time zones (s. 6.4.4)."""

    which: str
    op: str
    day: datetime.date


@dataclass(frozen=True, slots=True)
class Arrived:
    """INTERNALDATE after `unix_s`, or (`younger` False) at or before it (RFC 5032)."""

    younger: bool
    unix_s: int


@dataclass(frozen=True, slots=True)
class Header:
    """A field `name` whose decoded value holds `text` (caseless); empty text: the field exists."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """`text` in the decoded body, or with `headers` in header or body (caseless substring)."""

    text: str
    headers: bool


@dataclass(frozen=True, slots=True)
class ModSeq:
    """Changed at or after `value` (RFC 7162 s. 3.1.5)."""

    value: int


@dataclass(frozen=True, slots=True)
class Not:
    criterion: Criterion


@dataclass(frozen=True, slots=True)
class And:
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Or:
    first: Criterion
    second: Criterion


Criterion = All | Flags | Keyword | Recent | Uids | Octets | Date | Arrived | Header | Text | ModSeq | Not | And | Or
