"""What the reader of other people's reports hands over: a report in short, and whole; and what came of a message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Received:
    """A report of somebody else, in short. `good` and `bad` count messages that passed or failed DMARC, or TLS
    sessions; `proof` is what we found out about who sent it."""

    kind: str
    domain: str
    organization: str
    report_id: str
    begin_s: int
    end_s: int
    received_s: int
    proof: str
    good: int
    bad: int
    id: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A report: in short, and whole as JSON."""

    received: Received
    document: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in one file; `reason` says why nothing could be read."""

    name: str
    reports: tuple[Entry, ...] = ()
    reason: str = ""
