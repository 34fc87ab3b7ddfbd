"""Consistent copies of databases that are in use, for backups.

SQLite is copied by its own backup API: what was committed when the copy ends. MariaDB is read in one transaction with a
consistent snapshot into a file of JSON lines, which says of itself whether it is whole:

    {"format": "pymx-accounts-1", "dialect": "mysql", "database": …}
    {"table": "domains", "create": "CREATE TABLE …", "columns": ["id", "name"]}
    [1, "example.com"]
    {"end": 1}                                              the number of rows in all

It holds every table of the database, those of other programs too; views, triggers and routines are not in it.
`load` puts it back into an empty MariaDB database, or the tables that pymx knows into a new SQLite file.

Errors: `DumpError` (not whole, not readable, target not empty), SQLAlchemyError of the database.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from pymx.accounts import tables
from pymx.accounts.account import AccountsError
from pymx.accounts.database import configured_url, is_sqlite, sqlite_path, writing_engine
from pymx.config.model import Database

_FORMAT = "pymx-accounts-1"
_BATCH = 500
_BUSY_S = 60.0


class DumpError(AccountsError):
    """There is no whole dump, or nowhere to put it."""


def copy_sqlite(source: str, target: str) -> None:
    """A consistent copy of a SQLite database that others may be writing. Raises DumpError."""
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(source)}?mode=ro", uri=True, timeout=_BUSY_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole in itself
    except sqlite3.Error as e:
        raise DumpError(f"{source}: {e}") from None
    os.chmod(target, os.stat(source).st_mode & 0o777)


def check_sqlite(path: str) -> str:
    """What is wrong with a SQLite file that nobody uses; "" if nothing is."""
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(3)")]
    except sqlite3.Error as e:
        return str(e)
    return "" if found == ["ok"] else "; ".join(found)


def dump(settings: Database, directory: Path) -> Path:
    """The accounts database in `directory`: `accounts.sqlite` or `accounts.jsonl`."""
    url = configured_url(settings)
    if is_sqlite(url):
        target = directory / "accounts.sqlite"
        copy_sqlite(str(sqlite_path(url)), str(target))
        return target
    target = directory / "accounts.jsonl"
    engine = writing_engine(url, settings.timeout_s)
    try:
        with engine.connect() as connection, target.open("x", encoding="utf-8") as out:
            for line in _lines(connection, url):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    except SQLAlchemyError as e:
        raise DumpError(f"the accounts database can't be read: {getattr(e, 'orig', None) or e}") from None
    finally:
        engine.dispose()
    return target


def _lines(connection: Connection, url: URL) -> Iterator[object]:
    connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    yield {"format": _FORMAT, "dialect": "mysql", "database": url.database}
    names = [row[0] for row in connection.exec_driver_sql("SHOW FULL TABLES WHERE Table_type = 'BASE TABLE'")]
    rows = 0
    for name in names:
        quoted = "`" + name.replace("`", "``") + "`"
        create = connection.exec_driver_sql(f"SHOW CREATE TABLE {quoted}").one()[1]
        found = connection.execution_options(stream_results=True).exec_driver_sql(f"SELECT * FROM {quoted}")  # noqa: S608
        yield {"table": name, "create": create, "columns": list(found.keys())}
        for row in found:
            yield [_plain(value) for value in row]
            rows += 1
    yield {"end": rows}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"octets": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.timedelta | datetime.time | decimal.Decimal):
        return str(value)
    raise DumpError(f"a value of type {type(value).__name__} can't be written down")


def _value(value: object) -> object:
    return base64.b64decode(value["octets"]) if isinstance(value, dict) else value


def read(path: Path) -> Iterator[tuple[str, str, list[str], list[list[object]]]]:
    """Table, its CREATE TABLE, columns, a batch of rows. DumpError where the file is not whole, at its end at last."""
    table, create, columns = "", "", list[str]()
    batch: list[list[object]] = []
    rows, ended = 0, False
    try:
        with path.open(encoding="utf-8") as lines:
            head = json.loads(next(lines, "{}"))
            if head.get("format") != _FORMAT:
                raise DumpError(f"{path.name}: not a dump of this version")
            for line in lines:
                item = json.loads(line)
                if isinstance(item, list):
                    batch.append([_value(value) for value in item])
                    rows += 1
                    if len(batch) < _BATCH:
                        continue
                elif "end" in item:
                    ended = item["end"] == rows
                if table and (batch or isinstance(item, dict)):
                    yield table, create, columns, batch
                    batch = []
                if isinstance(item, dict) and "table" in item:
                    table, create, columns = item["table"], item["create"], item["columns"]
    except (ValueError, KeyError, AttributeError) as e:
        raise DumpError(f"{path.name}: not readable: {e}") from None
    if not ended:
        raise DumpError(f"{path.name}: it ends early")


def check(path: Path) -> str:
    """What is wrong with a dump of either kind; "" if nothing is."""
    if path.suffix == ".sqlite":
        return check_sqlite(str(path))
    try:
        for _ in read(path):
            pass
    except DumpError as e:
        return str(e)
    return ""


def load_mariadb(path: Path, settings: Database) -> int:
    """Put a dump into the configured database, which must not have these tables yet. Returns the number of rows."""
    url = configured_url(settings)
    if is_sqlite(url):
        raise DumpError("the backup is of a MariaDB database, and [database] url is one of SQLite")
    problem = check(path)
    if problem:
        raise DumpError(problem)
    engine = writing_engine(url, settings.timeout_s)
    count, made = 0, set[str]()
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("SET SESSION foreign_key_checks = 0")
            connection.exec_driver_sql("SET SESSION sql_mode = CONCAT(@@sql_mode, ',NO_AUTO_VALUE_ON_ZERO')")
            _make_room(connection, {table for table, *_ in read(path)}, url.database or "")
            for table, create, columns, rows in read(path):
                if table not in made:
                    connection.exec_driver_sql(create.replace("%", "%%"))
                    made.add(table)
                if rows:
                    connection.execute(text(_insert(table, columns, "`")), _bound(rows))
                    count += len(rows)
    except SQLAlchemyError as e:
        raise DumpError(f"the accounts database refuses the dump: {getattr(e, 'orig', None) or e}") from None
    finally:
        engine.dispose()
    return count


def _make_room(connection: Connection, wanted: set[str], database: str) -> None:
    """Tables that are there and empty go, as a fresh installation has them. Raises DumpError for others."""
    there = sorted(wanted & {row[0] for row in connection.exec_driver_sql("SHOW TABLES")})
    quoted = {name: "`" + name.replace("`", "``") + "`" for name in there}
    full = [
        name
        for name in there
        if name != tables.VERSION_TABLE
        and connection.exec_driver_sql(f"SELECT 1 FROM {quoted[name]} LIMIT 1").first() is not None  # noqa: S608
    ]
    if full:
        raise DumpError(f"tables of the database {database} are not empty: {', '.join(full)}")
    for name in there:
        connection.exec_driver_sql(f"DROP TABLE {quoted[name]}")


def load_sqlite(path: Path, target: Path) -> None:
    """The tables of pymx from a dump of MariaDB, in a new SQLite file."""
    engine = create_engine(f"sqlite:///{target}")
    try:
        tables.metadata.create_all(engine)
        with engine.begin() as connection:
            for table, _, columns, rows in read(path):
                known = tables.metadata.tables.get(table)
                if known is None or not rows:
                    continue
                kept = [n for n, column in enumerate(columns) if column in known.columns]
                names = [columns[n] for n in kept]
                connection.execute(text(_insert(table, names, '"')), _bound([[row[n] for n in kept] for row in rows]))
    except SQLAlchemyError as e:
        raise DumpError(f"{path.name}: {getattr(e, 'orig', None) or e}") from None
    finally:
        engine.dispose()


def _insert(table: str, columns: list[str], quote_with: str) -> str:
    def quoted(name: str) -> str:
        return quote_with + name.replace(quote_with, quote_with * 2).replace(":", "\\:") + quote_with

    names, places = ", ".join(map(quoted, columns)), ", ".join(f":v{n}" for n in range(len(columns)))
    return f"INSERT INTO {quoted(table)} ({names}) VALUES ({places})"  # noqa: S608


def _bound(rows: list[list[object]]) -> list[dict[str, object]]:
    return [{f"v{n}": value for n, value in enumerate(row)} for row in rows]


def set_passwords(path: Path, stored: str) -> None:
    """Give every user of a SQLite database the same password; for a throw-away copy. Raises DumpError."""
    try:
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE users SET password = ?", (stored,))
            db.commit()
    except sqlite3.Error as e:
        raise DumpError(f"{path}: {e}") from None


def emails(path: Path) -> list[str]:
    """The users of a SQLite database. Raises DumpError."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            return [str(row[0]).lower() for row in db.execute("SELECT email FROM users ORDER BY email")]
    except sqlite3.Error as e:
        raise DumpError(f"{path}: {e}") from None
