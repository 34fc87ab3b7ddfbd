"""Migrations: from nothing, from an old installation, twice, at the same time, from halfway."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from alembic.script import ScriptDirectory

from pymx.accounts import schema, tables
from pymx.accounts.account import SchemaError
from pymx.accounts.database import configured_url, writing_engine
from pymx.accounts.registry import Registry
from pymx.config.model import Database


def test_the_daemons_version_is_the_newest_migration():
    migrations = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert migrations.get_heads() == [tables.SCHEMA_VERSION]


def test_the_daemons_modules_do_not_import_alembic():
    code = (
        "import sys, pymx.accounts.directory, pymx.accounts.authenticate; "
        "sys.exit(any(m.partition('.')[0] in ('alembic', 'argon2', 'passlib', 'pymysql') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


def test_the_migrated_tables_are_those_of_the_statements(database: Database):
    """Names, types and widths; what the essay's set-up has is there exactly."""
    registry = Registry(database)
    assert registry.migrate() == (None, "0002")
    assert registry.migrate() == ("0002", "0002")
    registry.close()
    engine = writing_engine(configured_url(database), 5)
    found = sqlalchemy.inspect(engine)
    assert set(found.get_table_names()) == set(tables.metadata.tables)
    for table in tables.metadata.tables.values():
        columns = {c["name"]: c for c in found.get_columns(table.name)}
        assert list(columns) == [c.name for c in table.columns]
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable
            assert getattr(columns[column.name]["type"], "length", None) == getattr(column.type, "length", None)
    assert {tuple(f["constrained_columns"]) for f in found.get_foreign_keys("users")} == {("domain_id",)}
    assert {tuple(f["constrained_columns"]) for f in found.get_foreign_keys("aliases")} == {("domain_id",)}
    unique = {
        c
        for name in ("users", "aliases", "domains")
        for u in found.get_unique_constraints(name)
        for c in u["column_names"]
    }
    assert unique == {"email", "source", "name"}
    engine.dispose()


def test_two_at_the_same_time_wait_for_each_other(database: Database):
    def migrate() -> tuple[str | None, str]:
        registry = Registry(database)
        try:
            return registry.migrate()
        finally:
            registry.close()

    with ThreadPoolExecutor(4) as pool:
        results = sorted(pool.map(lambda _: migrate(), range(4)), key=str)
    assert results.count((None, "0002")) == 1
    assert results.count(("0002", "0002")) == 3


@pytest.mark.parametrize("stopped_after", ["domains", "users", "pymx_user_settings"])
def test_a_migration_that_was_stopped_halfway_is_finished_by_the_next(database: Database, stopped_after: str):
    """MariaDB has no transaction around CREATE TABLE: any prefix of the steps may be there, the version is not."""
    Registry(database).close()
    engine = writing_engine(configured_url(database), 5)
    wanted = ["domains", "users", "aliases", "pymx_user_settings"]
    prefix = wanted[: wanted.index(stopped_after) + 1]
    tables.metadata.create_all(engine, tables=[tables.metadata.tables[name] for name in prefix])
    engine.dispose()
    registry = Registry(database)
    assert registry.migrate() == (None, "0002")
    registry.add_domain("example.test")
    registry.close()


def test_a_newer_schema_is_left_alone(database: Database):
    registry = Registry(database)
    registry.migrate()
    engine = writing_engine(configured_url(database), 5)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE pymx_schema SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaError, match="newer than 0002"):
        registry.migrate()
    registry.close()
