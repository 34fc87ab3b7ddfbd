"""Database URLs as the config has them: `sqlite:///PATH`, `mysql://USER:PASSWORD@HOST[:PORT]/NAME[?unix_socket=PATH]`.

The daemon reads through an async engine (aiosqlite, aiomysql), pymxctl writes through a sync one (sqlite3, PyMySQL).
`DatabaseUrlError` names the key and never shows the URL, because that holds a password.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from pymx.accounts.account import AccountsError
from pymx.config.model import Database
from pymx.config.secret import SecretUnavailable, read_secret
from pymx.events.store import to_wal

_EXPECTED = "expected sqlite:///PATH or mysql://USER:PASSWORD@HOST[:PORT]/NAME"


class DatabaseUrlError(AccountsError):
    """The configured URL can't be used."""


def configured_url(database: Database) -> URL:
    """The URL of the config, from `url_file` or `url_credential` when one is set. Raises DatabaseUrlError."""
    key, text = "[database] url", database.url
    if database.url_file or database.url_credential:
        key = "[database] url_file" if database.url_file else "[database] url_credential"
        try:
            text = read_secret("[database]", "url", database.url_file, database.url_credential).strip()
        except SecretUnavailable as e:
            raise DatabaseUrlError(str(e)) from None
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise DatabaseUrlError(f"{key}: not a URL; {_EXPECTED}") from None
    backend = url.drivername.partition("+")[0]
    if backend not in ("sqlite", "mysql", "mariadb"):
        raise DatabaseUrlError(f"{key}: {url.drivername}:// is not known; {_EXPECTED}")
    if not url.database:
        raise DatabaseUrlError(f"{key}: no {'file' if backend == 'sqlite' else 'database'} named; {_EXPECTED}")
    return url.set(drivername="sqlite" if backend == "sqlite" else "mysql")


def is_sqlite(url: URL) -> bool:
    return url.drivername == "sqlite"


def sqlite_path(url: URL) -> Path:
    return Path(url.database or "")


def reading_url(url: URL) -> URL:
    """For the daemon. SQLite is opened only if the file is there: reading must not leave an empty database behind."""
    if is_sqlite(url):
        uri = f"file:{quote(str(sqlite_path(url)))}"
        return URL.create("sqlite+aiosqlite", database=uri, query={"mode": "rw", "uri": "true"})
    return _mysql(url, "mysql+aiomysql")


def load_driver(database: Database) -> None:
    """Import what an engine for `reading_url` needs, with no connection made. Raises DatabaseUrlError."""
    reading_url(configured_url(database)).get_dialect().import_dbapi()


def _mysql(url: URL, driver: str) -> URL:
    return url.set(drivername=driver).update_query_dict({"charset": "utf8mb4"})


def writing_engine(url: URL, timeout_s: int) -> Engine:
    """For pymxctl: a sync engine whose transactions are the caller's. Makes the SQLite file when it is missing."""
    if not is_sqlite(url):
        return create_engine(_mysql(url, "mysql+pymysql"), connect_args={"connect_timeout": timeout_s})
    engine = create_engine(url, connect_args={"timeout": timeout_s})
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    to_wal(connection)  # the daemon reads while pymxctl writes
    connection.execute("PRAGMA foreign_keys=ON")
