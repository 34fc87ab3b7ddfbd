"""The state of the queue in SQLite: what waits where, when it is tried next, what the attempts said.

`<directory>/state.sqlite`, WAL, synchronous FULL: a commit is on disk when it returns. Blocking; only threads and
pymxctl call it. Everything here can be rebuilt from the content files, except the history of attempts, holds and the
time of the next try.

    message    one row per content file
    delivery   one row per message and destination that waits; `lease` is 0 or the runner whose window it is in
    recipient  one row per recipient that waits
    attempt    what was tried, for messages that still wait

`delivery.id` grows for ever (AUTOINCREMENT), so "what is new" is "what has a higher id". `fresh` is 1 until the first
attempt. `setting.changes` is counted up by whoever alters rows that a runner may have in its window.

Errors: `StateDamaged` when the database can't be read any more; OSError for a full or failing disk.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pymx.queue.item import Outcome, QueueId, Result

_VERSION = 1
_BUSY_S = 60.0
_ROWS_AT_ONCE = 500  # in one statement: far below what SQLite takes, even of six columns each

_SCHEMA = """
CREATE TABLE message(
  queue_id TEXT PRIMARY KEY, mail_from TEXT NOT NULL, account TEXT NOT NULL, arrived_s REAL NOT NULL,
  size_octets INTEGER NOT NULL, local INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE delivery(
  id INTEGER PRIMARY KEY AUTOINCREMENT, queue_id TEXT NOT NULL, destination TEXT NOT NULL,
  fresh INTEGER NOT NULL DEFAULT 1, next_s REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  lease INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '');
CREATE INDEX delivery_message ON delivery(queue_id);
CREATE INDEX delivery_destination ON delivery(destination, fresh, next_s);
CREATE INDEX delivery_deferred ON delivery(next_s) WHERE fresh = 0 AND lease = 0 AND held = 0;
CREATE TABLE recipient(
  queue_id TEXT NOT NULL, number INTEGER NOT NULL, destination TEXT NOT NULL, address TEXT NOT NULL,
  domain TEXT NOT NULL, PRIMARY KEY (queue_id, number)) WITHOUT ROWID;
CREATE TABLE attempt(
  queue_id TEXT NOT NULL, at_s REAL NOT NULL, number INTEGER NOT NULL, address TEXT NOT NULL, result TEXT NOT NULL,
  status TEXT NOT NULL, mx TEXT NOT NULL, ip TEXT NOT NULL, tls TEXT NOT NULL, reply TEXT NOT NULL);
CREATE INDEX attempt_message ON attempt(queue_id, at_s);
CREATE TABLE setting(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO setting VALUES ('changes', 0);
"""


class StateDamaged(Exception):
    """The state database is not readable; rebuild it from the files."""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """The rows of an accepted message. `recipients` are (number, destination, address, domain)."""

    queue_id: QueueId
    mail_from: str
    account: str
    arrived_s: float
    size_octets: int
    local: bool
    recipients: Sequence[tuple[int, str, str, str]]


@dataclass(frozen=True, slots=True)
class Item:
    """A delivery in a runner's window. `numbers` are the waiting recipients' places in the envelope, `told` whether the
    sender was told of a delay.
    """

    delivery: int
    queue_id: QueueId
    destination: str
    fresh: bool
    attempts: int
    numbers: tuple[int, ...]
    next_s: float
    arrived_s: float = 0.0
    told: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an attempt, to be recorded. `outcomes` are (number, Outcome); `next_s` counts for deferred ones.

    With `postponed` (why) there was no attempt: only the time of the next one changes.
    """

    item: Item
    at_s: float
    outcomes: Sequence[tuple[int, Outcome]]
    next_s: float
    told: bool = False
    whole: bool = False  # the item holds every recipient of the message
    postponed: str = ""

    @property
    def done(self) -> list[int]:
        return [number for number, outcome in self.outcomes if outcome.result is not Result.DEFERRED]


@dataclass(slots=True)
class Want:
    """What a runner asks for: where it stopped reading, how much it has room for."""

    now: float
    lease: int
    after_id: int
    fresh_limit: int
    after_due: tuple[float, int]  # (next_s, id)
    deferred_limit: int
    per_site: int
    waiting: Mapping[tuple[str, bool], int]  # site and whether new mail → deliveries that wait in the window
    sites: Mapping[str, str] = field(default_factory=dict)  # destination → site, where they differ
    refill: Sequence[tuple[str, bool]] = ()  # destinations that had more (new, or deferred) than fitted in


@dataclass(slots=True)
class Taken:
    """Deliveries now leased, and where reading stopped. `spilled` have more than fitted in; `more`: ask again."""

    items: list[Item] = field(default_factory=list)
    after_id: int = 0
    after_due: tuple[float, int] = (0.0, 0)
    spilled: set[tuple[str, bool]] = field(default_factory=set)
    refilled: set[tuple[str, bool]] = field(default_factory=set)
    more: bool = False


@contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors as OSError (disk) or StateDamaged."""
    try:
        yield
    except sqlite3.OperationalError as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, f"queue state: {e}") from e
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise StateDamaged(str(e)) from e
        raise OSError(errno.EIO, f"queue state: {e}") from e
    except sqlite3.DatabaseError as e:
        raise StateDamaged(str(e)) from e


class State:
    """One connection. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._durable = True
        self._inode = (0, 0)

    def open(self, *, create: bool = False) -> None:
        """Open; a missing or empty file is damage too, because messages may wait for which it had rows.

        Raises StateDamaged, OSError.
        """
        with translated():
            if not create and not self.path.exists():
                raise StateDamaged("no state database")
            db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA cache_size = -4096")
                if create:
                    for statement in _SCHEMA.split(";\n"):
                        db.execute(statement)
                    # a runner notices by this number that its window is from another database
                    db.execute("UPDATE setting SET value = ? WHERE name = 'changes'", (secrets.randbits(40),))
                    db.execute(f"PRAGMA user_version = {_VERSION}")
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version != _VERSION:
                    raise StateDamaged(f"state database has format {version}, not {_VERSION}")
            except BaseException:
                db.close()
                raise
        self._db = db
        self._durable = True
        self._inode = _inode(self.path)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StateDamaged("the state database is not open")
        return self._db

    def was_replaced(self) -> bool:
        """Whether the file at the path is another one than that we have open (it was moved aside and rebuilt)."""
        return _inode(self.path) != self._inode

    def check(self) -> None:
        """Read the whole database. Raises StateDamaged."""
        with translated():
            answer = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise StateDamaged(str(answer))

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All or nothing; on disk when it ends, unless `durable` is False (leases may be lost in a power cut)."""
        with translated():
            if durable != self._durable:
                self.db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.commit()
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def commit(self) -> None:
        self.db.execute("COMMIT")

    # -- writing, inside a transaction ---------------------------------------------------------------------------

    # Each step of a statement lets go of the interpreter lock, and in a busy server getting it back takes longer than
    # the step: so as many rows as there are in one.

    def insert(self, messages: Sequence[NewMessage]) -> None:
        self._insert(
            "message(queue_id, mail_from, account, arrived_s, size_octets, local)",
            [(m.queue_id, m.mail_from, m.account, m.arrived_s, m.size_octets, m.local) for m in messages],
        )
        self._insert(
            "delivery(queue_id, destination, next_s)",
            [
                (m.queue_id, destination, m.arrived_s)
                for m in messages
                for destination in dict.fromkeys(destination for _, destination, _, _ in m.recipients)
            ],
        )
        self._insert(
            "recipient(queue_id, number, destination, address, domain)",
            [(m.queue_id, *row) for m in messages for row in m.recipients],
        )

    def _insert(self, into: str, rows: Sequence[tuple[object, ...]]) -> None:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            marks = ",".join([f"({','.join('?' * len(part[0]))})"] * len(part))
            self.db.execute(f"INSERT INTO {into} VALUES {marks}", [value for row in part for value in row])  # noqa: S608

    def record(self, ends: Iterable[Finished]) -> list[QueueId]:
        """Write down what attempts led to; the messages that need nothing more, whose files may go."""
        gone: list[QueueId] = []
        untried: list[QueueId] = []
        tried: list[QueueId] = []
        for end in ends:
            if end.whole and not end.postponed and len(end.done) == len(end.item.numbers):
                (tried if end.item.attempts else untried).append(end.item.queue_id)
            elif self._record(end):
                gone.append(end.item.queue_id)
        self.delete(untried, was_tried=False)
        self.delete(tried)
        return gone + untried + tried

    def _record(self, finished: Finished) -> bool:
        """As `record`, of what is left of its message besides; True when nothing is."""
        db, item = self.db, finished.item
        if finished.postponed:
            db.execute(
                "UPDATE delivery SET fresh = 0, lease = 0, next_s = ?, reason = ?"
                " WHERE queue_id = ? AND destination = ?",
                (finished.next_s, finished.postponed, item.queue_id, item.destination),
            )
            return False
        done = finished.done
        if len(done) == len(item.numbers):
            db.execute("DELETE FROM delivery WHERE queue_id = ? AND destination = ?", (item.queue_id, item.destination))
            if db.execute("SELECT 1 FROM delivery WHERE queue_id = ? LIMIT 1", (item.queue_id,)).fetchone() is None:
                self.delete([item.queue_id])
                return True
        else:
            reason = next((o.reply for _, o in finished.outcomes if o.result is Result.DEFERRED), "")
            db.execute(
                "UPDATE delivery SET fresh = 0, lease = 0, attempts = ?, next_s = ?, reason = ?"
                " WHERE queue_id = ? AND destination = ?",
                (item.attempts + 1, finished.next_s, reason, item.queue_id, item.destination),
            )
        if done:
            db.executemany(
                "DELETE FROM recipient WHERE queue_id = ? AND number = ?", [(item.queue_id, number) for number in done]
            )
        if finished.told:
            db.execute("UPDATE message SET told = 1 WHERE queue_id = ?", (item.queue_id,))
        db.executemany(
            "INSERT INTO attempt(queue_id, at_s, number, address, result, status, mx, ip, tls, reply)"
            " SELECT ?,?,?,?,?,?,?,?,?,? WHERE EXISTS (SELECT 1 FROM message WHERE queue_id = ?)",
            [
                (item.queue_id, finished.at_s, item.attempts + 1, str(o.recipient.address), o.result.value, o.status,
                 o.mx, o.address, o.tls, o.reply, item.queue_id)
                for _, o in finished.outcomes
            ],
        )  # fmt: skip
        return False

    def delete(self, queue_ids: Sequence[QueueId], *, was_tried: bool = True) -> None:
        tables = ("message", "delivery", "recipient", "attempt") if was_tried else ("message", "delivery", "recipient")
        for start in range(0, len(queue_ids), _ROWS_AT_ONCE):
            part = queue_ids[start : start + _ROWS_AT_ONCE]
            marks = ",".join("?" * len(part))
            for table in tables:
                self.db.execute(f"DELETE FROM {table} WHERE queue_id IN ({marks})", part)  # noqa: S608

    def take(self, want: Want) -> Taken:
        """Lease due deliveries: new ones in order, deferred ones as they fall due, never one destination alone."""
        taken = Taken(after_id=want.after_id, after_due=want.after_due)
        room = _Room(want)
        columns = "id, queue_id, destination, fresh, attempts, next_s"
        rows: list[tuple[int, str, str, int, int, float]] = []
        if want.fresh_limit:
            found = self.db.execute(
                f"SELECT {columns} FROM delivery WHERE id > ? AND fresh = 1 AND lease = 0 AND held = 0"  # noqa: S608
                " ORDER BY id LIMIT ?",
                (want.after_id, want.fresh_limit),
            ).fetchall()
            rows += room.admit(found)
            taken.more = len(found) == want.fresh_limit
            # nothing new up to the end: the next look need not go over all that is deferred
            last = found[-1][0] if taken.more else self.db.execute("SELECT max(id) FROM delivery").fetchone()[0]
            taken.after_id = max(taken.after_id, last or 0)
        if want.deferred_limit:
            found = self.db.execute(
                f"SELECT {columns} FROM delivery WHERE fresh = 0 AND lease = 0 AND held = 0"  # noqa: S608
                " AND (next_s, id) > (?, ?) AND next_s <= ? ORDER BY next_s, id LIMIT ?",
                (*want.after_due, want.now, want.deferred_limit),
            ).fetchall()
            rows += room.admit(found)
            full = len(found) == want.deferred_limit
            taken.after_due = (found[-1][5], found[-1][0]) if full else (want.now, 0)
            taken.more = taken.more or full
        for destination, fresh in want.refill:
            found = self.db.execute(
                f"SELECT {columns} FROM delivery WHERE destination = ? AND fresh = ? AND next_s <= ?"  # noqa: S608
                " AND lease = 0 AND held = 0 ORDER BY next_s LIMIT ?",
                (destination, fresh, want.now, room.left(destination, fresh=fresh)),
            ).fetchall()
            known = {row[0] for row in rows}
            rows += room.admit([row for row in found if row[0] not in known])
            taken.refilled.add((destination, fresh))
        taken.spilled = room.spilled
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            taken.items += self._leased(rows[start : start + _ROWS_AT_ONCE], want.lease)
        return taken

    def _leased(self, rows: Sequence[tuple[int, str, str, int, int, float]], lease: int) -> list[Item]:
        ids = [row[0] for row in rows]
        among = f"id IN ({','.join('?' * len(ids))})"
        self.db.execute(f"UPDATE delivery SET lease = ? WHERE {among}", (lease, *ids))  # noqa: S608
        messages = {
            delivery: (arrived_s, bool(told))
            for delivery, arrived_s, told in self.db.execute(
                "SELECT d.id, m.arrived_s, m.told FROM delivery d JOIN message m ON m.queue_id = d.queue_id"  # noqa: S608
                f" WHERE d.{among}",
                ids,
            ).fetchall()
        }
        numbers: dict[int, list[int]] = {delivery: [] for delivery in ids}
        for delivery, number in self.db.execute(
            "SELECT d.id, r.number FROM delivery d"  # noqa: S608
            " JOIN recipient r ON r.queue_id = d.queue_id AND r.destination = d.destination"
            f" WHERE d.{among} ORDER BY r.number",
            ids,
        ).fetchall():
            numbers[delivery].append(number)
        return [
            Item(delivery, QueueId(queue_id), destination, bool(is_fresh), attempts, tuple(numbers[delivery]), next_s,
                 *messages.get(delivery, (next_s, False)))
            for delivery, queue_id, destination, is_fresh, attempts, next_s in rows
        ]  # fmt: skip

    def void_leases(self, deliveries: Iterable[int] | None = None) -> None:
        """Give leased deliveries back: some, or all (when no runner can be alive)."""
        if deliveries is None:
            self.db.execute("UPDATE delivery SET lease = 0 WHERE lease != 0")
        else:
            self.db.executemany("UPDATE delivery SET lease = 0 WHERE id = ?", [(d,) for d in deliveries])

    def hold(self, deliveries: Sequence[int]) -> None:
        self._alter("held = 1", deliveries)

    def retry(self, deliveries: Sequence[int], now: float, *, release: bool) -> None:
        """Due now. As deferred mail: a runner reads that again after a change, new mail only once."""
        self._alter(f"next_s = {now!r}, fresh = 0{', held = 0' if release else ''}", deliveries)
        self.db.execute("INSERT INTO setting VALUES ('retries', 1) ON CONFLICT(name) DO UPDATE SET value = value + 1")

    def _alter(self, assignment: str, deliveries: Sequence[int]) -> None:
        self.db.executemany(f"UPDATE delivery SET {assignment} WHERE id = ?", [(d,) for d in deliveries])  # noqa: S608
        self.changed()

    def changed(self) -> None:
        self.db.execute("UPDATE setting SET value = value + 1 WHERE name = 'changes'")

    # -- reading ----------------------------------------------------------------------------------------------------

    def changes(self) -> tuple[int, int]:
        """Two numbers: one moves with every change made by somebody else, one when something is to be tried now."""
        with translated():
            found = dict(
                self.db.execute("SELECT name, value FROM setting WHERE name IN ('changes', 'retries')").fetchall()
            )
        return int(found["changes"]), int(found.get("retries", 0))

    def count(self) -> int:
        with translated():
            return int(self.db.execute("SELECT count(*) FROM message").fetchone()[0])

    def queue_ids(self) -> list[QueueId]:
        with translated():
            return [QueueId(row[0]) for row in self.db.execute("SELECT queue_id FROM message")]

    def knows(self, queue_id: QueueId) -> bool:
        with translated():
            return self.db.execute("SELECT 1 FROM message WHERE queue_id = ?", (queue_id,)).fetchone() is not None

    def facts(self, queue_id: QueueId) -> tuple[float, bool] | None:
        """(arrived, sender was told of the delay) of a message, or None when it is gone."""
        with translated():
            row = self.db.execute("SELECT arrived_s, told FROM message WHERE queue_id = ?", (queue_id,)).fetchone()
        return (row[0], bool(row[1])) if row else None


class _Room:
    """How much of each site still fits into the window; notes the destinations that had more."""

    def __init__(self, want: Want) -> None:
        self._waiting = dict(want.waiting)
        self._sites = want.sites
        self._limit = want.per_site
        self.spilled: set[tuple[str, bool]] = set()

    def left(self, destination: str, *, fresh: bool) -> int:
        site = self._sites.get(destination, destination)
        # one more shows that there are more
        return max(0, self._limit - self._waiting.get((site, fresh), 0)) + 1

    def admit(
        self, rows: Sequence[tuple[int, str, str, int, int, float]]
    ) -> list[tuple[int, str, str, int, int, float]]:
        admitted = []
        for row in rows:
            destination, fresh = row[2], bool(row[3])
            key = (self._sites.get(destination, destination), fresh)
            n = self._waiting.get(key, 0)
            if n >= self._limit:
                self.spilled.add((destination, fresh))
                continue
            self._waiting[key] = n + 1
            admitted.append(row)
        return admitted


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
