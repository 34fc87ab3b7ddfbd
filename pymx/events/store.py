"""The store of events: SQLite, written by one process, read by pymxctl while that runs and while it doesn't.

    event(id, queue_id, session, body)     id is the time in ms times 4096, plus a counter: rows lie in order of time

Queue ids and sessions have an index; addresses and Message-IDs are looked for in the text, newest first, which is quick
because the store has a limit of size. A commit is not synced: losing the last seconds of a log in a power cut is fine.

`make_file` and `to_wal` are for every small store that several processes of the server begin at once, at its first
start; they are here because this is the room with SQLite that all others may use.

Errors: `StoreError`, with the words of SQLite; `StoreDamaged` when it can't be read any more. `open` moves such a one
aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pymx.events.event import Event, Row, as_stored, from_row

FILE = "events.sqlite"
_VERSION = 1
_SHIFT = 4096
_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE event(id INTEGER PRIMARY KEY, queue_id TEXT, session TEXT, body TEXT NOT NULL);
CREATE INDEX event_message ON event(queue_id) WHERE queue_id IS NOT NULL;
CREATE INDEX event_session ON event(session) WHERE session IS NOT NULL;
"""
_COLUMNS = f"id / {_SHIFT}, queue_id, session, body"
_MAX_IDS = 500  # in one query
_WAL_TRIES, _WAL_PAUSE_S = 100, 0.05


class StoreError(Exception):
    """The store can't be read or written."""


class StoreDamaged(StoreError):
    """It is no database, or not one of ours."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as e:
        raise StoreError(str(e)) from e
    except sqlite3.DatabaseError as e:
        raise StoreDamaged(str(e)) from e


def make_file(path: Path, mode: int) -> None:
    """An empty file with that mode, unless there is one.

    That one must not be opened: closing it would take the locks of all this process's connections to it (POSIX), and
    then the next program to end its own connection deletes the journal that we write to.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode))


def to_wal(db: sqlite3.Connection) -> None:
    """SQLite's own patience does not hold for this: another process that makes the same file just now is an error."""
    for left in range(_WAL_TRIES, -1, -1):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as e:
            if not left or e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(_WAL_PAUSE_S)


class EventStore:
    """Blocking. `path` is the database file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counter = random.randrange(_SHIFT)  # noqa: S311  # so that ids of two runs in one ms differ
        self._db: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError("not open")
        return self._db

    # --- writing: the recorder

    def open(self) -> Path | None:
        """Open for writing, made if need be. Returns where a damaged one was moved to."""
        try:
            with _translated():
                self._open()
        except StoreDamaged:
            return self.begin_anew()
        return None

    def begin_anew(self) -> Path:
        """Move a damaged one aside, and open an empty one."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        with _translated():
            self._open()
        return aside

    def _open(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        db = self._db
        self.path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if tables:
                raise sqlite3.DatabaseError(f"version {version}")
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")
        db.execute("SELECT max(id) FROM event").fetchone()

    def add(self, rows: Sequence[Row]) -> None:
        """One commit."""
        numbered = []
        for at_ms, queue_id, session, body in rows:
            self._counter = (self._counter + 1) % _SHIFT
            numbered.append((at_ms * _SHIFT + self._counter, queue_id, session, body))
        with _translated():
            db = self.db
            db.execute("BEGIN")
            try:
                db.executemany("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?)", numbered)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def forget(self, *, before_s: float, max_octets: int) -> int:
        """Delete what is too old, and the oldest of what is too much. Returns how many."""
        with _translated():
            gone = self.db.execute("DELETE FROM event WHERE id < ?", (int(before_s * 1000) * _SHIFT,)).rowcount
            while self.octets() > max_octets:
                (count,) = self.db.execute("SELECT count(*) FROM event").fetchone()
                some = max(count // 20, 1)
                found = self.db.execute("SELECT id FROM event ORDER BY id LIMIT 1 OFFSET ?", (some - 1,)).fetchone()
                if found is None:
                    break
                gone += self.db.execute("DELETE FROM event WHERE id <= ?", found).rowcount
        return gone

    def octets(self) -> int:
        """What the rows and indexes take; the file may be larger, and is used again."""
        pages, free, size = (
            self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()

    # --- reading: pymxctl

    def open_to_read(self) -> None:
        """Raises StoreError; FileNotFoundError when there is no store yet."""
        if not self.path.exists():
            raise FileNotFoundError(self.path)
        with _translated():
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA query_only = 1")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if not version:
            raise FileNotFoundError(self.path)  # it is being made
        if version != _VERSION:
            raise StoreError(f"{self.path} is of version {version}, not {_VERSION}")

    def of_messages(self, queue_ids: Iterable[str]) -> list[Event]:
        """Everything about these messages, oldest first."""
        return self._of("queue_id", queue_ids)

    def of_sessions(self, sessions: Iterable[str]) -> list[Event]:
        """Everything that happened in these sessions, oldest first."""
        return self._of("session", sessions)

    def _of(self, column: str, values: Iterable[str]) -> list[Event]:
        wanted = sorted(set(values))[:_MAX_IDS]
        marks = ", ".join("?" * len(wanted))
        return self._events(f"SELECT {_COLUMNS} FROM event WHERE {column} IN ({marks}) ORDER BY id", wanted)  # noqa: S608

    def containing(
        self, words: Sequence[str], *, since_s: float = 0.0, until_s: float = 1e11, level: int = 0, limit: int = 1000
    ) -> list[Event]:
        """The newest `limit` events with all `words` in them, in any case, newest first; of warnings and errors alone
        if `level` is that of warnings."""
        conditions = ["id >= ?", "id < ?"]
        values: list[object] = [int(since_s * 1000) * _SHIFT, int(until_s * 1000) * _SHIFT]
        if level:
            # few have one of these in another place: the caller looks at `Event.level`
            conditions.append("(instr(body, ?) OR instr(body, ?))")
            values += [f'"level":{logging.WARNING}', f'"level":{logging.ERROR}']
        for word in words:
            conditions.append("(body LIKE ? ESCAPE '|' OR queue_id = ? OR session = ?)")
            escaped = as_stored(word).replace("|", "||").replace("%", "|%").replace("_", "|_")
            values += [f"%{escaped}%", word, word]
        where = " AND ".join(conditions)
        return self._events(
            f"SELECT {_COLUMNS} FROM event WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608  # no values in it
            [*values, limit],
        )

    def since(self, since_s: float) -> list[tuple[int, Event]]:
        """What happened since then, oldest first, each with its id: events of one process may come in after later ones
        of another."""
        with _translated():
            rows = self.db.execute(
                f"SELECT id, {_COLUMNS} FROM event WHERE id >= ? ORDER BY id",  # noqa: S608
                (int(since_s * 1000) * _SHIFT,),
            ).fetchall()
        return [(int(row[0]), from_row(row[1:])) for row in rows]

    def span(self) -> tuple[float, float, int]:
        """Time of the oldest and the newest event, and how many there are."""
        with _translated():
            low, high, count = self.db.execute("SELECT min(id), max(id), count(*) FROM event").fetchone()
        return (low or 0) / _SHIFT / 1000, (high or 0) / _SHIFT / 1000, int(count)

    def _events(self, sql: str, values: Sequence[object]) -> list[Event]:
        with _translated():
            return [from_row(row) for row in self.db.execute(sql, values)]
