"""Who has been told to come back later, on disk: one SQLite file for all processes of the server (RFC 6647).

A triplet (network, sender, recipient) may pass when it comes again after `delay_s` and within `window_s`. Once one has
passed, mail from that network for that sender's domain is known for `remember_s` and is not delayed again (s. 5).
Only hashes are kept. Above `max_entries` those seen longest ago go.

A damaged file is moved aside and begun anew, and one that another process has begun anew, or that was removed, is left
for the one that is there now: at worst some senders are told once more. Synchronous, used in one thread. Errors:
`GreylistUnusable`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from pymx.events.store import make_file, to_wal

NAME = "greylist.sqlite"
_SCHEMA = 1
_BUSY_S = 2.0
_TRIM_EVERY = 1000
_TABLES = """
DROP TABLE IF EXISTS triplet;
DROP TABLE IF EXISTS client;
CREATE TABLE triplet(hash INTEGER PRIMARY KEY, first REAL NOT NULL);
CREATE TABLE client(hash INTEGER PRIMARY KEY, last REAL NOT NULL);
CREATE INDEX triplet_first ON triplet(first);
CREATE INDEX client_last ON client(last);
PRAGMA user_version=1;
"""


class GreylistUnusable(Exception):
    """Busy, or the disk has a problem; the text says what."""


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds; see the module."""

    delay_s: float
    window_s: float
    remember_s: float


class Greylist:
    """The file, opened when it is first needed. `now` is in Unix seconds: it holds over restarts."""

    def __init__(self, path: Path, times: Times, *, max_entries: int = 200_000) -> None:
        self._path = path
        self._times = times
        self._max_entries = max_entries
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._writes = 0

    def may_pass(self, network: str, mail_from: str, recipient: str, now: float) -> float:
        """0.0 when mail of this triplet may come in, else the seconds after which it may. Raises GreylistUnusable."""
        domain = mail_from.rpartition("@")[2]
        triplet, client = _hash(network, mail_from, recipient), _hash(network, domain)
        if self._db is not None and not self._is_current():
            self.close()
        try:
            return self._ask(triplet, client, now)
        except sqlite3.OperationalError as e:
            raise GreylistUnusable(str(e)) from e
        except sqlite3.DatabaseError as e:
            self._move_aside()
            raise GreylistUnusable(f"damaged, moved aside: {e}") from e
        except OSError as e:
            raise GreylistUnusable(e.strerror or str(e)) from e

    def _ask(self, triplet: int, client: int, now: float) -> float:
        db = self._open()
        times = self._times
        known = db.execute("SELECT last FROM client WHERE hash=?", (client,)).fetchone()
        if known is not None and now - known[0] < times.remember_s:
            if now - known[0] > times.remember_s / 100:  # else nothing worth writing has changed
                self._write("UPDATE client SET last=? WHERE hash=?", (now, client))
            return 0.0
        seen = db.execute("SELECT first FROM triplet WHERE hash=?", (triplet,)).fetchone()
        # a first time that lies ahead: the clock was wrong then
        if seen is None or not 0 <= now - seen[0] <= times.window_s:
            self._write("INSERT OR REPLACE INTO triplet VALUES(?, ?)", (triplet, now))
            self._trim(now)
            return times.delay_s
        if now - seen[0] < times.delay_s:
            return float(seen[0] + times.delay_s - now)
        self._write("INSERT OR REPLACE INTO client VALUES(?, ?)", (client, now))
        self._write("DELETE FROM triplet WHERE hash=?", (triplet,))
        return 0.0

    def _write(self, statement: str, values: tuple[float, ...]) -> None:
        self._open().execute(statement, values)
        self._writes += 1

    def _trim(self, now: float) -> None:
        """Now and then what is over goes, and what is too much."""
        if self._writes % _TRIM_EVERY:
            return
        db = self._open()
        db.execute("DELETE FROM triplet WHERE first < ? OR first > ?", (now - self._times.window_s, now + 1))
        db.execute("DELETE FROM client WHERE last < ?", (now - self._times.remember_s,))
        for table, column in (("triplet", "first"), ("client", "last")):
            there = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            if there > self._max_entries:
                db.execute(
                    f"DELETE FROM {table} WHERE hash IN (SELECT hash FROM {table} ORDER BY {column} LIMIT ?)",  # noqa: S608
                    (there - self._max_entries * 3 // 4,),
                )

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            make_file(self._path, 0o600)
            db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                to_wal(db)
                db.execute("PRAGMA synchronous=NORMAL")
                if _version(db) != _SCHEMA:
                    _create(db)
            except BaseException:
                db.close()
                raise
            self._db = db
            self._inode = self._path.stat().st_ino
        return self._db

    def _is_current(self) -> bool:
        """Is it still the file of that name?"""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def _move_aside(self) -> None:
        is_ours = self._db is None or self._is_current()
        self.close()
        if not is_ours:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(self._path.with_name(f"{self._path.name}.damaged"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db) != _SCHEMA:  # another process may have been faster
            for statement in _TABLES.split(";"):
                db.execute(statement)
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _hash(*parts: str) -> int:
    data = "\0".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big", signed=True)
