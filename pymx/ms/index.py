"""The index of one account: SQLite in WAL mode, a cache beside the Maildirs.

Holds rows of messages (so that nothing is parsed or listed twice) and what files can't say: modseq, expunged UIDs, save
dates, \\Recent. All of it may be lost: the next access rebuilds it. A damaged file or one of another schema is moved
aside. Commits are not synced (synchronous=NORMAL); after a power cut every mailbox is listed anew.

Connections are pooled per account and used by one thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pymx import log
from pymx.events.store import to_wal

# What the rest of `ms` needs of sqlite3, which only this module imports.
Connection = sqlite3.Connection
IndexTrouble = sqlite3.Error
IndexDamaged = sqlite3.DatabaseError  # with its subclass IndexBusy taken out
IndexBusy = sqlite3.OperationalError

NAME = b"pymx.index"
SCHEMA = 2
UID_BITS = 32
UID_MASK = 0xFFFFFFFF
_CHECKPOINT_COMMITS = 400
_CHANGE_DAYS = 90
_CHANGE_RUNS = 100_000
_log = log.get("ms")

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE mailbox(id INTEGER PRIMARY KEY, name TEXT UNIQUE, guid TEXT, uidvalidity INTEGER, uidnext INTEGER,
  highestmodseq INTEGER, expunge_floor INTEGER, first_recent INTEGER, special_use TEXT, messages INTEGER,
  unseen INTEGER, deleted INTEGER, octets INTEGER, uidlist_ino INTEGER, uidlist_size INTEGER, uidlist_mtime INTEGER,
  cur_mtime INTEGER, new_mtime INTEGER, dirty_since REAL);
CREATE TABLE keyword(mailbox INTEGER, bit INTEGER, name TEXT, PRIMARY KEY(mailbox, bit)) WITHOUT ROWID;
CREATE TABLE message(id INTEGER PRIMARY KEY, modseq INTEGER, flags INTEGER, keywords INTEGER, octets INTEGER,
  internaldate INTEGER, savedate INTEGER, in_new INTEGER, name BLOB, guid TEXT);
CREATE TABLE rendered(id INTEGER PRIMARY KEY, envelope BLOB, bodystructure BLOB, parts BLOB, preview BLOB,
  sort_keys BLOB, thread_keys BLOB);
CREATE TABLE keys(id INTEGER PRIMARY KEY, sent INTEGER, sent_day INTEGER, from_text BLOB, to_text BLOB, cc_text BLOB,
  bcc_text BLOB, subject_text BLOB, base_subject BLOB, reply INTEGER, from_key BLOB, to_key BLOB, cc_key BLOB,
  from_name BLOB, to_name BLOB, thread BLOB);
CREATE TABLE change(mailbox INTEGER, modseq INTEGER, first INTEGER, last INTEGER, kind INTEGER,
  PRIMARY KEY(mailbox, modseq, first)) WITHOUT ROWID;
"""
# SEARCH FROM and SUBJECT read this, not whole rows of `keys` (docs/adr/0005). A file without it is of the same schema.
_TEXTS = "CREATE INDEX IF NOT EXISTS keys_text ON keys(id, subject_text, from_text)"
_MOST_ADDED = 300_000  # rows for which writers can wait
ARRIVED, FLAGGED, EXPUNGED = 0, 1, 2  # change.kind


def boot_id() -> str:
    """Which boot of the machine this is; a new one means that unsynced writes may be gone."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return "unknown"


class IndexOutdated(sqlite3.DatabaseError):
    """Of another version of pymx: the next access makes a new one."""


class Index:
    """One account's index. Raises sqlite3.Error and OSError."""

    def __init__(self, path: bytes, *, mode: int = 0o600, boot: str = "") -> None:
        self.path = self._path = path
        self._mode = mode
        self._boot = boot or boot_id()
        self._free: list[sqlite3.Connection] = []
        self._inode = 0
        self._generation = 0
        self._mutex = threading.Lock()
        self._write = threading.Lock()
        self._commits = 0
        self._has_texts = 0  # the inode that was looked at

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection outside any transaction."""
        generation, db = self._take()
        try:
            yield db
        finally:
            self._give(generation, db)

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection whose statements all see one state."""
        generation, db = self._take()
        try:
            db.execute("BEGIN")
            yield db
        finally:
            if db.in_transaction:
                db.execute("COMMIT")
            self._give(generation, db)

    def begin(self) -> tuple[int, sqlite3.Connection]:
        """Start a write transaction; `commit` or `rollback` ends it."""
        self._write.acquire()
        try:
            taken = self._take()
            try:
                taken[1].execute("BEGIN IMMEDIATE")
            except BaseException:
                self._give(*taken)
                raise
        except BaseException:
            self._write.release()
            raise
        return taken

    def commit(self, taken: tuple[int, sqlite3.Connection]) -> None:
        try:
            taken[1].execute("COMMIT")
            self._commits += 1
        except BaseException:
            self._undo(taken[1])
            raise
        finally:
            self._give(*taken)
            self._write.release()

    def rollback(self, taken: tuple[int, sqlite3.Connection]) -> None:
        try:
            self._undo(taken[1])
        finally:
            self._give(*taken)
            self._write.release()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction around the block."""
        taken = self.begin()
        try:
            yield taken[1]
        except BaseException:
            self.rollback(taken)
            raise
        self.commit(taken)

    @staticmethod
    def _undo(db: sqlite3.Connection) -> None:
        if db.in_transaction:
            db.execute("ROLLBACK")

    @property
    def wants_checkpoint(self) -> bool:
        return self._commits >= _CHECKPOINT_COMMITS

    def checkpoint(self) -> None:
        """Move the WAL into the database; not in a mail path, it syncs."""
        self._commits = 0
        with self.read() as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def forget_old_changes(self) -> None:
        """Keep 90 days of `change`, and no more than 100,000 runs a mailbox; what goes raises `expunge_floor`."""
        oldest = time.time_ns() // 1000 - _CHANGE_DAYS * 86_400_000_000
        with self.write() as db:
            for (mailbox,) in db.execute("SELECT id FROM mailbox").fetchall():
                extra = db.execute(
                    "SELECT modseq FROM change WHERE mailbox=? ORDER BY modseq DESC LIMIT 1 OFFSET ?",
                    (mailbox, _CHANGE_RUNS),
                ).fetchone()
                floor = max(oldest, extra[0] if extra else 0)
                if db.execute("DELETE FROM change WHERE mailbox=? AND modseq<=?", (mailbox, floor)).rowcount:
                    db.execute("UPDATE mailbox SET expunge_floor=max(expunge_floor, ?) WHERE id=?", (floor, mailbox))

    def add_texts(self) -> None:
        """Give a file of an earlier version what SEARCH reads fastest; who writes waits for some 1 µs a message.

        Not one with very many messages, and not when it can't be now: every search works without.
        """
        if self._has_texts and self._has_texts == self._inode:
            return
        inode = 0
        try:
            with self.read() as db:
                inode = self._inode
                missing = not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'keys_text'").fetchone()
                rows = db.execute("SELECT sum(messages) FROM mailbox").fetchone()[0] or 0 if missing else 0
            if missing and rows <= _MOST_ADDED:
                with self.write() as db:
                    db.execute(_TEXTS)
        except IndexBusy as error:  # or no room
            _log.warning("search_index_not_made", path=os.fsdecode(self._path), reason=str(error))
        self._has_texts = inode

    def close(self) -> None:
        """Close all connections that are not in use; the count of users of this boot goes down."""
        with self._mutex:
            opened = self._inode != 0 and self._inode == _inode(self._path)
        if opened:
            with self.write() as db:
                db.execute("UPDATE meta SET value = value - 1 WHERE key = 'users' AND value > 0")
        with self._mutex:
            self._drop()

    def discard_damaged(self) -> None:
        """Move a damaged index aside; the next use makes a new one."""
        with self._mutex:
            self._drop()
            self._move_aside("damaged")

    def _drop(self) -> None:
        self._generation += 1
        for db in self._free:
            db.close()
        self._free.clear()
        self._inode = 0

    def _take(self) -> tuple[int, sqlite3.Connection]:
        inode = _inode(self._path)
        with self._mutex:
            if inode != self._inode or not inode:
                self._drop()
                self._prepare()
            if self._free:
                return self._generation, self._free.pop()
            generation = self._generation
        return generation, self._connect()

    def _give(self, generation: int, db: sqlite3.Connection) -> None:
        with self._mutex:
            if generation == self._generation and len(self._free) < 8:
                self._free.append(db)
                return
        db.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            os.fsdecode(self._path), timeout=15.0, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        for pragma in ("synchronous=NORMAL", "cache_size=-256", "wal_autocheckpoint=0", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {pragma}")
        return db

    def _prepare(self) -> None:
        """Open the file, make it if it is missing, move it aside if it is damaged or of another schema."""
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._mode))
        try:
            db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._move_aside("damaged")
            _log.error("index_damaged", path=os.fsdecode(self._path), error=str(error))
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._mode))
            db = self._open()
        self._free.append(db)
        self._inode = _inode(self._path)

    def _open(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            to_wal(db)
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in (*_TABLES.split(";"), _TEXTS):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA}")
                db.executemany("INSERT INTO meta VALUES(?, ?)", [("boot", self._boot), ("users", 0)])
            elif version != SCHEMA:
                raise sqlite3.DatabaseError(f"schema {version}, not {SCHEMA}")
            self._note_boot(db)
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _note_boot(self, db: sqlite3.Connection) -> None:
        meta = dict(db.execute("SELECT key, value FROM meta"))
        if meta.get("boot") == self._boot:
            db.execute("UPDATE meta SET value = value + 1 WHERE key = 'users'")
            return
        if meta.get("users") != 0:
            # Power cut: what was told last may be gone. Each mailbox is listed anew at its next use.
            # One whose rows were still being written counts as never seen.
            db.execute(
                "UPDATE mailbox SET guid=CASE dirty_since WHEN -2 THEN '' ELSE guid END,"
                " uidlist_ino=0, uidlist_size=0, cur_mtime=0, new_mtime=0, dirty_since=-1"
            )
            _log.warning("power_cut_found", path=os.fsdecode(self._path))
        db.executemany("UPDATE meta SET value=? WHERE key=?", [(self._boot, "boot"), (1, "users")])

    def _move_aside(self, why: str) -> None:
        aside = self._path + b".%s-%d" % (why.encode(), time.time_ns())
        for suffix in (b"", b"-wal", b"-shm"):
            try:
                os.rename(self._path + suffix, aside + suffix)
            except FileNotFoundError:
                continue


def open_read_only(path: bytes) -> Connection:
    """The index as it is, to look at only: no file is made or changed. Raises IndexTrouble, FileNotFoundError."""
    from urllib.parse import quote_from_bytes

    os.stat(path)
    # Without a WAL nobody has it open, and opening it as usual would make one.
    mode = "mode=ro" if os.path.exists(path + b"-wal") else "immutable=1"
    uri = f"file:{quote_from_bytes(path)}?{mode}"
    db = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            raise IndexOutdated(f"schema {version}, not {SCHEMA}")
    except BaseException:
        db.close()
        raise
    return db


def _inode(path: bytes) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
