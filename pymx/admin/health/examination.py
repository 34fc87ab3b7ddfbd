"""All checks, together: what doctor and setup run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from pymx.admin.health import (
    blocklists,
    certificates,
    checkdmarc,
    clock,
    deliveries,
    machine,
    network,
    ports,
    records,
    resolving,
    services,
)
from pymx.admin.health.finding import Finding, Severity, worst
from pymx.admin.health.live import Site
from pymx.admin.health.subject import Subject
from pymx.admin.zone import Domain, Server, all_records
from pymx.config.model import Config
from pymx.resolver.resolver import Resolver

_Check = Callable[[Subject], Awaitable[list[Finding]]]


async def examine(subject: Subject, *, before_start: bool = False) -> list[Finding]:
    """Everything, or what matters before a server is started for the first time: the machine and its surroundings.

    Without a name server only what is here is looked at: the rest would be a list of the same failure.
    """
    checks: list[_Check] = [_collected(clock.check), _in_thread(machine.check), _in_thread(ports.check)]
    if not before_start:
        checks += [certificates.check, services.rspamd]
        checks += [_in_thread(check) for check in (services.check, deliveries.check, machine.limits)]
    found = await resolving.check(subject)
    if worst(found) < Severity.FAIL:
        checks += [_collected(network.outbound), _collected(network.hostname), _collected(blocklists.check), _dns]
    for findings in await asyncio.gather(*(check(subject) for check in checks)):
        found += findings
    return found


async def examine_dns(resolver: Resolver, config: Config, server: Server, domains: Sequence[Domain]) -> list[Finding]:
    """The live records, the worst first."""
    site = Site(resolver, server, tuple(domains), Path(config.data_dir) / "dkim")
    found = await records.check_records(site, all_records(server, domains))
    found += records.unsigned(server, domains)
    found += await checkdmarc.more(config.dns, [domain.name for domain in domains])
    return sorted(found, key=lambda finding: -finding.severity)


async def _dns(subject: Subject) -> list[Finding]:
    return await examine_dns(subject.resolver, subject.config, subject.server, subject.domains)


def _collected(check: Callable[[Subject], AsyncIterator[Finding]]) -> _Check:
    async def run(subject: Subject) -> list[Finding]:
        return [finding async for finding in check(subject)]

    return run


def _in_thread(check: Callable[[Subject], Iterator[Finding]]) -> _Check:
    async def run(subject: Subject) -> list[Finding]:
        return await asyncio.to_thread(lambda: list(check(subject)))

    return run
