"""The dump of a MariaDB that is written to meanwhile is one moment of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest
from support import mariadb as server
from support.wait import wait_for

from pymx.accounts import dump
from pymx.accounts.registry import Registry
from pymx.config.model import Database

pytestmark = pytest.mark.mariadb
ROWS_BETWEEN = 40_000


class Writer:
    """Adds an alias and the user it leads to in one transaction, over and over."""

    def __init__(self, database: server.Database) -> None:
        self.done = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._connection = pymysql.connect(
            user="pymx", password="geheim", unix_socket=str(database.server.socket), database=database.name
        )
        self._thread = threading.Thread(target=self._guarded)

    def _guarded(self) -> None:
        try:
            while not self._stop.is_set():
                self._write(self.done)
                self.done += 1
        except BaseException as error:
            self.failure = error

    def _write(self, n: int) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO aliases (domain_id, source, destinations) VALUES (1, 'a{n}@x.test', 'u{n}')")
            cursor.execute(f"INSERT INTO users (domain_id, password, email) VALUES (1, '', 'u{n}@x.test')")
        self._connection.commit()

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_for(lambda: self.failure or self.done > 10, what="rows")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._connection.close()
        if self.failure:
            raise self.failure


@pytest.fixture
def read_committed(mariadb_database: server.Database) -> Iterator[server.Database]:
    """On a server whose sessions see what others commit, as administrators set it: the dump must ask for more."""
    before = mariadb_database.execute("SELECT @@GLOBAL.tx_isolation")[0][0]
    mariadb_database.execute("SET GLOBAL tx_isolation = 'READ-COMMITTED'")
    yield mariadb_database
    mariadb_database.execute(f"SET GLOBAL tx_isolation = '{before}'")


def test_what_is_written_in_one_transaction_is_in_the_dump_together_or_not_at_all(
    read_committed: server.Database, tmp_path: Path
) -> None:
    """aliases is read first, users last, and the writer goes on all the time in between."""
    database = read_committed
    settings = Database(url=database.url)
    registry = Registry(settings)
    try:
        registry.migrate()
        registry.add_domain("x.test")
    finally:
        registry.close()
    database.execute("CREATE TABLE other (n INT PRIMARY KEY, words VARCHAR(100)) ENGINE=InnoDB")
    database.execute(f"INSERT INTO other SELECT seq, REPEAT('x', 100) FROM seq_1_to_{ROWS_BETWEEN}")
    with Writer(database) as writer:
        before = writer.done
        path = dump.dump(settings, tmp_path)
        after = writer.done
    assert after > before + 20  # transactions that were made while the dump was
    found: dict[str, list[list[object]]] = {}
    for table, _, columns, rows in dump.read(path):
        wanted = {"aliases": "source", "users": "email", "other": "n"}.get(table)
        if wanted:
            found.setdefault(table, []).extend([row[columns.index(wanted)] for row in rows])
    assert list(found) == ["aliases", "other", "users"]
    assert len(found["other"]) == ROWS_BETWEEN
    assert before <= len(found["users"]) <= after
    assert sorted(str(x)[1:] for x in found["aliases"]) == sorted(str(x)[1:] for x in found["users"])
