"""Organizational domains: RFC 9989's walk up the tree, with the Public Suffix List beside it.

The walk (s. 4.10) asks for DMARC records at a domain and above it, at most eight names, and psd= in them says where an
organization begins. Hardly any domain publishes psd= yet, and those that don't were set up for the Public Suffix List
(RFC 7489 s. 3.2), so without a psd= the list decides.

Deviation: by RFC 9989 the topmost record on the way would decide then. Taking the list instead lets mail of a
subdomain with the only record be aligned with its parent, as before, and makes a record at a public suffix that forgot
psd=y harmless: it would align all its registrants with each other.

The list is the one in the publicsuffixlist package; nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from publicsuffixlist import PublicSuffixList

from pymx.mailauth.dmarc.record import Record, find_record
from pymx.mailauth.questions import Questions, texts
from pymx.resolver.answer import TemporaryDnsError

MAX_QUESTIONS = 8  # s. 4.10


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def load_suffixes() -> None:
    """Read the list now (40 ms, 4 MB), so that no message waits for it and forked processes share it."""
    _suffixes()


def registrable_domain(domain: str) -> str:
    """What was registered below a public suffix (private ones count too); the domain itself if it is a suffix."""
    return _suffixes().privatesuffix(domain) or domain


@dataclass(frozen=True, slots=True)
class Walk:
    """The records met on the way up from `start`, lowest first."""

    start: str
    records: dict[str, Record]

    @property
    def declared(self) -> str | None:
        """The organizational domain that a psd= declares (s. 4.10.2)."""
        for name, record in self.records.items():
            if record.psd == "n":
                return name
            if record.psd == "y" and name != self.start:
                labels = self.start.split(".")
                return ".".join(labels[-(name.count(".") + 2) :])
        return None

    @property
    def organization(self) -> str:
        return self.declared or registrable_domain(self.start)

    def inherited(self) -> tuple[str, Record] | None:
        """The record whose policy is for `start` when it has none of its own (s. 4.10.1), and its name."""
        organization = self.organization
        within = [name for name in self.records if name == organization or name.endswith("." + organization)]
        above = [name for name, record in self.records.items() if name not in within and record.psd == "y"]
        name = next(reversed(within), None) or next(iter(above), None)
        return (name, self.records[name]) if name else None


async def record_at(resolver: Questions, domain: str) -> Record | None:
    """The record published for `domain` itself. Raises TemporaryDnsError."""
    return find_record(await texts(resolver, f"_dmarc.{domain}"))


async def walk(resolver: Questions, start: str, own: Record | None) -> Walk:
    """Go up from `start`, whose own record is known, until a psd= or the top. Raises TemporaryDnsError."""
    records = {start: own} if own else {}
    if own and own.psd == "n":
        return Walk(start, records)
    registered = registrable_domain(start)
    for name in _above(start):
        try:
            record = await record_at(resolver, name)
        except TemporaryDnsError:
            if len(name) >= len(registered):
                raise
            # a registry whose servers fail says nothing about its registrants
            record = None
        if record:
            records[name] = record
            if record.psd in ("y", "n"):
                break
    return Walk(start, records)


def _above(domain: str) -> Iterator[str]:
    """The names to ask after `domain`: at most seven, from the longest to the top-level domain."""
    labels = domain.split(".")
    for count in range(min(len(labels) - 1, MAX_QUESTIONS - 1), 0, -1):
        yield ".".join(labels[-count:])


async def belongs_to(resolver: Questions, domain: str, author: Walk) -> bool:
    """Whether `domain` has the organizational domain of the author's domain (relaxed alignment, s. 4.10.2).

    Raises TemporaryDnsError.
    """
    organization = author.organization
    if domain == organization:
        return True
    if not domain.endswith("." + organization):
        return False
    if author.declared is None and registrable_domain(domain) != organization:
        return False
    # Only a psd= between the two could part them.
    for name in (domain, *_above(domain)):
        if name == organization:
            break
        record = author.records.get(name) or await record_at(resolver, name)
        if record and (record.psd == "n" or (record.psd == "y" and name != domain)):
            return False
    return True
