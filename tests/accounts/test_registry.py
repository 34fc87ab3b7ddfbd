"""Writes, on both databases."""

from __future__ import annotations

import pytest

from pymx.accounts import passwords
from pymx.accounts.account import SchemaError
from pymx.accounts.database import DatabaseUrlError, configured_url
from pymx.accounts.registry import AliasEntry, AlreadyThere, DoesNotFit, DomainEntry, InUse, NotFound, Registry
from pymx.config.model import Database

STORED = "{BLF-CRYPT}$2y$04$abc"


def test_reading_before_the_first_write_names_the_command(database: Database):
    registry = Registry(database)
    with pytest.raises(SchemaError, match="pymxctl --config FILE migrate"):
        registry.domains()
    registry.close()


def test_the_first_write_makes_the_tables(database: Database):
    registry = Registry(database)
    registry.add_domain("Example.TEST")
    assert registry.domains() == [DomainEntry("example.test", 0, 0)]
    assert registry.migrate() == ("0002", "0002")
    registry.close()


def test_domains_are_counted_and_unique(registry: Registry):
    registry.add_alias("info@example.test", ["alice@example.test"])
    assert registry.domains() == [DomainEntry("example.test", 2, 1), DomainEntry("other.test", 1, 0)]
    with pytest.raises(AlreadyThere):
        registry.add_domain("EXAMPLE.test")
    for name in ("", "not a domain", "x" * 64 + ".test"):
        with pytest.raises(DoesNotFit):
            registry.add_domain(name)


def test_a_domain_with_users_stays(registry: Registry):
    registry.add_alias("info@other.test", ["carol@other.test"])
    with pytest.raises(InUse, match="1 user;"):
        registry.remove_domain("other.test")
    registry.remove_user("carol@other.test")
    assert registry.remove_domain("other.test") == [AliasEntry("info@other.test", ("carol@other.test",))]
    assert [d.name for d in registry.domains()] == ["example.test"]
    with pytest.raises(NotFound):
        registry.remove_domain("other.test")


def test_users_come_and_go(registry: Registry):
    assert [u.email for u in registry.users("example.test")] == ["alice@example.test", "bob@example.test"]
    assert len(registry.users()) == 3
    with pytest.raises(AlreadyThere, match="passwd"):
        registry.add_user("Alice@example.test", STORED)
    with pytest.raises(NotFound, match="domain add"):
        registry.add_user("x@elsewhere.test", STORED)
    with pytest.raises(DoesNotFit):
        registry.add_user("not an address", STORED)
    registry.add_alias("info@example.test", ["Bob@example.test", "x@elsewhere.test"])
    assert registry.remove_user("BOB@example.test") == ["info@example.test"]
    with pytest.raises(NotFound):
        registry.remove_user("bob@example.test")
    assert [u.email for u in registry.users("example.test")] == ["alice@example.test"]


def test_quota_and_scheme_are_listed(registry: Registry):
    registry.set_quota("alice@example.test", 1000)
    registry.set_password("alice@example.test", "$6$salt$hash")
    alice, bob = registry.users("example.test")
    assert (alice.quota_octets, alice.scheme) == (1000, "$6$")
    assert (bob.quota_octets, bob.scheme) == (None, "BLF-CRYPT")
    registry.set_quota("alice@example.test", None)
    assert registry.users("example.test")[0].quota_octets is None
    for change in (registry.set_quota, registry.set_password):
        with pytest.raises(NotFound):
            change("nobody@example.test", None)  # type: ignore[arg-type]


def test_a_new_user_does_not_inherit_the_quota_of_a_former_one(registry: Registry):
    registry.set_quota("bob@example.test", 1000)
    registry.remove_user("bob@example.test")
    registry.add_user("bob@example.test", STORED)
    assert registry.users("example.test")[1].quota_octets is None


def test_a_hash_that_the_column_would_cut_is_refused(registry: Registry):
    """{SHA512-CRYPT} needs 120 characters, the column of the usual set-up has 106."""
    with pytest.raises(DoesNotFit, match=r"users.password holds 106 characters, this needs 107"):
        registry.set_password("alice@example.test", "x" * 107)
    registry.set_password("alice@example.test", "x" * 106)
    with pytest.raises(DoesNotFit):
        registry.add_user("dora@example.test", "x" * 107)
    with pytest.raises(DoesNotFit, match=r"aliases.destinations"):
        registry.add_alias("all@example.test", [f"a-rather-long-name-{i}@example.test" for i in range(10)])
    assert len(passwords.make("geheim", 4)) <= 106


def test_removals_are_remembered_until_the_name_is_given_away_again(registry: Registry):
    assert not registry.was_removed("bob@example.test")
    registry.remove_user("bob@example.test")
    assert registry.was_removed("Bob@example.test")
    registry.add_user("bob@example.test", STORED)
    registry.remove_user("bob@example.test")
    registry.forget_removal("bob@example.test")
    assert not registry.was_removed("bob@example.test")


def test_aliases_grow_and_shrink(registry: Registry):
    assert registry.add_alias("Info@example.test", ["alice@example.test"]).source == "info@example.test"
    both = registry.add_alias("info@example.test", ["bob@example.test,ALICE@example.test"])
    assert {d.lower() for d in both.destinations} == {"alice@example.test", "bob@example.test"}
    registry.add_alias("@example.test", ["@other.test"])
    assert [a.source for a in registry.aliases("example.test")] == ["@example.test", "info@example.test"]
    assert registry.aliases("other.test") == []
    assert registry.remove_alias("info@example.test", ["bob@example.test"]).destinations != ()
    with pytest.raises(NotFound, match="does not lead to"):
        registry.remove_alias("info@example.test", ["bob@example.test"])
    assert registry.remove_alias("info@example.test").destinations == ()
    with pytest.raises(NotFound):
        registry.remove_alias("info@example.test")
    with pytest.raises(DoesNotFit, match="root"):
        registry.add_alias("info@example.test", ["root"])
    with pytest.raises(NotFound):
        registry.add_alias("info@elsewhere.test", ["alice@example.test"])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:geheim@h/db", "postgresql"),
        ("nonsense geheim", "not a URL"),
        ("sqlite://", "no file"),
        ("mysql://u:geheim@h", "no database"),
    ],
)
def test_a_bad_url_is_named_without_its_password(url: str, says: str):
    with pytest.raises(DatabaseUrlError) as raised:
        configured_url(Database(url=url))
    assert "[database] url" in str(raised.value)
    assert says in str(raised.value)
    assert "geheim" not in str(raised.value)


def test_the_url_may_come_from_a_file(tmp_path):
    path = tmp_path / "url"
    path.write_text("sqlite:////x/y.sqlite\n")
    assert configured_url(Database(url_file=str(path))).database == "/x/y.sqlite"
    with pytest.raises(DatabaseUrlError, match="url_file"):
        configured_url(Database(url_file=str(tmp_path / "missing")))


def test_a_database_of_the_first_version_gets_the_new_column_and_keeps_its_rows(database: Database):
    """What `pymxctl migrate` does to an installation that is there."""
    from sqlalchemy import text

    from pymx.accounts.database import writing_engine

    registry = Registry(database)
    registry.add_domain("example.test")
    registry.add_user("alice@example.test", STORED, 1000)
    registry.close()
    engine = writing_engine(configured_url(database), 10)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE pymx_user_settings DROP COLUMN quota_messages"))
        connection.execute(text("UPDATE pymx_schema SET version_num='0001'"))
    engine.dispose()
    registry = Registry(database)
    with pytest.raises(SchemaError, match=r"0001.*0002"):
        registry.users()
    assert registry.migrate() == ("0001", "0002")
    (user,) = registry.users()
    assert (user.quota_octets, user.quota_messages) == (1000, None)
    registry.set_quota("alice@example.test", None, 50)
    (user,) = registry.users()
    assert (user.quota_octets, user.quota_messages) == (None, 50)
    registry.close()
