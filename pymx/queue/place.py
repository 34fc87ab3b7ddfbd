"""Where a destination's mail really goes: which limits it shares with others, and what a try says about them. PURE.

Two names stand behind a destination. Its *site* is what limits and slow-downs are counted by: a provider of the table
in `mta.providers`, whose customers have thousands of domains, or else the set of the domain's mail servers. Its *hosts*
are those servers themselves: that the server of one customer is down says nothing about the provider.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one site may be asked for. Rates are messages; 0 = no limit."""

    connections: int
    messages_per_connection: int
    per_minute: int = 0
    per_hour: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A destination's site and hosts. `direct`: the servers there see our own address, so that a warm-up counts.

    `is_guess`: DNS could not be asked; it is asked again soon.
    """

    site: str
    hosts: str
    limits: Limits
    direct: bool = False
    is_guess: bool = False


class Kind(enum.Enum):
    DOWN = "down"  # no host could be talked to
    SLOW = "slow"  # they said that we send too much, or that they don't like our address


@dataclass(frozen=True, slots=True)
class Strain:
    """What an attempt says about its place, beyond its own recipients. `pause_s` is for SLOW, before any doubling."""

    kind: Kind
    reason: str
    pause_s: float = 0.0
