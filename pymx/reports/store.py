"""The reports database: what was counted here, what was sent, what others reported. One SQLite file (WAL).

    dmarc_result  messages of a day that are alike, counted, for the report to the domain in `domain`
    tls_result    outgoing TLS connections of a day that went alike, counted
    sending       what became of the report about a day: one row per destination, and one with destination "" for all
    received      reports of others about domains here, whole

All of it is statistics: writes are not synced, a damaged file is moved aside and made anew. What strangers can make
grow is bounded: received reports fill three quarters of the size, then the oldest go, those without proof first; a
domain has `MAX_ROWS` different results a day, which go once they are reported; when the size is reached nothing new is
counted (`Full`). `prune` keeps to the days.

Methods block; daemons use `call`, which runs them one after the other in a thread of the store's own.
Errors: StoreUnavailable.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pymx import log
from pymx.events.store import to_wal
from pymx.reports.error import StoreUnavailable
from pymx.reports.received import Received

DAY_S = 86_400
_VERSION = 1
_BUSY_S = 5.0
_PAGE_OCTETS = 4096
MAX_ROWS = 10_000  # of a domain and a day; their report has 5 MB before it is packed, and some take no more than 10
_MAX_GROUPS = 2_000  # looked at in one pass
_SCHEMA = """
CREATE TABLE dmarc_result(
  day INTEGER NOT NULL, domain TEXT NOT NULL, published TEXT NOT NULL, row TEXT NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (day, domain, published, row)) WITHOUT ROWID;
CREATE TABLE tls_result(
  day INTEGER NOT NULL, domain TEXT NOT NULL, policy TEXT NOT NULL, failure TEXT NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (day, domain, policy, failure)) WITHOUT ROWID;
CREATE TABLE sending(
  kind TEXT NOT NULL, day INTEGER NOT NULL, domain TEXT NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL,
  tries INTEGER NOT NULL, next_s REAL NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (kind, day, domain, destination)) WITHOUT ROWID;
CREATE TABLE received(
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, domain TEXT NOT NULL, organization TEXT NOT NULL,
  report_id TEXT NOT NULL, begin_s INTEGER NOT NULL, end_s INTEGER NOT NULL, received_s INTEGER NOT NULL,
  proof TEXT NOT NULL, good INTEGER NOT NULL, bad INTEGER NOT NULL, document BLOB NOT NULL,
  UNIQUE (kind, organization, report_id, domain));
CREATE INDEX received_end ON received(end_s);
"""
T = TypeVar("T")
DmarcKey = tuple[int, str, str, str]
"""(day, domain, published policy, row), the last two as JSON."""
TlsKey = tuple[int, str, str, str]
"""(day, domain, policy, failure), the last two as JSON; failure "" for a success."""

_log = log.get("reports")


class Full(StoreUnavailable):
    """The database has reached its size."""


@dataclass(frozen=True, slots=True)
class Sending:
    """What became of a report, to one destination or (destination "") at all.

    `state`: sent, refused (we may not, or it was turned down), waiting (tried again at `next_s`), expired, or done.
    """

    kind: str
    day: int
    domain: str
    destination: str
    state: str
    tries: int = 0
    next_s: float = 0.0
    reason: str = ""


class Store:
    """The database; opened when it is first used."""

    def __init__(self, path: Path, *, max_octets: int) -> None:
        self._path = path
        self._max_pages = max(max_octets // _PAGE_OCTETS, 64)
        self._connection: sqlite3.Connection | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "reports")

    async def call(self, function: Callable[[Store], T]) -> T:
        """Run `function` with this store in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self)

    async def aclose(self) -> None:
        """As `close`, after what is running."""
        await self.call(Store.close)
        self._thread.shutdown()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- counting ---------------------------------------------------------------------------------------------------

    def add_dmarc(self, counts: Mapping[DmarcKey, int]) -> int:
        """Count messages; how many could not be counted. Raises Full."""
        return self._add("dmarc_result", ("published", "row"), counts)

    def add_tls(self, counts: Mapping[TlsKey, int]) -> int:
        """Count TLS sessions; how many could not be counted. Raises Full."""
        return self._add("tls_result", ("policy", "failure"), counts)

    def _add(self, table: str, columns: tuple[str, str], counts: Mapping[tuple[int, str, str, str], int]) -> int:
        one, other = columns
        lost = 0
        with self._transaction() as db:
            if self._pages(db) >= self._max_pages:
                raise Full("it has reached its size ([reports] max_mb)")
            room: dict[tuple[int, str], int] = {}
            for key, count in counts.items():
                # names from above, no values, are put into the statements
                changed = db.execute(
                    f"UPDATE {table} SET count = count + ? WHERE day = ? AND domain = ? AND {one} = ? AND {other} = ?",  # noqa: S608
                    (count, *key),
                ).rowcount
                if changed:
                    continue
                about = key[:2]
                if about not in room:
                    found = db.execute(f"SELECT count(*) FROM {table} WHERE day = ? AND domain = ?", about)  # noqa: S608
                    room[about] = MAX_ROWS - int(found.fetchone()[0])
                if room[about] <= 0:
                    lost += count
                    continue
                room[about] -= 1
                db.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)", (*key, count))  # noqa: S608
        return lost

    def groups(self, kind: str, before_day: int, now: float) -> list[tuple[int, str]]:
        """(day, domain) of which something was counted before `before_day`, and which are not done with or waiting.

        The oldest if they are very many.
        """
        with self._reading() as db:
            found = db.execute(
                f"SELECT DISTINCT day, domain FROM {kind}_result r WHERE day < ? AND NOT EXISTS ("  # noqa: S608
                " SELECT 1 FROM sending s WHERE s.kind = ? AND s.day = r.day AND s.domain = r.domain"
                " AND s.destination = '' AND (s.state != 'waiting' OR s.next_s > ?)) ORDER BY day, domain LIMIT ?",
                (before_day, kind, now, _MAX_GROUPS),
            )
            return [(int(day), str(domain)) for day, domain in found]

    def dmarc_rows(self, day: int, domain: str, limit: int) -> list[tuple[str, str, int]]:
        """(published policy, row, count), the largest counts first."""
        return self._counts("SELECT published, row, count FROM dmarc_result", day, domain, limit)

    def tls_rows(self, day: int, domain: str, limit: int) -> list[tuple[str, str, int]]:
        """(policy, failure, count), the largest counts first."""
        return self._counts("SELECT policy, failure, count FROM tls_result", day, domain, limit)

    def _counts(self, select: str, day: int, domain: str, limit: int) -> list[tuple[str, str, int]]:
        with self._reading() as db:
            found = db.execute(
                f"{select} WHERE day = ? AND domain = ? ORDER BY count DESC LIMIT ?", (day, domain, limit)
            )
            return [(str(a), str(b), int(count)) for a, b, count in found]

    def tls_since(self, day: int) -> list[tuple[str, str, str, int]]:
        """(domain, policy, failure, count) of all connections since `day`."""
        with self._reading() as db:
            found = db.execute(
                "SELECT domain, policy, failure, sum(count) FROM tls_result WHERE day >= ?"
                " GROUP BY domain, policy, failure ORDER BY domain, failure",
                (day,),
            )
            return [(str(a), str(b), str(c), int(count)) for a, b, c, count in found]

    # --- sending ----------------------------------------------------------------------------------------------------

    def sending(self, kind: str, day: int, domain: str) -> dict[str, Sending]:
        """What is known of a report, by destination."""
        with self._reading() as db:
            found = db.execute(
                "SELECT * FROM sending WHERE kind = ? AND day = ? AND domain = ?", (kind, day, domain)
            ).fetchall()
        return {row[3]: Sending(*row) for row in found}

    def sendings(self, since_day: int) -> list[Sending]:
        """All that is known of reports, newest day first."""
        with self._reading() as db:
            found = db.execute(
                "SELECT * FROM sending WHERE day >= ? ORDER BY day DESC, kind, domain, destination", (since_day,)
            )
            return [Sending(*row) for row in found]

    def note(self, sending: Sending) -> None:
        """Write down what became of a report. What a DMARC report was made of goes when it is done with."""
        with self._transaction() as db:
            if sending.kind == "dmarc" and not sending.destination and sending.state == "done":
                db.execute("DELETE FROM dmarc_result WHERE day = ? AND domain = ?", (sending.day, sending.domain))
            db.execute(
                "INSERT OR REPLACE INTO sending VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (sending.kind, sending.day, sending.domain, sending.destination, sending.state, sending.tries,
                 sending.next_s, sending.reason[:500]),
            )  # fmt: skip

    # --- received ---------------------------------------------------------------------------------------------------

    def add_received(self, received: Received, document: bytes) -> bool:
        """Keep a report; False when it was there already."""
        with self._transaction() as db:
            while self._pages(db) >= self._max_pages * 3 // 4 and self._drop_one(db):
                pass
            if self._pages(db) >= self._max_pages:
                raise Full("it has reached its size ([reports] max_mb)")
            done = db.execute(
                "INSERT OR IGNORE INTO received VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (received.kind, received.domain, received.organization, received.report_id, received.begin_s,
                 received.end_s, received.received_s, received.proof, received.good, received.bad,
                 zlib.compress(document, 1)),
            )  # fmt: skip
            return done.rowcount == 1

    def received(self, *, since_s: float = 0, domain: str = "", kind: str = "", limit: int = -1) -> list[Received]:
        """Reports whose period ended since then, newest first."""
        with self._reading() as db:
            found = db.execute(
                "SELECT kind, domain, organization, report_id, begin_s, end_s, received_s, proof, good, bad, id"
                " FROM received WHERE end_s >= ? AND (? = '' OR domain = ?) AND (? = '' OR kind = ?)"
                " ORDER BY end_s DESC, id DESC LIMIT ?",
                (since_s, domain, domain, kind, kind, limit),
            )
            return [Received(*row) for row in found]

    def document(self, id_: int) -> bytes | None:
        """A received report as it was given to `add_received`."""
        with self._reading() as db:
            found = db.execute("SELECT document FROM received WHERE id = ?", (id_,)).fetchone()
        return zlib.decompress(found[0]) if found else None

    # --- keeping house ----------------------------------------------------------------------------------------------

    def prune(self, *, now: float, received_days: int, counted_days: int) -> int:
        """Delete what is older; the number of rows. Makes no database where there is none."""
        if not self._path.exists():
            return 0
        today = int(now // DAY_S)
        with self._transaction() as db:
            gone = db.execute("DELETE FROM received WHERE received_s < ?", (now - received_days * DAY_S,)).rowcount
            for table in ("dmarc_result", "tls_result"):
                gone += db.execute(f"DELETE FROM {table} WHERE day < ?", (today - counted_days,)).rowcount  # noqa: S608
            gone += db.execute("DELETE FROM sending WHERE day < ?", (today - received_days,)).rowcount
        with self._reading() as db:
            db.execute("PRAGMA incremental_vacuum").fetchall()
        return gone

    # --- inside -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _drop_one(db: sqlite3.Connection) -> bool:
        """The received report that is missed least; False when there is none."""
        dropped = db.execute(
            "DELETE FROM received WHERE id IN (SELECT id FROM received ORDER BY instr(proof, 'pass') > 0, id LIMIT 1)"
        )
        return dropped.rowcount > 0

    @staticmethod
    def _pages(db: sqlite3.Connection) -> int:
        used, free = db.execute(
            "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()
        return int(used) - int(free)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        except (sqlite3.Error, OSError) as e:
            self.close()
            raise StoreUnavailable(str(e)) from e

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as e:
                self._move_aside(str(e))
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # a connection goes from the thread of the store to the one that closes it, never to two at once
        db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table, or never
            to_wal(db)
            db.execute("PRAGMA synchronous = NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                self._create(db)
            db.execute("SELECT count(*) FROM (SELECT 1 FROM sending LIMIT 1)").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            # another process may have been faster
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"it has version {version}, not {_VERSION}")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def _move_aside(self, reason: str) -> None:
        aside = self._path.with_name(self._path.name + ".damaged")
        _log.error("reports_damaged", path=str(aside), reason=reason)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(aside)
