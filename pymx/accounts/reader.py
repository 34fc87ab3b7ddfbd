"""The daemon's reads from the accounts database, with everything that can go wrong turned into DirectoryUnavailable.

Statements are built once. A connection that died is noticed by its first use: the statement is tried once more on a
new one. After a failure the database is left alone for a second, so that a dead one costs a session that second's
first caller's wait and not each its own. The schema's version is checked before the first read.

The columns of an old installation may have any collation, so what the database calls equal is compared again by the
caller (MariaDB finds "elan@" when asked for "élan@").
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Engine, Executable, bindparam, create_engine, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.elements import ColumnElement

from pymx import log
from pymx.accounts import reading, tables
from pymx.accounts.account import DirectoryUnavailable, SchemaError
from pymx.accounts.database import configured_url, is_sqlite, reading_url, sqlite_path
from pymx.accounts.reading import Query, Row
from pymx.config.model import Database

MIGRATE = "pymxctl --config FILE migrate"
_REST_S = 1.0  # after a failure
_NO_SUCH_TABLE = 1146
_ILLEGAL_MIX_OF_COLLATIONS = frozenset({1267, 1270, 1271})  # a text that the column's character set can't hold


@dataclass(frozen=True, slots=True)
class Statements:
    domains: Executable
    users: Executable
    aliases: Executable
    first_user_of_domain: Executable
    first_user: Executable
    version: Executable


def _build(*, nocase: bool) -> Statements:
    def equals_any(column: Column[str]) -> ColumnElement[bool]:
        comparable = column.collate("NOCASE") if nocase else column
        return comparable.in_(bindparam("keys", expanding=True))

    u, s = tables.users.c, tables.user_settings.c
    user = select(
        u.id, u.email, u.password, s.email.label("settings_email"), s.quota_octets, s.quota_messages
    ).select_from(tables.users.outerjoin(tables.user_settings, s.user_id == u.id))
    return Statements(
        domains=select(tables.domains.c.id, tables.domains.c.name).where(equals_any(tables.domains.c.name)),
        users=user.where(equals_any(u.email)),
        aliases=select(tables.aliases.c.source, tables.aliases.c.destinations)
        .where(equals_any(tables.aliases.c.source))
        .order_by(tables.aliases.c.id),
        first_user_of_domain=user.where(u.domain_id == bindparam("domain_id")).order_by(u.id).limit(1),
        first_user=user.order_by(u.id).limit(1),
        version=select(tables.schema.c.version_num),
    )


_STATEMENTS = {"sqlite": _build(nocase=True), "mysql": _build(nocase=False)}


class Reader:
    """Runs the statements. Not started: no engine, no connection (it may be made before a fork)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: Engine | None = None
        self._url: URL | None = None
        self._down_until = 0.0
        self._schema_checked = False
        self._log = log.get("accounts")

    async def start(self) -> None:
        """Raises SchemaError, DatabaseUrlError. A database that does not answer yet is no error."""
        self._url = configured_url(self._database)
        if is_sqlite(self._url) and not sqlite_path(self._url).exists():
            raise SchemaError(f"there is no database at {sqlite_path(self._url)}; make it with: {MIGRATE}")
        self._engine = _engine(self._url, self._database)
        try:
            await self._check_schema()
        except DirectoryUnavailable as e:
            self._log.warning("database_unavailable", reason=e.reason)
        except SchemaError:
            await self.close()
            raise

    async def close(self) -> None:
        if self._engine:
            engine, self._engine = self._engine, None
            await reading.dispose(engine)

    @property
    def statements(self) -> Statements:
        if self._url is None:
            raise DirectoryUnavailable("the directory is not started")
        return _STATEMENTS[self._url.drivername]

    async def domains(self, names: Sequence[str]) -> Sequence[Row]:
        """(id, name) of the domains with one of `names`."""
        (rows,) = await self._fetch_by_keys(names, self.statements.domains)
        return rows

    async def addresses(self, keys: Sequence[str]) -> tuple[Sequence[Row], Sequence[Row]]:
        """The users (id, email, password, settings_email, quota_octets, quota_messages) and the aliases (source,
        destinations) of `keys`."""
        users, aliases = await self._fetch_by_keys(keys, self.statements.users, self.statements.aliases)
        return users, aliases

    async def first_user(self, domain_id: int | None) -> Row | None:
        """The oldest user of a domain, or of all, as in `addresses`."""
        if domain_id is None:
            (rows,) = await self._fetch((self.statements.first_user, {}))
        else:
            (rows,) = await self._fetch((self.statements.first_user_of_domain, {"domain_id": domain_id}))
        return rows[0] if rows else None

    async def _fetch_by_keys(self, keys: Sequence[str], *statements: Executable) -> list[Sequence[Row]]:
        try:
            return await self._fetch(*((statement, {"keys": keys}) for statement in statements))
        except _NotRepresentable:
            ascii_keys = [key for key in keys if key.isascii()]
            return await self._fetch(*((statement, {"keys": ascii_keys}) for statement in statements))

    async def _fetch(self, *queries: Query) -> list[Sequence[Row]]:
        """The rows of each query, over one connection. Raises DirectoryUnavailable."""
        if time.monotonic() < self._down_until:
            raise DirectoryUnavailable("the database did not answer a moment ago")
        if not self._schema_checked:
            try:
                await self._check_schema()
            except SchemaError as e:
                self._log.error("schema_refused", reason=e.reason)
                raise DirectoryUnavailable(e.reason) from None
        return await self._run(*queries)

    async def _check_schema(self) -> None:
        try:
            rows = await self._run((self.statements.version, {}))
        except _NoTable:
            raise SchemaError(f"the database has no tables of pymx yet; make them with: {MIGRATE}") from None
        versions = [row[0] for row in rows[0]]
        if versions != [tables.SCHEMA_VERSION]:
            has = versions[0] if versions else "none"
            raise SchemaError(
                f"the database has schema {has}, this version needs {tables.SCHEMA_VERSION}; run: {MIGRATE}"
            )
        self._schema_checked = True

    async def _run(self, *queries: Query) -> list[Sequence[Row]]:
        try:
            return await self._once(queries)
        except DBAPIError as e:
            self._raise_if_answered(e)
            if not e.connection_invalidated:
                raise await self._failed(e) from None
        except (SQLAlchemyError, OSError, TimeoutError) as e:
            raise await self._failed(e) from None
        try:  # the connection was dead; the pool has dropped its siblings too
            return await self._once(queries)
        except DBAPIError as e:
            self._raise_if_answered(e)
            raise await self._failed(e) from None
        except (SQLAlchemyError, OSError, TimeoutError) as e:
            raise await self._failed(e) from None

    async def _once(self, queries: Sequence[Query]) -> list[Sequence[Row]]:
        if self._engine is None:
            raise DirectoryUnavailable("the directory is not started")
        async with asyncio.timeout(self._database.timeout_s), reading.connect(self._engine) as connection:
            return [await reading.fetch(connection, query) for query in queries]

    def _raise_if_answered(self, e: DBAPIError) -> None:
        """The database is there and said no, in one of two ways that mean something to us."""
        code = _code(e)
        if code == _NO_SUCH_TABLE or "no such table" in str(e.orig):
            raise _NoTable(str(e.orig)) from None
        if code in _ILLEGAL_MIX_OF_COLLATIONS:
            raise _NotRepresentable(str(e.orig)) from None

    async def _failed(self, e: Exception) -> DirectoryUnavailable:
        self._down_until = time.monotonic() + _REST_S
        if self._engine and self._url and is_sqlite(self._url):
            await reading.dispose(self._engine)  # the file may have been replaced: open it anew
        reason = _reason(e)
        self._log.warning("database_unavailable", reason=reason)
        return DirectoryUnavailable(reason)


class _NoTable(DirectoryUnavailable):
    """A table is missing: nobody has made the schema, or somebody took it away."""


class _NotRepresentable(DirectoryUnavailable):
    """A text with characters that the column's character set does not have, so it can't be in there."""


def _code(e: DBAPIError) -> int | None:
    """MariaDB's error number."""
    args = getattr(e.orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else None


def _reason(e: Exception) -> str:
    if isinstance(e, DBAPIError):
        return str(e.orig)  # without the statement and its values
    return str(e) or type(e).__name__


def _engine(url: URL, database: Database) -> Engine:
    if is_sqlite(url):
        return create_engine(
            reading_url(url),
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_size=1,
            max_overflow=0,
            pool_recycle=60,  # a file that was replaced is noticed
            pool_timeout=database.timeout_s,
            connect_args={"timeout": database.timeout_s},
        )
    return create_engine(
        reading_url(url),
        connect_args={"connect_timeout": database.timeout_s},
        # set here: per connection it would cost two more round trips at each use
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=database.pool_size,
        max_overflow=2,
        pool_timeout=database.timeout_s,
        pool_recycle=1800,
        pool_use_lifo=True,
    )
