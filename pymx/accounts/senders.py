"""What forwarding has to remember, in a small SQLite database of all processes (`<data_dir>/forwarding.sqlite`).

- Original senders that are too long to be written into a rewritten one, by their token: durable when `keep` returns,
  since the message that needs it is accepted after that. One row for each sender, however often it writes.
- Destinations of aliases that refused for good, so that the next message for them is refused in its own session.

Rows go when they are too old; above `max_senders` the oldest go first. Without the file everything works but the way
back of long senders, so a damaged one is put aside (`….damaged`) and a new one begun.

Errors: `SendersUnavailable` (temporary).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pymx import log
from pymx.accounts.account import AccountsError
from pymx.events.store import to_wal

_BUSY_S = 5.0
_TABLES = """
CREATE TABLE IF NOT EXISTS senders (token TEXT PRIMARY KEY, address TEXT NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS senders_by_day ON senders (day);
CREATE TABLE IF NOT EXISTS refusals (address TEXT PRIMARY KEY, status TEXT NOT NULL, until_s REAL NOT NULL)
  WITHOUT ROWID;
"""

_T = TypeVar("_T")
_log = log.get("accounts")


class SendersUnavailable(AccountsError):
    """The database can't be used now."""


class Senders:
    """The database of one process; opened when first used."""

    def __init__(self, path: Path, *, max_senders: int) -> None:
        self._path = path
        self._max_senders = max_senders
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="senders")
        self._database: sqlite3.Connection | None = None

    async def keep(self, token: str, address: str, day: int) -> None:
        """Remember a sender; the day is that of its last message."""
        await self._do(
            lambda db: db.execute(
                "INSERT INTO senders VALUES (?, ?, ?) ON CONFLICT (token) DO UPDATE SET day = excluded.day"
                " WHERE day < excluded.day",
                (token, address, day),
            )
        )

    async def find(self, token: str) -> str | None:
        """The sender of a token."""
        row = await self._do(lambda db: db.execute("SELECT address FROM senders WHERE token = ?", (token,)).fetchone())
        return None if row is None else str(row[0])

    async def refused(self, address: str, status: str, until_s: float) -> None:
        """Remember that a destination takes no mail, with the enhanced status code it gave."""
        await self._do(lambda db: db.execute("REPLACE INTO refusals VALUES (?, ?, ?)", (address, status, until_s)))

    async def refusal(self, address: str, now: float) -> str | None:
        """The status code with which a destination has refused, if that still counts."""
        row = await self._do(
            lambda db: db.execute(
                "SELECT status FROM refusals WHERE address = ? AND until_s > ?", (address, now)
            ).fetchone()
        )
        return None if row is None else str(row[0])

    async def purge(self, before_day: int, now: float) -> None:
        """Forget senders last seen before that day, and what is too much or over."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM senders WHERE day < ?", (before_day,))
            db.execute("DELETE FROM refusals WHERE until_s <= ?", (now,))
            (count,) = db.execute("SELECT count(*) FROM senders").fetchone()
            if count > self._max_senders:
                db.execute(
                    "DELETE FROM senders WHERE token IN (SELECT token FROM senders ORDER BY day LIMIT ?)",
                    (count - self._max_senders,),
                )

        await self._do(run)

    def close(self) -> None:
        """End the thread and the connection."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        except (sqlite3.Error, OSError) as e:
            raise SendersUnavailable(f"{self._path.name}: {e}") from None

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return work(self._open())
        except sqlite3.OperationalError:
            raise  # busy, disk full: it may be better next time
        except sqlite3.DatabaseError as e:
            self._close()
            self._path.rename(self._path.with_name(self._path.name + ".damaged"))
            _log.error("forwarding_store_damaged", path=self._path, reason=f"{e}; a new one is begun")
            return work(self._open())

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            try:
                to_wal(database)
                database.execute("PRAGMA synchronous = FULL")
                database.executescript(_TABLES)
            except BaseException:
                database.close()
                raise
            self._path.chmod(0o600)
            self._database = database
        return self._database
