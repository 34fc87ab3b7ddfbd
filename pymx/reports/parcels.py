"""From counted results to packed reports: which rows go into one, and what it is called.

A day's report about a domain is always the same, down to its id, so one that is sent twice because of a crash is known
to its reader. When a domain changed its policy during the day there is one report for each (RFC 7489 s. 7.2: a report
has one policy). Synchronous, a third of a second for the largest: call it in a thread.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from pymx.reports import aggregate, tlsrpt
from pymx.reports.aggregate import AggregateReport, Published, Row
from pymx.reports.message import Parcel
from pymx.reports.store import DAY_S, MAX_ROWS, Store
from pymx.reports.tlsrpt import Failure, Policy, TlsReport

_MAX_POLICIES = 5  # of a domain in one day


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who reports: the host, the organization's name, and the address for questions."""

    hostname: str
    organization: str
    contact: str


def dmarc_parcels(store: Store, submitter: Submitter, day: int, domain: str) -> list[Parcel]:
    """The reports about a domain's mail of a day; the rows that count most if there are too many."""
    groups: dict[str, list[Row]] = {}
    for published, row, count in store.dmarc_rows(day, domain, MAX_ROWS):
        groups.setdefault(published, []).append(replace(msgspec.json.decode(row, type=Row), count=count))
    parcels = []
    for published, rows in list(groups.items())[:_MAX_POLICIES]:
        report_id = _report_id("dmarc", submitter, day, domain, published)
        report = AggregateReport(
            organization=submitter.organization,
            email=submitter.contact,
            report_id=report_id,
            begin=day * DAY_S,
            end=(day + 1) * DAY_S - 1,
            published=msgspec.json.decode(published, type=Published),
            rows=tuple(rows),
        )
        parcels.append(_parcel(submitter, day, domain, report_id, aggregate.write(report)))
    return parcels


def tls_parcels(store: Store, submitter: Submitter, day: int, domain: str) -> list[Parcel]:
    """The report about the connections of a day to a domain's servers, as a list of one."""
    policies = tls_policies(store.tls_rows(day, domain, tlsrpt.MAX_FAILURES))
    if not policies:
        return []
    report_id = _report_id("tls", submitter, day, domain, "")
    report = TlsReport(
        organization=submitter.organization,
        contact=submitter.contact,
        report_id=report_id,
        begin=day * DAY_S,
        end=(day + 1) * DAY_S - 1,
        policies=tuple(policies),
    )
    return [_parcel(submitter, day, domain, report_id, tlsrpt.write(report))]


def tls_policies(rows: Sequence[tuple[str, str, int]]) -> list[Policy]:
    """(policy, failure, count) rows as the policies of a report."""
    successes: dict[str, int] = {}
    failures: dict[str, list[Failure]] = {}
    for policy, failure, count in rows:
        successes.setdefault(policy, 0)
        if failure:
            detail = msgspec.json.decode(failure, type=Failure)
            failures.setdefault(policy, []).append(replace(detail, count=count))
        else:
            successes[policy] += count
    found = []
    for policy, count in successes.items():
        failed = failures.get(policy, [])
        found.append(
            replace(
                msgspec.json.decode(policy, type=Policy),
                successes=count,
                failed=sum(failure.count for failure in failed),
                failures=tuple(failed),
            )
        )
    return found


def _parcel(submitter: Submitter, day: int, domain: str, report_id: str, document: bytes) -> Parcel:
    return Parcel(
        domain=domain,
        submitter=submitter.hostname,
        organization=submitter.organization,
        report_id=report_id,
        begin=day * DAY_S,
        end=(day + 1) * DAY_S - 1,
        payload=gzip.compress(document, 6, mtime=0),
    )


def _report_id(kind: str, submitter: Submitter, day: int, domain: str, policy: str) -> str:
    text = "\n".join((kind, submitter.hostname, str(day), domain, policy))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
