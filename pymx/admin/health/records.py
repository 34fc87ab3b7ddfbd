"""Live DNS against what it should be: `dns check`, record by record.

A record is not compared as text where several texts do the same. What can't be asked now is a warning and no
difference: name servers that fail say nothing about the zone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from pymx.admin.health import records_mail, records_tls
from pymx.admin.health.finding import Finding, fail, warn
from pymx.admin.health.live import Site, finding_id
from pymx.admin.zone import Domain, Record, Server
from pymx.resolver.answer import TemporaryDnsError


async def check_records(site: Site, records: Sequence[Record]) -> list[Finding]:
    """Every record once; at most a few findings for each."""
    jobs: list[Awaitable[list[Finding]]] = []
    by_kind: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        # records that are one set are compared as one
        by_kind.setdefault((record.kind, record.name), []).append(record)
    for (kind, _), group in by_kind.items():
        jobs.append(_guarded(_CHECKS[kind], site, group))
    return [finding for found in await asyncio.gather(*jobs) for finding in found]


_Check = Callable[[Site, list[Record]], AsyncIterator[Finding]]


async def _guarded(check: _Check, site: Site, group: list[Record]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found += [finding async for finding in check(site, group)]
    except TemporaryDnsError as e:
        found.append(
            warn(
                finding_id(group[0]),
                f"{e.name} {e.rdtype} can't be looked up: {e.reason}",
                "look whether the zone's name servers answer; run the check again later",
                "if others can't look it up either, mail is late or lost",
            )
        )
    return found


_CHECKS: dict[str, _Check] = {
    "mx": records_mail.mx,
    "a": records_mail.addresses,
    "ptr": records_mail.ptr,
    "spf": records_mail.spf,
    "spf-helo": records_mail.spf,
    "dkim": records_mail.dkim,
    "dmarc": records_mail.dmarc,
    "tlsrpt": records_tls.tlsrpt,
    "mta-sts": records_tls.mta_sts,
    "tlsa": records_tls.tlsa,
    "caa": records_tls.caa,
    "client": records_tls.client,
    "srv": records_tls.srv,
}


def unsigned(server: Server, domains: Sequence[Domain]) -> Iterator[Finding]:
    """Domains without a key; and nothing can be said about a server whose addresses nobody knows."""
    for domain in domains:
        if not any(key.state == "in use" for key in domain.keys):
            yield fail(
                f"dns.dkim:{domain.name}",
                f"mail from {domain.name} is not signed: it has no DKIM key",
                f"pymxctl dkim generate {domain.name}",
                "Google, Yahoo and Microsoft refuse unsigned mail or file it as junk",
            )
    if not server.receives:
        yield warn(
            f"dns.a:{server.hostname}",
            "the server's public addresses are not known: none of its own is one",
            "name them: --address ADDRESS (or [outbound] source_addresses)",
            "without them neither their records nor their names can be compared",
        )
