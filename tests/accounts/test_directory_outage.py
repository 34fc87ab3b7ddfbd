"""The database goes away and comes back: a real MariaDB, stopped, killed and frozen."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.mariadb import Database as MariaDatabase
from support.mariadb import MariaDb
from support.wait import wait_until

from pymx.accounts.account import AuthenticationUnavailable, DirectoryUnavailable, UnknownRecipient
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.directory import Directory
from pymx.accounts.passwords import make
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts, Database
from pymx.mail.address import parse_address

pytestmark = pytest.mark.mariadb

ALICE = parse_address("alice@example.test")
BOB = parse_address("bob@example.test")


def settings(database: MariaDatabase, **values) -> Database:
    return Database(url=database.url, timeout_s=1, **values)


def new_directory(database: Database) -> Directory:
    return Directory(database, Accounts(), delimiter="+", hostname="mx.example.test")


@pytest.fixture
def filled(mariadb_database: MariaDatabase) -> MariaDatabase:
    registry = Registry(settings(mariadb_database))
    registry.add_domain("example.test")
    registry.add_user("alice@example.test", make("geheim", 4))
    registry.add_user("bob@example.test", make("geheim", 4))
    registry.close()
    return mariadb_database


@pytest.fixture
async def directory(filled: MariaDatabase) -> AsyncIterator[Directory]:
    directory = new_directory(settings(filled))
    await directory.start()
    yield directory
    await directory.close()


async def answers(directory: Directory) -> bool:
    try:
        return bool((await directory.resolve(BOB)).accounts)
    except DirectoryUnavailable:
        return False


async def test_cached_recipients_stay_known_others_are_deferred_and_it_recovers(directory: Directory, mariadb: MariaDb):
    found = await directory.resolve(ALICE)
    mariadb.stop()
    try:
        assert await directory.resolve(ALICE) == found
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(BOB)
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(parse_address("nobody@example.test"))
        with pytest.raises(DirectoryUnavailable):
            await directory.is_local("unknown.test")
    finally:
        mariadb.start()
    await wait_until(lambda: answers(directory), what="the directory answers again")
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("nobody@example.test"))


async def test_what_was_found_is_used_stale_but_never_what_was_not(filled: MariaDatabase, mariadb: MariaDb):
    """cache_s = 0: every answer is stale at once."""
    directory = new_directory(settings(filled, cache_s=0, negative_cache_s=0))
    await directory.start()
    found = await directory.resolve(ALICE)
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("nobody@example.test"))
    mariadb.stop()
    try:
        assert await directory.resolve(ALICE) == found
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(parse_address("nobody@example.test"))
        directory.invalidate()
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(ALICE)
    finally:
        mariadb.start()
        await directory.close()


async def test_stale_answers_have_an_end(filled: MariaDatabase, mariadb: MariaDb):
    directory = new_directory(settings(filled, cache_s=0, stale_cache_s=0))
    await directory.start()
    await directory.resolve(ALICE)
    mariadb.stop()
    try:
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(ALICE)
    finally:
        mariadb.start()
        await directory.close()


async def test_a_restart_between_two_questions_is_not_noticed(filled: MariaDatabase, mariadb: MariaDb):
    """The pooled connections are dead; the first use finds out and tries again on a new one."""
    directory = new_directory(settings(filled, cache_s=0, negative_cache_s=0, stale_cache_s=0))
    await directory.start()
    await asyncio.gather(*(directory.resolve(ALICE) for _ in range(4)))
    mariadb.stop()
    mariadb.start()
    found = await asyncio.gather(*(directory.resolve(BOB) for _ in range(4)))
    assert all(resolution.accounts for resolution in found)
    await directory.close()


async def test_a_frozen_database_costs_its_timeout_and_then_nothing(directory: Directory, mariadb: MariaDb):
    await directory.resolve(ALICE)
    mariadb.pause()
    try:
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(BOB)
        assert time.monotonic() - started < 5
        started = time.monotonic()
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(BOB)
        assert time.monotonic() - started < 0.5
    finally:
        mariadb.resume()
    await wait_until(lambda: answers(directory), what="the directory answers again")


async def test_a_connect_that_a_frozen_database_leaves_hanging_is_closed(filled: MariaDatabase, mariadb: MariaDb):
    """The kernel accepts for it; the greeting never comes. A socket left open is a warning, which is an error here."""
    mariadb.pause()
    try:
        directory = new_directory(settings(filled))
        await directory.start()
        await directory.close()
        gc.collect()
    finally:
        mariadb.resume()


async def test_the_daemon_starts_without_the_database_and_finds_it_later(filled: MariaDatabase, mariadb: MariaDb):
    mariadb.stop()
    directory = new_directory(settings(filled))
    try:
        await directory.start()
        with pytest.raises(DirectoryUnavailable):
            await directory.resolve(ALICE)
    finally:
        mariadb.start()
    await wait_until(lambda: answers(directory), what="the directory answers")
    await directory.close()


async def test_a_schema_that_is_wrong_when_the_database_comes_back_defers(filled: MariaDatabase, mariadb: MariaDb):
    mariadb.stop()
    directory = new_directory(settings(filled))
    await directory.start()
    mariadb.start()
    filled.execute("UPDATE pymx_schema SET version_num = '9999'")

    async def says_why() -> bool:
        try:
            await directory.resolve(ALICE)
        except DirectoryUnavailable as e:
            return "9999" in e.reason
        return False

    await wait_until(says_why)
    await directory.close()


async def test_a_damaged_sqlite_file_defers_and_a_restored_one_is_noticed(tmp_path: Path):
    path = tmp_path / "pymx.sqlite"
    database = Database(url=f"sqlite:///{path}", cache_s=0, negative_cache_s=0, stale_cache_s=0)
    registry = Registry(database)
    registry.add_domain("example.test")
    registry.add_user("bob@example.test", make("geheim", 4))
    registry.close()
    good = path.read_bytes()
    directory = new_directory(database)
    await directory.start()
    assert await answers(directory)
    path.write_bytes(b"no database " * 1000)
    for left in tmp_path.glob("pymx.sqlite-*"):
        left.unlink()

    async def is_silent() -> bool:  # what the open connection has in memory may answer once
        return not await answers(directory)

    await wait_until(is_silent, what="the damage is noticed")
    restored = tmp_path / "restored"
    restored.write_bytes(good)
    restored.rename(path)
    await wait_until(lambda: answers(directory), what="the directory answers again")
    await directory.close()


async def test_a_login_is_deferred_not_refused(directory: Directory, mariadb: MariaDb):
    authenticator = Authenticator(directory, Accounts(bcrypt_cost=4))
    mariadb.stop()
    try:
        with pytest.raises(AuthenticationUnavailable):
            await authenticator.login("alice@example.test", "geheim", peer_ip="")
    finally:
        mariadb.start()
        authenticator.close()


async def test_cancelled_questions_leave_the_pool_sound(filled: MariaDatabase):
    """Clients hang up at any moment; the next answer must be the right one."""
    directory = new_directory(settings(filled, cache_s=0, negative_cache_s=0, stale_cache_s=0))
    await directory.start()
    for delay_us in range(0, 1500, 50):
        task = asyncio.ensure_future(directory.resolve(ALICE))
        try:
            await asyncio.wait_for(task, delay_us / 1e6)
        except TimeoutError:
            pass
        assert [a.email for a in (await directory.resolve(BOB)).accounts] == ["bob@example.test"]
    await directory.close()
