"""Writes to the accounts database, for pymxctl: domains, users, aliases, quotas. Sync; one transaction per call.

The first write makes the tables (schema.py). Names are written in lower case. What a column of an earlier installation
can't hold is refused before MariaDB, in its lax mode, would cut it.

Errors: `NotFound`, `AlreadyThere`, `DoesNotFit`, `InUse` > `RegistryError`, whose text says what to do;
`DirectoryUnavailable` when the database can't be reached or won't let us write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, String, delete, func, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from pymx.accounts import schema, tables
from pymx.accounts.account import AccountsError, DirectoryUnavailable, SchemaError
from pymx.accounts.aliases import split_destinations
from pymx.accounts.database import configured_url, is_sqlite, sqlite_path, writing_engine
from pymx.config.model import Database
from pymx.mail.address import Address, AddressError, parse_address, parse_domain

_DENIED = frozenset({1044, 1142, 1143, 1227, 1370})  # MariaDB: the account lacks a privilege
MIGRATE = "pymxctl --config FILE migrate"


class RegistryError(AccountsError):
    """The change can't be made."""


class NotFound(RegistryError):
    """There is nothing of that name."""


class AlreadyThere(RegistryError):
    """There is one of that name."""


class DoesNotFit(RegistryError):
    """Malformed, or longer than the column."""


class InUse(RegistryError):
    """Something else still needs it."""


@dataclass(frozen=True, slots=True)
class DomainEntry:
    name: str
    users: int
    aliases: int


@dataclass(frozen=True, slots=True)
class UserEntry:
    """Quotas of None: the configured default."""

    id: int
    email: str
    quota_octets: int | None
    scheme: str
    quota_messages: int | None = None


@dataclass(frozen=True, slots=True)
class AliasEntry:
    source: str
    destinations: tuple[str, ...]


class Registry:
    """To be closed. Nothing is connected before the first call. Raises DatabaseUrlError."""

    def __init__(self, database: Database) -> None:
        self._url = configured_url(database)
        self._engine = writing_engine(self._url, database.timeout_s)
        self._ready = False

    def close(self) -> None:
        self._engine.dispose()

    def migrate(self) -> tuple[str | None, str]:
        """Make or upgrade the tables: (version before, version now)."""
        with self._translated():
            self._make_directory()
            versions = schema.upgrade(self._engine)
        self._ready = True
        return versions

    # Domains

    def domains(self) -> list[DomainEntry]:
        d, u, a = tables.domains.c, tables.users.c, tables.aliases.c
        users = select(func.count()).where(u.domain_id == d.id).scalar_subquery()
        aliases = select(func.count()).where(a.domain_id == d.id).scalar_subquery()
        with self._reading() as connection:
            rows = connection.execute(select(d.name, users, aliases).order_by(d.name))
            return [DomainEntry(*row) for row in rows]

    def add_domain(self, name: str) -> str:
        """Returns the name as it was written."""
        name = _domain(name)
        with self._writing() as connection:
            self._fit(connection, "domains", "name", name)
            if _id(connection, tables.domains.c.id, tables.domains.c.name, name) is not None:
                raise AlreadyThere(f"{name} is there already")
            connection.execute(insert(tables.domains).values(name=name))
        return name

    def remove_domain(self, name: str) -> list[AliasEntry]:
        """Remove a domain without users; its aliases go with it and are returned."""
        name = _domain(name)
        with self._writing() as connection:
            domain_id = self._domain_id(connection, name)
            count = select(func.count()).where(tables.users.c.domain_id == domain_id)
            users = connection.execute(count).scalar_one()
            if users:
                raise InUse(
                    f"{name} has {users} user{'s' * (users != 1)}; remove them first: pymxctl user remove EMAIL"
                )
            a = tables.aliases.c
            rows = connection.execute(select(a.source, a.destinations).where(a.domain_id == domain_id)).all()
            connection.execute(delete(tables.aliases).where(a.domain_id == domain_id))
            connection.execute(delete(tables.domains).where(tables.domains.c.id == domain_id))
        return [_alias_entry(source, destinations) for source, destinations in rows]

    # Users

    def users(self, domain: str | None = None) -> list[UserEntry]:
        u, s = tables.users.c, tables.user_settings.c
        statement = (
            select(u.id, u.email, u.password, s.email, s.quota_octets, s.quota_messages)
            .select_from(tables.users.outerjoin(tables.user_settings, s.user_id == u.id))
            .order_by(u.email)
        )
        with self._reading() as connection:
            if domain is not None:
                statement = statement.where(u.domain_id == self._domain_id(connection, _domain(domain)))
            return [
                UserEntry(
                    user_id,
                    email,
                    octets if str(settings_email).lower() == str(email).lower() else None,
                    _scheme(str(password)),
                    messages if str(settings_email).lower() == str(email).lower() else None,
                )
                for user_id, email, password, settings_email, octets, messages in connection.execute(statement)
            ]

    def has_user(self, email: str) -> bool:
        with self._reading() as connection:
            return self._user_id(connection, _address(email).key) is not None

    def add_user(
        self, email: str, stored_password: str, quota_octets: int | None = None, quota_messages: int | None = None
    ) -> str:
        """Returns the address as it was written."""
        address = _address(email)
        with self._writing() as connection:
            domain_id = self._domain_id(connection, address.domain)
            self._fit(connection, "users", "email", address.key)
            self._fit(connection, "users", "password", stored_password)
            if self._user_id(connection, address.key) is not None:
                raise AlreadyThere(f"{address.key} is there already; for another password: pymxctl user passwd")
            connection.execute(
                insert(tables.users).values(domain_id=domain_id, email=address.key, password=stored_password)
            )
            user_id = self._user_id(connection, address.key)
            connection.execute(delete(tables.user_settings).where(tables.user_settings.c.user_id == user_id))
            self._write_quota(connection, user_id, address.key, quota_octets, quota_messages)
        return address.key

    def set_password(self, email: str, stored_password: str) -> None:
        address = _address(email)
        with self._writing() as connection:
            user_id = self._existing_user_id(connection, address.key)
            self._fit(connection, "users", "password", stored_password)
            connection.execute(
                update(tables.users).where(tables.users.c.id == user_id).values(password=stored_password)
            )

    def set_quota(self, email: str, quota_octets: int | None, quota_messages: int | None = None) -> None:
        """Both limits; None: the configured default again."""
        address = _address(email)
        with self._writing() as connection:
            user_id = self._existing_user_id(connection, address.key)
            connection.execute(delete(tables.user_settings).where(tables.user_settings.c.user_id == user_id))
            self._write_quota(connection, user_id, address.key, quota_octets, quota_messages)

    def remove_user(self, email: str) -> list[str]:
        """Remove the row and note the removal (see `was_removed`). Returns the aliases that still name the user."""
        address = _address(email)
        removed = tables.removed_users
        with self._writing() as connection:
            user_id = self._existing_user_id(connection, address.key)
            connection.execute(delete(tables.user_settings).where(tables.user_settings.c.user_id == user_id))
            connection.execute(delete(tables.users).where(tables.users.c.id == user_id))
            connection.execute(delete(removed).where(removed.c.email == address.key))
            connection.execute(insert(removed).values(email=address.key, removed_at=int(time.time())))
        return [alias.source for alias in self.aliases() if address.key in map(str.lower, alias.destinations)]

    def was_removed(self, email: str) -> bool:
        """Was a user of that name removed here? Then what lies in a mailbox of the name is not the next user's: it
        may have been left by a stop halfway, or delivered by a session that knew the user still."""
        removed = tables.removed_users
        with self._writing() as connection:
            found = select(func.count()).select_from(removed).where(removed.c.email == _address(email).key)
            return bool(connection.execute(found).scalar_one())

    def forget_removal(self, email: str) -> None:
        removed = tables.removed_users
        with self._writing() as connection:
            connection.execute(delete(removed).where(removed.c.email == _address(email).key))

    # Aliases

    def aliases(self, domain: str | None = None) -> list[AliasEntry]:
        a = tables.aliases.c
        statement = select(a.source, a.destinations).order_by(a.source, a.id)
        with self._reading() as connection:
            if domain is not None:
                statement = statement.where(a.domain_id == self._domain_id(connection, _domain(domain)))
            return [_alias_entry(source, destinations) for source, destinations in connection.execute(statement)]

    def add_alias(self, source: str, destinations: Sequence[str]) -> AliasEntry:
        """Make an alias, or add destinations to it. `source` may be @domain, for a catch-all."""
        source, domain = _source(source)
        wanted = _destinations(destinations)
        a = tables.aliases.c
        with self._writing() as connection:
            domain_id = self._domain_id(connection, domain)
            row = connection.execute(
                select(a.id, a.destinations).where(_same(a.source, source)).order_by(a.id).limit(1)
            ).first()
            present = tuple(split_destinations(row.destinations)[0]) if row else ()
            together = tuple({word.lower(): word for word in (*present, *wanted)}.values())
            text = ",".join(together)
            self._fit(connection, "aliases", "source", source)
            self._fit(connection, "aliases", "destinations", text)
            if row:
                connection.execute(update(tables.aliases).where(a.id == row.id).values(destinations=text))
            else:
                connection.execute(insert(tables.aliases).values(domain_id=domain_id, source=source, destinations=text))
        return AliasEntry(source, together)

    def remove_alias(self, source: str, destinations: Sequence[str] = ()) -> AliasEntry:
        """Remove an alias, or only some destinations of it. Returns what is left."""
        source, _ = _source(source)
        unwanted = {word.lower() for word in _destinations(destinations)}
        a = tables.aliases.c
        with self._writing() as connection:
            rows = connection.execute(select(a.id, a.destinations).where(_same(a.source, source))).all()
            if not rows:
                raise NotFound(f"there is no alias {source}; see: pymxctl alias list")
            present = [word for row in rows for word in split_destinations(row.destinations)[0]]
            missing = unwanted - {word.lower() for word in present}
            if missing:
                raise NotFound(f"{source} does not lead to {', '.join(sorted(missing))}")
            left = tuple(word for word in present if unwanted and word.lower() not in unwanted)
            connection.execute(delete(tables.aliases).where(a.id.in_([row.id for row in rows[bool(left) :]])))
            if left:
                connection.execute(update(tables.aliases).where(a.id == rows[0].id).values(destinations=",".join(left)))
        return AliasEntry(source, left)

    # Connections

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._translated():
            if is_sqlite(self._url) and not sqlite_path(self._url).exists():
                raise SchemaError(f"there is no database at {sqlite_path(self._url)}; make it with: {MIGRATE}")
            with self._engine.connect() as connection:
                found = schema.current(connection)
                if found != tables.SCHEMA_VERSION:
                    raise SchemaError(
                        f"the database has schema {found or 'none'}, this version needs {tables.SCHEMA_VERSION}; "
                        f"run: {MIGRATE}"
                    )
                yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if not self._ready:
            self.migrate()
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as e:
            raise AlreadyThere(f"another program changed the tables at the same time: {e.orig}") from None
        except DBAPIError as e:
            args = getattr(e.orig, "args", ())
            if args and args[0] in _DENIED:
                raise DirectoryUnavailable(
                    f"the database account {self._url.username} may not do this: {args[1]}; as the database's "
                    f"administrator: GRANT ALL ON {self._url.database}.* TO that account"
                ) from None
            if is_sqlite(self._url):
                raise DirectoryUnavailable(f"{sqlite_path(self._url)}: {e.orig}") from None
            raise DirectoryUnavailable(f"the database at {self._url.host or 'the socket'}: {e.orig}") from None

    def _make_directory(self) -> None:
        if not is_sqlite(self._url):
            return
        directory = sqlite_path(self._url).parent
        if not directory.is_dir():
            raise DirectoryUnavailable(
                f"there is no directory {directory} for the database; make it, owned by the user"
            )

    # Rows

    def _domain_id(self, connection: Connection, name: str) -> int:
        found = _id(connection, tables.domains.c.id, tables.domains.c.name, name)
        if found is None:
            raise NotFound(f"{name} is not a domain of this server; add it first: pymxctl domain add {name}")
        return found

    def _user_id(self, connection: Connection, email: str) -> int | None:
        return _id(connection, tables.users.c.id, tables.users.c.email, email)

    def _existing_user_id(self, connection: Connection, email: str) -> int:
        found = self._user_id(connection, email)
        if found is None:
            raise NotFound(f"there is no user {email}; see: pymxctl user list")
        return found

    def _write_quota(
        self, connection: Connection, user_id: int | None, email: str, octets: int | None, messages: int | None
    ) -> None:
        if octets is None and messages is None:
            return
        connection.execute(
            insert(tables.user_settings).values(
                user_id=user_id, email=email, quota_octets=octets, quota_messages=messages
            )
        )

    def _fit(self, connection: Connection, table: str, column: str, value: str) -> None:
        for found in inspect(connection).get_columns(table):
            kind = found["type"]
            if found["name"] == column and isinstance(kind, String) and kind.length and len(value) > kind.length:
                raise DoesNotFit(
                    f"{table}.{column} holds {kind.length} characters, this needs {len(value)}; "
                    f"widen the column: ALTER TABLE {table} MODIFY {column} VARCHAR({len(value)}) NOT NULL"
                )


def _same(column: ColumnElement[str], value: str) -> ColumnElement[bool]:
    return func.lower(column) == value


def _id(connection: Connection, id_column: ColumnElement[int], column: ColumnElement[str], value: str) -> int | None:
    rows = connection.execute(select(id_column, column).where(_same(column, value)))
    # MariaDB's collations also take é for e; that is somebody else
    return next((int(found_id) for found_id, found in rows if str(found).strip().lower() == value), None)


def _domain(name: str) -> str:
    try:
        return parse_domain(name)
    except AddressError as e:
        raise DoesNotFit(f"{name!r} is not a domain: {e}") from None


def _address(email: str) -> Address:
    try:
        return parse_address(email)
    except AddressError as e:
        raise DoesNotFit(f"{email!r} is not an address: {e}") from None


def _source(source: str) -> tuple[str, str]:
    """(as written, its domain)."""
    if source.startswith("@"):
        domain = _domain(source[1:])
        return f"@{domain}", domain
    address = _address(source)
    return address.key, address.domain


def _destinations(words: Sequence[str]) -> tuple[str, ...]:
    good, bad = split_destinations(",".join(words))
    if bad:
        raise DoesNotFit(f"{bad[0]!r} is not an address; destinations are addresses, or @domain")
    return good


def _alias_entry(source: str, destinations: str) -> AliasEntry:
    return AliasEntry(source, split_destinations(destinations)[0])


def _scheme(stored: str) -> str:
    """For lists: BLF-CRYPT, or the prefix of a bare hash."""
    if stored.startswith("{"):
        return stored[1:].partition("}")[0]
    return "$" + stored[1:].partition("$")[0] + "$" if stored.startswith("$") else "unknown"
