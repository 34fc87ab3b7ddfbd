"""The schema's versions, by Alembic, for pymxctl alone: the daemon only compares the version (reader.py).

`upgrade` brings a database to this version, makes what is missing and leaves the tables of an earlier installation as
they are. It may be stopped anywhere and run again: SQLite does it in one transaction; MariaDB has no transactions for
tables, so each step there is repeatable, and two runs at the same time wait for each other.

A new version is a file in migrations/versions, its number in `tables.SCHEMA_VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, text

from pymx.accounts import tables
from pymx.accounts.account import SchemaError

_LOCK = "pymx_migrate"
_LOCK_WAIT_S = 60


def current(connection: Connection) -> str | None:
    """The version of the database, None without our tables."""
    if not inspect(connection).has_table(tables.VERSION_TABLE):
        return None
    return connection.execute(select(tables.schema.c.version_num)).scalar()


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to `tables.SCHEMA_VERSION`: (version before, version now). Raises SchemaError."""
    from alembic import command
    from alembic.config import Config

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, _alone(connection):
        before = current(connection)
        if before == tables.SCHEMA_VERSION:
            return before, before
        if before is not None and before > tables.SCHEMA_VERSION:
            raise SchemaError(
                f"the database has schema {before}, newer than {tables.SCHEMA_VERSION} of this version: upgrade pymx"
            )
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, tables.SCHEMA_VERSION


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
        return
    got = connection.execute(text("SELECT GET_LOCK(:name, :wait)"), {"name": _LOCK, "wait": _LOCK_WAIT_S}).scalar()
    if got != 1:
        raise SchemaError("another pymxctl is changing the schema; try again when it is done")
    try:
        yield
    finally:
        connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK})
