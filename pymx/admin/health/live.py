"""What the checks of DNS records have in common: what is compared with, and how it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pymx.admin.zone import Domain, Record, Server
from pymx.mailauth.questions import texts
from pymx.resolver.answer import Answer, NoRecords, NoSuchDomain
from pymx.resolver.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Site:
    """What the live records are compared with. `keys` is the directory of DKIM keys."""

    resolver: Resolver
    server: Server
    domains: tuple[Domain, ...]
    keys: Path

    @property
    def states(self) -> dict[str, str]:
        """What each DKIM key is for, by the name of its record."""
        every = [*self.server.keys, *(key for domain in self.domains for key in domain.keys)]
        return {key.name: key.state for key in every}


def finding_id(record: Record) -> str:
    return f"dns.{record.kind}:{record.name}"


def publish(record: Record) -> str:
    return f"publish: {record.zone_line}"


async def ask(site: Site, name: str, rdtype: str) -> Answer | None:
    """None: there are no such records. Raises TemporaryDnsError."""
    try:
        return await site.resolver.resolve(name, rdtype)
    except (NoRecords, NoSuchDomain):
        return None


async def version_texts(site: Site, name: str, start: bytes) -> list[bytes]:
    """TXT records that begin with a version tag, in any case."""
    return [t for t in await texts(site.resolver, name) if t.lower().startswith(start)]
