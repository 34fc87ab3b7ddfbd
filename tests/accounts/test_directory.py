"""The directory on both databases: who is here, where mail goes, who may write as whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy

from pymx.accounts.account import Account, AliasLoop, SchemaError, UnknownRecipient
from pymx.accounts.database import configured_url, writing_engine
from pymx.accounts.directory import Directory
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts, Database
from pymx.mail.address import Address, parse_address

OpenDirectory = Callable[..., Awaitable[Directory]]


async def resolved(directory: Directory, address: str) -> tuple[list[str], list[str]]:
    found = await directory.resolve(parse_address(address))
    return [a.email for a in found.accounts], [str(a) for a in found.external]


def execute(database: Database, *statements: str) -> None:
    """What another program does to the tables."""
    engine = writing_engine(configured_url(database), 5)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


async def test_domains_of_ours_are_local_in_any_case(open_directory: OpenDirectory):
    directory = await open_directory()
    assert await directory.is_local("example.test")
    assert await directory.is_local("Example.TEST")
    assert not await directory.is_local("elsewhere.test")
    assert await directory.is_local("mx.example.test")  # for its postmaster


async def test_a_user_is_found_in_any_case(open_directory: OpenDirectory):
    directory = await open_directory()
    account = await directory.account("ALICE@Example.test")
    assert account == Account(account.id, "alice@example.test", "example.test", "alice", 0)
    assert await directory.account("nobody@example.test") is None
    assert await directory.account("alice@elsewhere.test") is None
    assert await directory.account("not an address") is None
    assert (await directory.password_hash("alice@example.test")).startswith("{BLF-CRYPT}")
    assert await resolved(directory, "Alice@example.test") == (["alice@example.test"], [])


async def test_a_second_look_is_answered_by_the_cache(open_directory: OpenDirectory):
    directory = await open_directory()
    address = parse_address("alice@example.test")
    assert await directory.resolve(address) == await directory.resolve(address)


async def test_unknown_recipients_and_foreign_domains_are_refused(open_directory: OpenDirectory):
    """A foreign address never comes back as a deliverable one."""
    directory = await open_directory()
    for address in ("nobody@example.test", "alice@elsewhere.test", "alice@mx.example.test"):
        with pytest.raises(UnknownRecipient):
            await directory.resolve(parse_address(address))


async def test_detail_falls_back_to_the_user(open_directory: OpenDirectory, registry: Registry):
    """RFC 5233; an address with that very detail comes first."""
    registry.add_alias("alice+sales@example.test", ["bob@example.test"])
    directory = await open_directory()
    assert await resolved(directory, "alice+shop@example.test") == (["alice@example.test"], [])
    assert await resolved(directory, "alice+sales@example.test") == (["bob@example.test"], [])
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("nobody+x@example.test"))


async def test_without_a_delimiter_there_are_no_details(open_directory: OpenDirectory):
    directory = await open_directory(delimiter="")
    alice = await directory.account("alice@example.test")
    assert await resolved(directory, "alice@example.test") == (["alice@example.test"], [])
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("alice+shop@example.test"))
    assert await directory.may_send_as(alice, parse_address("alice@example.test"))
    assert not await directory.may_send_as(alice, parse_address("alice+shop@example.test"))


async def test_aliases_lead_to_mailboxes_here_and_addresses_elsewhere(
    open_directory: OpenDirectory, registry: Registry
):
    registry.add_alias("info@example.test", ["alice@example.test", "team@other.test", "x@elsewhere.test"])
    registry.add_alias("team@other.test", ["carol@other.test", "alice@example.test"])
    directory = await open_directory()
    assert await resolved(directory, "info@example.test") == (
        ["alice@example.test", "carol@other.test"],
        ["x@elsewhere.test"],
    )
    assert await resolved(directory, "info+detail@example.test") == await resolved(directory, "info@example.test")


async def test_an_alias_wins_over_the_user_and_may_keep_its_copy(open_directory: OpenDirectory, registry: Registry):
    registry.add_alias("alice@example.test", ["bob@example.test"])
    registry.add_alias("carol@other.test", ["carol@other.test", "alice+x@example.test"])
    directory = await open_directory()
    assert await resolved(directory, "alice@example.test") == (["bob@example.test"], [])
    assert await resolved(directory, "carol@other.test") == (["carol@other.test", "bob@example.test"], [])


async def test_the_catch_all_takes_what_nothing_else_takes(open_directory: OpenDirectory, registry: Registry):
    registry.add_alias("@example.test", ["bob@example.test"])
    registry.add_alias("info@example.test", ["carol@other.test"])
    directory = await open_directory()
    assert await resolved(directory, "whoever@example.test") == (["bob@example.test"], [])
    assert await resolved(directory, "alice@example.test") == (["alice@example.test"], [])
    assert await resolved(directory, "alice+x@example.test") == (["alice@example.test"], [])
    assert await resolved(directory, "info@example.test") == (["carol@other.test"], [])
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("whoever@other.test"))


async def test_a_domain_can_stand_for_another(open_directory: OpenDirectory, registry: Registry):
    """virtual(5): @domain as a result is the same user there."""
    registry.add_alias("@other.test", ["@example.test"])
    directory = await open_directory()
    assert await resolved(directory, "bob@other.test") == (["bob@example.test"], [])
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("nobody@other.test"))


async def test_a_circle_of_aliases_is_an_error(open_directory: OpenDirectory, registry: Registry):
    registry.add_alias("a@example.test", ["b@example.test"])
    registry.add_alias("b@example.test", ["a@example.test"])
    directory = await open_directory()
    with pytest.raises(AliasLoop):
        await directory.resolve(parse_address("a@example.test"))


async def test_a_destination_that_does_not_exist_is_logged_once_and_the_others_served(
    open_directory: OpenDirectory, registry: Registry, caplog: pytest.LogCaptureFixture
):
    registry.add_alias("info@example.test", ["alice@example.test", "gone@example.test"])
    directory = await open_directory()
    for _ in range(3):
        assert await resolved(directory, "info@example.test") == (["alice@example.test"], [])
    assert [r.getMessage() for r in caplog.records].count("alias_target_unknown") == 1


async def test_more_targets_than_allowed_is_an_error(open_directory: OpenDirectory, registry: Registry):
    registry.add_alias("all@example.test", [f"u{i}@elsewhere.test" for i in range(5)])
    assert len((await resolved(await open_directory(max_alias_targets=5), "all@example.test"))[1]) == 5
    with pytest.raises(AliasLoop, match="more than 4"):
        await resolved(await open_directory(max_alias_targets=4), "all@example.test")


@pytest.mark.parametrize("role", ["postmaster", "abuse", "Postmaster"])
async def test_roles_go_to_the_oldest_user_of_the_domain_when_nothing_says_otherwise(
    open_directory: OpenDirectory, role: str
):
    """RFC 5321 s. 4.5.1, RFC 2142."""
    directory = await open_directory()
    assert await resolved(directory, f"{role}@example.test") == (["alice@example.test"], [])
    assert await resolved(directory, f"{role}@other.test") == (["carol@other.test"], [])
    assert await resolved(directory, f"{role}@mx.example.test") == (["alice@example.test"], [])
    found = await directory.resolve(Address("postmaster", ""))
    assert [a.email for a in found.accounts] == ["alice@example.test"]


async def test_roles_go_to_the_configured_postmaster(open_directory: OpenDirectory, registry: Registry):
    directory = await open_directory(postmaster="bob@example.test")
    assert await resolved(directory, "abuse@other.test") == (["bob@example.test"], [])
    elsewhere = await open_directory(postmaster="admin@elsewhere.test")
    assert await resolved(elsewhere, "abuse@other.test") == ([], ["admin@elsewhere.test"])
    registry.add_alias("abuse@other.test", ["carol@other.test"])
    directory.invalidate()
    assert await resolved(directory, "abuse@other.test") == (["carol@other.test"], [])


async def test_roles_are_delivered_even_when_alias_or_setting_lead_nowhere(
    open_directory: OpenDirectory, registry: Registry
):
    registry.add_alias("postmaster@example.test", ["gone@example.test"])
    registry.add_alias("abuse@example.test", ["postmaster@example.test"])
    directory = await open_directory(postmaster="postmaster@example.test")
    assert await resolved(directory, "postmaster@example.test") == (["alice@example.test"], [])
    assert await resolved(directory, "abuse@example.test") == (["alice@example.test"], [])


async def test_the_quota_is_the_users_or_the_default(open_directory: OpenDirectory, registry: Registry):
    registry.set_quota("alice@example.test", 5000)
    registry.set_quota("bob@example.test", 0)
    directory = await open_directory(default_quota_octets=1000)

    async def quota(email: str) -> int:
        return (await directory.account(email)).quota_octets

    assert await quota("alice@example.test") == 5000
    assert await quota("bob@example.test") == 0
    assert await quota("carol@other.test") == 1000


async def test_settings_of_a_former_user_of_the_same_number_do_not_count(
    open_directory: OpenDirectory, registry: Registry, database: Database
):
    """SQLite gives the number of a removed row to the next one, and another program may have removed the row."""
    registry.set_quota("bob@example.test", 5000)
    execute(database, "UPDATE users SET email = 'new@example.test' WHERE email = 'bob@example.test'")
    directory = await open_directory(default_quota_octets=1000)
    assert (await directory.account("new@example.test")).quota_octets == 1000


async def test_changes_are_seen_after_invalidate(open_directory: OpenDirectory, registry: Registry):
    directory = await open_directory()
    assert await directory.account("dora@example.test") is None
    registry.add_user("dora@example.test", "{BLF-CRYPT}$2y$04$x")
    assert await directory.account("dora@example.test") is None
    directory.invalidate()
    assert await directory.account("dora@example.test") is not None
    registry.remove_user("dora@example.test")
    assert await directory.account("dora@example.test") is not None
    directory.invalidate()
    assert await directory.account("dora@example.test") is None


async def test_an_answer_that_was_under_way_at_invalidate_is_not_kept(
    open_directory: OpenDirectory, registry: Registry
):
    """It may be from before the change."""
    directory = await open_directory()
    await directory.is_local("example.test")
    under_way = asyncio.ensure_future(directory.account("alice@example.test"))
    await asyncio.sleep(0)
    assert not under_way.done()
    directory.invalidate()
    assert await under_way is not None
    registry.remove_user("alice@example.test")
    assert await directory.account("alice@example.test") is None


async def test_mixed_case_rows_of_another_program_are_found(
    open_directory: OpenDirectory, registry: Registry, database: Database
):
    execute(
        database,
        "INSERT INTO users (domain_id, password, email) SELECT id, 'x', 'Dora@Example.test' FROM domains "
        "WHERE name = 'example.test'",
        "INSERT INTO aliases (domain_id, source, destinations) SELECT id, 'Info@Example.test', 'DORA@example.test' "
        "FROM domains WHERE name = 'example.test'",
    )
    directory = await open_directory()
    assert await resolved(directory, "info@example.test") == (["dora@example.test"], [])


async def test_letters_that_a_collation_calls_equal_are_not(open_directory: OpenDirectory, registry: Registry):
    """MariaDB's general and unicode collations say é = e."""
    registry.add_user("elan@example.test", "{BLF-CRYPT}$2y$04$x")
    directory = await open_directory()
    with pytest.raises(UnknownRecipient):
        await directory.resolve(parse_address("élan@example.test"))
    assert await directory.account("élan@example.test") is None


async def test_a_domain_is_known_by_both_its_idna_forms(open_directory: OpenDirectory, registry: Registry):
    registry.add_domain("bücher.test")
    registry.add_user("alice@bücher.test", "{BLF-CRYPT}$2y$04$x")
    registry.add_domain("xn--mller-kva.test")
    registry.add_user("alice@xn--mller-kva.test", "{BLF-CRYPT}$2y$04$x")
    directory = await open_directory()
    for domain in ("bücher.test", "xn--bcher-kva.test", "müller.test", "xn--mller-kva.test"):
        assert await directory.is_local(domain)
        assert (await directory.resolve(parse_address(f"alice@{domain}"))).accounts
        assert await directory.account(f"alice@{domain}")


async def test_own_address_and_aliases_may_be_written_as(open_directory: OpenDirectory, registry: Registry):
    registry.add_alias("info@example.test", ["staff@example.test", "x@elsewhere.test"])
    registry.add_alias("staff@example.test", ["alice@example.test"])
    registry.add_alias("@other.test", ["alice@example.test"])
    directory = await open_directory()
    alice = await directory.account("alice@example.test")
    bob = await directory.account("bob@example.test")

    async def may(account: Account, address: str) -> bool:
        return await directory.may_send_as(account, parse_address(address))

    for address in (
        "alice@example.test",
        "ALICE@Example.test",
        "alice+shop@example.test",
        "info@example.test",
        "info+x@example.test",
        "staff@example.test",
        "whatever@other.test",
    ):
        assert await may(alice, address), address
    for address in ("bob@example.test", "carol@other.test", "nobody@example.test", "x@elsewhere.test"):
        assert not await may(alice, address), address
    for address in ("alice@example.test", "alice+x@example.test", "info@example.test", "whatever@other.test"):
        assert not await may(bob, address), address


async def test_a_copy_of_somebodys_mail_does_not_make_the_address_ones_own(
    open_directory: OpenDirectory, registry: Registry
):
    """No spoofing between users: alice's mail goes to bob too, or to bob alone; the address stays hers."""
    registry.add_alias("alice@example.test", ["alice@example.test", "bob@example.test"])
    registry.add_alias("carol@other.test", ["bob@example.test"])
    registry.add_alias("info@example.test", ["carol@other.test"])
    directory = await open_directory()
    bob = await directory.account("bob@example.test")
    for address in ("alice@example.test", "alice+x@example.test", "carol@other.test", "info@example.test"):
        assert not await directory.may_send_as(bob, parse_address(address)), address
    assert await directory.may_send_as(bob, parse_address("bob@example.test"))


async def test_a_mailbox_with_the_delimiter_in_its_name_is_its_users_alone(
    open_directory: OpenDirectory, registry: Registry
):
    """No spoofing between users: an older installation may have alice+bob@ as a user of its own."""
    registry.add_user("alice+bob@example.test", "{BLF-CRYPT}$2y$04$x")
    directory = await open_directory()
    alice = await directory.account("alice@example.test")
    address = parse_address("alice+bob@example.test")
    assert not await directory.may_send_as(alice, address)
    assert await directory.may_send_as(await directory.account("alice+bob@example.test"), address)
    assert await directory.may_send_as(alice, parse_address("alice+shop@example.test"))


async def test_a_missing_or_empty_database_is_refused_naming_the_command(database: Database, tmp_path: Path):
    directory = Directory(database, Accounts(), delimiter="+", hostname="mx.example.test")
    with pytest.raises(SchemaError, match="pymxctl --config FILE migrate"):
        await directory.start()
    assert not list(tmp_path.iterdir())  # reading leaves no empty file behind


async def test_an_old_installation_without_our_tables_is_refused_naming_the_command(database: Database):
    execute(database, "CREATE TABLE domains (id INTEGER PRIMARY KEY, name VARCHAR(50))")
    directory = Directory(database, Accounts(), delimiter="+", hostname="mx.example.test")
    with pytest.raises(SchemaError, match="pymxctl --config FILE migrate"):
        await directory.start()


@pytest.mark.parametrize("change", ["UPDATE pymx_schema SET version_num = '9999'", "DELETE FROM pymx_schema"])
async def test_another_schema_version_is_refused_naming_the_command(
    database: Database, registry: Registry, change: str
):
    execute(database, change)
    directory = Directory(database, Accounts(), delimiter="+", hostname="mx.example.test")
    with pytest.raises(SchemaError, match="pymxctl --config FILE migrate"):
        await directory.start()
