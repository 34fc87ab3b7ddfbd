"""An accounts database filled through the registry, and a directory that reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from pymx.accounts.directory import Directory
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts, Database

HASH = "{BLF-CRYPT}$2y$04$abcdefghijklmnopqrstuuoH3nTHmH0V4hpO3nI3vKpP2v3vHVHVO"


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(url=database_url)


@pytest.fixture
def registry(database: Database) -> Iterator[Registry]:
    """With the domains example.test and other.test and the users alice, bob (example.test) and carol (other.test)."""
    registry = Registry(database)
    registry.add_domain("example.test")
    registry.add_domain("other.test")
    for email in ("alice@example.test", "bob@example.test", "carol@other.test"):
        registry.add_user(email, HASH)
    yield registry
    registry.close()


OpenDirectory = Callable[..., Awaitable[Directory]]


@pytest.fixture
async def open_directory(database: Database, registry: Registry) -> AsyncIterator[OpenDirectory]:
    """`await open_directory(postmaster=…)`: a started directory; closed in the end."""
    opened: list[Directory] = []

    async def start(
        *, delimiter: str = "+", default_quota_octets: int = 0, hostname: str = "mx.example.test", **accounts
    ) -> Directory:
        directory = Directory(
            database,
            Accounts(**accounts),
            delimiter=delimiter,
            hostname=hostname,
            default_quota_octets=default_quota_octets,
        )
        await directory.start()
        opened.append(directory)
        return directory

    yield start
    for directory in opened:
        await directory.close()
