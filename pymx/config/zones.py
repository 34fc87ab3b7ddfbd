"""What `[checks] dnsbl` and `dnswl` say: ZONE, ZONE=WEIGHT or ZONE=ADDRESSES*WEIGHT, as in Postfix's postscreen.

ADDRESSES selects answers: an IPv4 address in which each octet is a number or a list of numbers and ranges in brackets,
as in `zen.spamhaus.org=127.0.0.[10..11]*2`. Without it every answer of the list counts. The weight is 1 if none is
given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

_SPEC = re.compile(r"(?P<zone>[A-Za-z0-9._-]+)(?:=(?:(?P<codes>[\d.\[\];]+)\*)?(?P<weight>\d{1,3}(?:\.\d{1,2})?))?\Z")
_OCTET = re.compile(r"\[([\d.;]+)\]|(\d+)")


class ZoneError(ValueError):
    """The text is not a zone with a weight."""


class Rule(Struct, frozen=True):
    """The weight of some answers of a zone; `codes` None means all answers."""

    zone: str
    weight: float
    codes: tuple[frozenset[int], ...] | None

    def matches(self, address: str) -> bool:
        if self.codes is None:
            return True
        return all(int(octet) in allowed for octet, allowed in zip(address.split("."), self.codes, strict=True))


def parse_zone(text: str) -> Rule:
    """One entry. Raises ZoneError."""
    match = _SPEC.match(text.strip())
    if not match:
        raise ZoneError("expected ZONE=WEIGHT or ZONE=127.0.0.[2..4;9]*WEIGHT")
    codes = _parse_codes(match["codes"]) if match["codes"] else None
    return Rule(match["zone"].strip(".").lower(), float(match["weight"] or 1), codes)


def _parse_codes(text: str) -> tuple[frozenset[int], ...]:
    octets: list[frozenset[int]] = []
    position = 0
    while position < len(text):
        if octets:
            if text[position] != ".":
                raise ZoneError(f"{text!r} is not a selection of addresses")
            position += 1
        match = _OCTET.match(text, position)
        if not match:
            raise ZoneError(f"{text!r} is not a selection of addresses")
        octets.append(_numbers(match[1] or match[2]))
        position = match.end()
    if len(octets) != 4:
        raise ZoneError(f"{text!r} has not four octets")
    return tuple(octets)


def _numbers(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(";"):
        low, dots, high = part.partition("..")
        if not low.isdigit() or (dots and not high.isdigit()) or len(low) > 3 or len(high) > 3:
            raise ZoneError(f"{text!r} is not a list of numbers and ranges")
        last = int(high or low)
        if last > 255 or int(low) > last:
            raise ZoneError(f"{text!r} has numbers outside 0 to 255, or a range backwards")
        found.update(range(int(low), last + 1))
    return frozenset(found)


def by_zone(specs: Sequence[str]) -> dict[str, list[Rule]]:
    """All entries, those of one zone together: it is asked once."""
    zones: dict[str, list[Rule]] = {}
    for rule in map(parse_zone, specs):
        zones.setdefault(rule.zone, []).append(rule)
    return zones
