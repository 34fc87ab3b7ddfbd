"""What checkdmarc knows beyond our own checks: DNS lookups of an SPF record, and whether another domain takes reports.

It is a library of an extra (`pip install 'pymx[dnscheck]'`); without it these questions are just not asked. Its
sentences are passed on as notes: what costs mail is found by `records`.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymx.admin.health.finding import Finding, fail, info, warn
from pymx.config.model import Dns

_MAX_LOOKUPS = 10  # RFC 7208 s. 4.6.4
_NEARLY = 8


def installed() -> bool:
    return importlib.util.find_spec("checkdmarc") is not None


async def more(settings: Dns, domains: Sequence[str]) -> list[Finding]:
    """Findings about the domains' SPF and DMARC records."""
    if not installed() or not domains:
        return []
    return await asyncio.to_thread(lambda: [f for domain in domains for f in _of_domain(settings, domain)])


def _of_domain(settings: Dns, domain: str) -> Iterator[Finding]:
    from checkdmarc.dmarc import check_dmarc
    from checkdmarc.spf import check_spf
    from checkdmarc.utils import DNS_CACHE

    from pymx.resolver.blocking import blocking_resolver

    # it keeps answers for half an hour whatever their TTL: a second look would see what the first one saw
    DNS_CACHE.clear()
    resolver, timeout_s = blocking_resolver(settings), float(settings.timeout_s)
    yield from _spf(domain, check_spf(domain, resolver=resolver, timeout=timeout_s))
    yield from _dmarc(domain, check_dmarc(domain, resolver=resolver, timeout=timeout_s))


def _spf(domain: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    check, lookups = f"dns.spf-lookups:{domain}", found.get("dns_lookups") or 0
    if not found.get("valid"):
        return  # `records` says so
    if lookups > _MAX_LOOKUPS:
        yield fail(
            check,
            f"the SPF record of {domain} takes {lookups} DNS lookups, 10 are allowed",
            "take an include: out",
            "others stop counting there: SPF is in error, and our mail unproven",
        )
    elif lookups >= _NEARLY:
        yield warn(
            check,
            f"the SPF record of {domain} takes {lookups} of the 10 DNS lookups that are allowed",
            "take an include: out, before one of its owners adds to it",
            "above that SPF is in error, and all our mail unproven",
        )
    for warning in found.get("warnings") or ():
        yield info(f"dns.spf-note:{domain}:{warning[:40]}", f"the SPF record of {domain}: {warning}")


def _dmarc(domain: str, found: Mapping[str, Any]) -> Iterator[Finding]:
    if not found.get("record"):
        return
    if not found.get("valid"):
        reason = str(found.get("error") or "it is not valid")
        yield warn(
            f"dns.dmarc-note:{domain}",
            f"the DMARC record of {domain}: {reason}",
            "mend that tag of the record",
            "others may ignore the whole record, and let forged mail through",
        )
    for warning in found.get("warnings") or ():
        yield info(f"dns.dmarc-note:{domain}:{warning[:40]}", f"the DMARC record of {domain}: {warning}")
