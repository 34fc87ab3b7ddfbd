"""Keys that sign in these tests, their records, and the two ways of asking for names."""

from __future__ import annotations

import pytest
from mailauth_samples import Keys
from support.dns_server import DnsServer
from support.names import TableOfNames

from pymx.config.model import Dns
from pymx.resolver.resolver import Resolver


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys()


@pytest.fixture
def names(keys: Keys) -> TableOfNames:
    """A table that holds the keys' records and nothing else."""
    table = TableOfNames()
    for name, record in keys.records.items():
        table.add(name, "TXT", record)
    return table


@pytest.fixture
def resolver(dns_server: DnsServer, keys: Keys) -> Resolver:
    """The real resolver before a real name server with the keys' records."""
    for name, record in keys.records.items():
        dns_server.add(name, "TXT", " ".join(f'"{record[i : i + 255]}"' for i in range(0, len(record), 255)))
    return Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2))
