"""Databases that were there before pymx: other widths, doubled sources, mixed collations, a read-only account."""

from __future__ import annotations

import pytest
from support.mariadb import Database as MariaDatabase

from pymx.accounts.account import AliasLoop, DirectoryUnavailable, UnknownRecipient
from pymx.accounts.directory import Directory
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts, Database
from pymx.mail.address import Address, parse_address

pytestmark = pytest.mark.mariadb

# A set-up as it is found in the wild: no unique source, other widths, latin1 in one table.
TABLES = (
    "CREATE TABLE domains (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50) NOT NULL, "
    "UNIQUE KEY (name)) ENGINE=InnoDB",
    "CREATE TABLE users (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, domain_id INT UNSIGNED NOT NULL, "
    "password VARCHAR(150) NOT NULL, email VARCHAR(100) NOT NULL, active TINYINT NOT NULL DEFAULT 1, "
    "UNIQUE KEY (email), FOREIGN KEY (domain_id) REFERENCES domains(id) ON DELETE CASCADE) "
    "ENGINE=InnoDB DEFAULT CHARSET=latin1",
    "CREATE TABLE aliases (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, domain_id INT UNSIGNED NOT NULL, "
    "source VARCHAR(100) NOT NULL, destinations VARCHAR(1000) NOT NULL, KEY (source), "
    "FOREIGN KEY (domain_id) REFERENCES domains(id) ON DELETE CASCADE) ENGINE=InnoDB",
    "INSERT INTO domains (id, name) VALUES (1, 'alpha.test'), (2, 'beta.test')",
    "INSERT INTO users (domain_id, password, email) VALUES (1, '{BLF-CRYPT}$2y$05$x', 'u001@alpha.test'), "
    "(2, '{SHA512-CRYPT}$6$x', 'u001@beta.test'), (2, 'x', 'u002@beta.test')",
    "INSERT INTO aliases (domain_id, source, destinations) VALUES (1, 'postmaster@alpha.test', 'u001@alpha.test'), "
    "(2, 'all@beta.test', 'u001@beta.test,u002@beta.test'), (1, 'twice@alpha.test', 'u001@alpha.test'), "
    "(1, 'twice@alpha.test', 'u001@beta.test u001@alpha.test')",
)


@pytest.fixture
def old(mariadb_database: MariaDatabase) -> MariaDatabase:
    for statement in TABLES:
        mariadb_database.execute(statement)
    return mariadb_database


def dump(database: MariaDatabase) -> list[object]:
    names = ("domains", "users", "aliases")
    return [
        (database.execute(f"SELECT * FROM {name} ORDER BY id"), database.execute(f"SHOW CREATE TABLE {name}"))
        for name in names
    ]


async def test_it_is_read_as_it_is_and_migrate_leaves_it_alone(old: MariaDatabase):
    before = dump(old)
    registry = Registry(Database(url=old.url))
    assert registry.migrate() == (None, "0002")
    assert dump(old) == before
    assert [u.email for u in registry.users()] == ["u001@alpha.test", "u001@beta.test", "u002@beta.test"]
    directory = Directory(Database(url=old.url), Accounts(), delimiter="+", hostname="mx.example.test")
    await directory.start()

    async def mailboxes(address: str) -> list[str]:
        return [a.email for a in (await directory.resolve(parse_address(address))).accounts]

    assert await mailboxes("all@beta.test") == ["u001@beta.test", "u002@beta.test"]
    assert await mailboxes("postmaster@alpha.test") == ["u001@alpha.test"]
    assert await mailboxes("twice@alpha.test") == ["u001@alpha.test", "u001@beta.test"]
    # latin1 can't hold this name; that is "not here", and no trouble for the rest
    with pytest.raises(UnknownRecipient):
        await directory.resolve(Address("名前", "alpha.test"))
    assert await mailboxes("u001@alpha.test") == ["u001@alpha.test"]
    await directory.close()
    registry.close()


async def test_a_name_that_a_column_cannot_hold_does_not_hide_its_neighbours(old: MariaDatabase):
    registry = Registry(Database(url=old.url))
    registry.add_alias("mixed@alpha.test", ["名前@alpha.test", "u001@alpha.test"])
    directory = Directory(Database(url=old.url), Accounts(), delimiter="+", hostname="mx.example.test")
    await directory.start()
    found = await directory.resolve(parse_address("mixed@alpha.test"))
    assert [a.email for a in found.accounts] == ["u001@alpha.test"]
    await directory.close()
    registry.close()


def test_it_is_written_within_its_own_widths(old: MariaDatabase):
    registry = Registry(Database(url=old.url))
    registry.add_user("x@alpha.test", "y" * 150)
    registry.add_alias("twice@alpha.test", ["x@elsewhere.test"])
    assert registry.remove_alias("twice@alpha.test", ["u001@alpha.test"]).destinations == (
        "x@elsewhere.test",
        "u001@beta.test",
    )
    registry.remove_alias("twice@alpha.test")
    assert [a.source for a in registry.aliases()] == ["all@beta.test", "postmaster@alpha.test"]
    registry.close()


async def test_an_account_that_may_only_read_serves_the_daemon_and_is_told_what_it_lacks(old: MariaDatabase):
    registry = Registry(Database(url=old.url))
    registry.migrate()
    registry.close()
    user = f"reader_{old.name}"
    old.execute(f"CREATE USER '{user}'@localhost IDENTIFIED BY 'geheim'")
    old.execute(f"GRANT SELECT ON {old.name}.* TO '{user}'@localhost")
    url = f"mysql://{user}:geheim@localhost/{old.name}?unix_socket={old.server.socket}"
    try:
        directory = Directory(Database(url=url), Accounts(), delimiter="+", hostname="mx.example.test")
        await directory.start()
        assert (await directory.resolve(parse_address("u001@alpha.test"))).accounts
        await directory.close()
        registry = Registry(Database(url=url))
        with pytest.raises(DirectoryUnavailable, match=r"may not do this.*GRANT") as raised:
            registry.add_domain("gamma.test")
        assert "geheim" not in raised.value.reason
        registry.close()
    finally:
        old.execute(f"DROP USER '{user}'@localhost")


async def test_over_tcp_too(old: MariaDatabase):
    registry = Registry(Database(url=old.tcp_url))
    registry.migrate()
    registry.close()
    directory = Directory(Database(url=old.tcp_url), Accounts(), delimiter="+", hostname="mx.example.test")
    await directory.start()
    assert await directory.is_local("alpha.test")
    await directory.close()


async def test_a_loop_left_by_an_administrator(old: MariaDatabase):
    old.execute("INSERT INTO aliases (domain_id, source, destinations) VALUES (1,'l@alpha.test','l@alpha.test')")
    registry = Registry(Database(url=old.url))
    registry.migrate()
    registry.close()
    directory = Directory(Database(url=old.url), Accounts(), delimiter="+", hostname="mx.example.test")
    await directory.start()
    with pytest.raises(AliasLoop):
        await directory.resolve(parse_address("l@alpha.test"))
    await directory.close()
