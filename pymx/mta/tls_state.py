"""What is remembered of other domains' TLS: MTA-STS policies, and the best level that each domain has had.

`<data_dir>/outbound-tls.sqlite`, WAL, synchronous NORMAL: a cache, of which a power cut may take the last seconds. Only
the process with the queue opens it. A damaged file is moved aside and a new one begun, whenever it is found out. What
follows: policies are fetched again, and until then mail goes to their domains as to those never seen before. RFC 8461
s. 10.2 lives with that for a first contact; but an attacker who can hide the TXT record as well would not meet the old
policy any more, so it is an error in the log, counted, and told by `pymxctl doctor` as long as the damaged file is
there.

Every method is one hop into the store's own thread, the first one opens the file. The only error is `StateTrouble`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pymx import log, metrics

T = TypeVar("T")

MAX_DOMAINS = 100_000  # of each kind; the least recently seen go first
_SCHEMA = """
CREATE TABLE IF NOT EXISTS policy(
  domain TEXT PRIMARY KEY, id TEXT NOT NULL, text BLOB NOT NULL, fetched_s REAL NOT NULL, expires_s REAL NOT NULL,
  used_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS policy_fetched ON policy(fetched_s);
CREATE TABLE IF NOT EXISTS level(
  domain TEXT PRIMARY KEY, level INTEGER NOT NULL, seen_s REAL NOT NULL) WITHOUT ROWID;
"""
_log = log.get("mta")


class StateTrouble(Exception):
    """The store could not be read or written just now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A policy as it was fetched; times are Unix seconds."""

    domain: str
    id: str
    text: bytes
    fetched_s: float
    expires_s: float
    used_s: float


class TlsState:
    """The store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tls-state")

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _open(self) -> sqlite3.Connection:
        """Open or make the file. Raises sqlite3.Error or OSError; the next call tries again."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._connected()
        except sqlite3.OperationalError:
            raise  # full, locked, not to be opened: no reason to give up what is in it
        except sqlite3.DatabaseError as e:
            return self._begun_anew(e)

    def _begun_anew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        """In place of a damaged file, which nobody has open. Raises sqlite3.Error or OSError."""
        damaged = self._path.with_suffix(".damaged")
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(damaged)
        metrics.add("tls_state_failures")
        _log.error("tls_state_damaged", path=str(damaged), reason=f"{error}; MTA-STS policies are fetched anew")
        return self._connected()

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._db is None:
            self._db = self._open()
        try:
            return work(self._db)
        except sqlite3.DatabaseError as e:
            # a text that is no UTF-8 any more is found out by Python's module, whose errors have no code
            if getattr(e, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            self._disconnect()
            self._db = self._begun_anew(e)
            return work(self._db)

    def _close(self) -> None:
        self._closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if self._closed:
                raise StateTrouble("closed")
            try:
                return self._use(work)
            except (sqlite3.Error, OSError) as e:
                metrics.add("tls_state_failures")
                raise StateTrouble(str(e)) from None

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    # -- policies -----------------------------------------------------------------------------------------------------

    async def policy(self, domain: str) -> Stored | None:
        """The stored policy of a domain, expired or not."""

        def read(db: sqlite3.Connection) -> Stored | None:
            row = db.execute(
                "SELECT domain, id, text, fetched_s, expires_s, used_s FROM policy WHERE domain = ?", (domain,)
            ).fetchone()
            return Stored(*row) if row else None

        return await self._run(read)

    async def keep_policy(self, stored: Stored) -> None:
        """Put a policy in the place of the one before."""

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO policy VALUES (?, ?, ?, ?, ?, ?)",
                (stored.domain, stored.id, stored.text, stored.fetched_s, stored.expires_s, stored.used_s),
            )

        await self._run(write)

    async def used(self, domain: str, now: float) -> None:
        """Mail went to the domain: its policy is worth keeping fresh."""
        await self._run(lambda db: db.execute("UPDATE policy SET used_s = ? WHERE domain = ?", (now, domain)))

    async def due(
        self, fetched_before_s: float, expires_before_s: float, used_after_s: float, limit: int
    ) -> list[Stored]:
        """Policies in use that were fetched before a time or expire before another; the longest unfetched first."""

        def read(db: sqlite3.Connection) -> list[Stored]:
            rows = db.execute(
                "SELECT domain, id, text, fetched_s, expires_s, used_s FROM policy"
                " WHERE (fetched_s < ? OR expires_s < ?) AND used_s > ? ORDER BY fetched_s LIMIT ?",
                (fetched_before_s, expires_before_s, used_after_s, limit),
            )
            return [Stored(*row) for row in rows]

        return await self._run(read)

    async def tidy(self, now: float, forget_before_s: float) -> None:
        """Drop expired policies, levels not seen since a time, and what is over the limits."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM policy WHERE expires_s < ?", (now,))
            db.execute("DELETE FROM level WHERE seen_s < ?", (forget_before_s,))
            for table, column in (("policy", "used_s"), ("level", "seen_s")):
                db.execute(
                    f"DELETE FROM {table} WHERE domain IN"  # noqa: S608  # both names are written above
                    f" (SELECT domain FROM {table} ORDER BY {column} DESC LIMIT -1 OFFSET {MAX_DOMAINS})"
                )

        await self._run(write)

    # -- levels -------------------------------------------------------------------------------------------------------

    async def level(self, domain: str) -> tuple[int, float] | None:
        """The best level of a domain, and when it was last seen."""

        def read(db: sqlite3.Connection) -> tuple[int, float] | None:
            row = db.execute("SELECT level, seen_s FROM level WHERE domain = ?", (domain,)).fetchone()
            return (int(row[0]), float(row[1])) if row else None

        return await self._run(read)

    async def keep_level(self, domain: str, level: int, seen_s: float) -> None:
        await self._run(lambda db: db.execute("INSERT OR REPLACE INTO level VALUES (?, ?, ?)", (domain, level, seen_s)))
