"""What one account's filter has learned: one small SQLite file in its mail directory, `pymx.junk`.

It goes where the mail goes (backup, `.removed`), and is never needed: without it, or when it is damaged, the filter
begins anew. A damaged file is moved aside as `pymx.junk.damaged`. Only hashes and counts are in it.

Size: above `max_tokens` those seen once go first, the oldest first, then the oldest. When `_HALVE_AT` messages were
learned all counts are halved, so that what was learned long ago counts less. The same message is not learned twice; one
that is learned as the other kind is taken back first.

Synchronous, used in threads. Errors: `NotebookUnusable`; its text is for the log.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pymx.events.store import make_file, to_wal

T = TypeVar("T")
NAME = "pymx.junk"
_SCHEMA = 1
_DAY_S = 86400
_HALVE_AT = 20_000
_MAX_SENDERS = 20_000
_MAX_LEARNED = 20_000
_TRIM_EVERY = 32  # lessons
_BUSY_S = 5.0
_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE token(hash INTEGER PRIMARY KEY, spam INTEGER NOT NULL, ham INTEGER NOT NULL, day INTEGER NOT NULL);
CREATE TABLE learned(message INTEGER PRIMARY KEY, spam INTEGER NOT NULL, day INTEGER NOT NULL);
CREATE TABLE sender(hash INTEGER PRIMARY KEY, written INTEGER NOT NULL, read INTEGER NOT NULL, day INTEGER NOT NULL);
"""
# Junk moves and what they undo, for one token: never below nothing.
_COUNT = (
    "INSERT INTO token(hash, spam, ham, day) VALUES(?1, max(0, ?2), max(0, ?3), ?4) ON CONFLICT(hash) DO UPDATE"
    " SET spam = max(0, spam + ?2), ham = max(0, ham + ?3), day = ?4"
)


class NotebookUnusable(Exception):
    """Not now: busy, or the disk has a problem."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Messages learned of either kind, tokens, known senders."""

    spam: int = 0
    ham: int = 0
    tokens: int = 0
    senders: int = 0


class Notebook:
    """One account's file. `make=False`: only if there is one."""

    def __init__(self, path: Path, *, make: bool, max_tokens: int) -> None:
        self.path = path
        self._max_tokens = max_tokens
        self._mutex = threading.Lock()
        self._lessons = 0
        if make and not path.exists():
            # as readable as the mail beside it
            mode = path.parent.stat().st_mode & 0o666
            make_file(path, mode)
        self._inode = path.stat().st_ino
        self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            to_wal(db)
            # a lesson lost in a power cut is no harm, a damaged file would be
            db.execute("PRAGMA synchronous=NORMAL")
            # enough for most of the file: a message asks for hundreds of its pages
            db.execute("PRAGMA cache_size=-2048")
            if _version(db) != _SCHEMA:
                self._create(db)
        except BaseException:
            db.close()
            raise
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if _version(db) != _SCHEMA:  # another process may have been faster
                for statement in f"{self._fresh(db)} PRAGMA user_version={_SCHEMA}".split(";"):
                    db.execute(statement)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def _fresh(self, db: sqlite3.Connection) -> str:
        """What makes the tables, whatever another version or a half made file has of them."""
        there = db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
        return "".join(f'DROP TABLE "{name}";' for (name,) in there) + _TABLES

    def is_current(self) -> bool:
        """Is it still the file of that name? An account may have been removed and made anew."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        with self._mutex:
            self._db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def learned(self) -> tuple[int, int]:
        """Messages learned as junk and as wanted."""
        with self._mutex:
            return self._learned(self._db)

    def _learned(self, db: sqlite3.Connection) -> tuple[int, int]:
        found: dict[str, int] = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('spam', 'ham')"))
        return found.get("spam", 0), found.get("ham", 0)

    def totals(self) -> Totals:
        with self._mutex:
            tokens = self._db.execute("SELECT count(*) FROM token").fetchone()[0]
            senders = self._db.execute("SELECT count(*) FROM sender").fetchone()[0]
            return Totals(*self._learned(self._db), tokens, senders)

    def counts(self, hashes: Sequence[int]) -> list[tuple[int, int, int]]:
        """(token, spam, ham) of those that were seen before."""
        with self._mutex:
            return self._db.execute(
                "SELECT t.hash, t.spam, t.ham FROM json_each(?) j CROSS JOIN token t ON t.hash = j.value",
                (str(list(hashes)),),
            ).fetchall()

    def learn(self, message: int, hashes: Sequence[int], *, spam: bool, now: float, unless_known: bool = False) -> bool:
        """Count a message as one of its kind. False: it was counted as such (or, `unless_known`, as any) before."""
        day = int(now // _DAY_S)
        with self._writing() as db:
            row = db.execute("SELECT spam FROM learned WHERE message=?", (message,)).fetchone()
            if row is not None and (unless_known or bool(row[0]) == spam):
                return False
            change = (1, 0) if spam else (0, 1)
            other = -1 if row is not None else 0
            per_token = (1, other) if spam else (other, 1)
            db.executemany(_COUNT, [(token, *per_token, day) for token in hashes])
            for key, more in zip(("spam", "ham"), per_token if row is not None else change, strict=True):
                db.execute(
                    "INSERT INTO meta VALUES(?1, max(0, ?2)) ON CONFLICT(key) DO UPDATE SET value = max(0, value + ?2)",
                    (key, more),
                )
            db.execute("INSERT OR REPLACE INTO learned VALUES(?, ?, ?)", (message, int(spam), day))
            self._lessons += 1
            if self._lessons % _TRIM_EVERY == 1:
                self._trim(db)
        return True

    def _trim(self, db: sqlite3.Connection) -> None:
        if sum(self._learned(db)) >= _HALVE_AT:
            db.execute("UPDATE token SET spam = spam / 2, ham = ham / 2")
            db.execute("DELETE FROM token WHERE spam = 0 AND ham = 0")
            db.execute("UPDATE meta SET value = value / 2 WHERE key IN ('spam', 'ham')")
        keep = self._max_tokens * 3 // 4
        if (there := db.execute("SELECT count(*) FROM token").fetchone()[0]) > self._max_tokens:
            db.execute(
                "DELETE FROM token WHERE hash IN (SELECT hash FROM token ORDER BY spam + ham > 1, day, hash LIMIT ?)",
                (there - keep,),
            )
        for table, most in (("sender", _MAX_SENDERS), ("learned", _MAX_LEARNED)):
            there = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            if there > most:
                db.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY day LIMIT ?)",  # noqa: S608
                    (there - most * 3 // 4,),
                )

    def note_senders(self, hashes: Sequence[int], *, written: bool, now: float) -> None:
        """These addresses have been written to, or mail of theirs has been read and kept."""
        more = (1, 0) if written else (0, 1)
        day = int(now // _DAY_S)
        with self._writing() as db:
            db.executemany(
                "INSERT INTO sender VALUES(?1, ?2, ?3, ?4) ON CONFLICT(hash) DO UPDATE"
                " SET written = written + ?2, read = read + ?3, day = ?4",
                [(sender, *more, day) for sender in hashes],
            )

    def forget_sender(self, sender: int) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM sender WHERE hash=?", (sender,))

    def sender(self, sender: int) -> tuple[int, int]:
        """How many times it was written to, and mail of it was read and kept."""
        with self._mutex:
            row = self._db.execute("SELECT written, read FROM sender WHERE hash=?", (sender,)).fetchone()
        return (row[0], row[1]) if row else (0, 0)


class Notebooks:
    """The notebooks of a process, the last used ones open. `home` says where an account's mail lies."""

    def __init__(self, home: Callable[[str], Path], *, max_tokens: int, max_open: int = 8) -> None:
        self._home = home
        self._max_tokens = max_tokens
        self._max_open = max_open
        self._open: dict[str, Notebook] = {}
        self._mutex = threading.Lock()

    def use(self, account: str, function: Callable[[Notebook], T], *, make: bool = False) -> T | None:
        """`function(notebook)`; None when there is none (and, with `make`, no mail directory). One at a time."""
        with self._mutex:
            try:
                notebook = self._take(account, make)
                return None if notebook is None else function(notebook)
            except sqlite3.OperationalError as e:  # busy, disk full, no permission
                raise NotebookUnusable(str(e)) from e
            except sqlite3.DatabaseError as e:
                self._discard(account)
                raise NotebookUnusable(f"damaged, moved aside: {e}") from e
            except OSError as e:
                raise NotebookUnusable(e.strerror or str(e)) from e

    def _take(self, account: str, make: bool) -> Notebook | None:
        notebook = self._open.pop(account, None)
        if notebook is not None and not notebook.is_current():
            notebook.close()
            notebook = None
        if notebook is None:
            home = self._home(account)
            path = home / NAME
            if not (home.is_dir() if make else path.exists()):
                return None
            notebook = Notebook(path, make=make, max_tokens=self._max_tokens)
        self._open[account] = notebook
        if len(self._open) > self._max_open:
            self._open.pop(next(iter(self._open))).close()
        return notebook

    def _discard(self, account: str) -> None:
        notebook = self._open.pop(account, None)
        if notebook is not None:
            notebook.close()
        path = self._home(account) / NAME
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_name(f"{NAME}.damaged"))
        for suffix in ("-wal", "-shm"):
            path.with_name(NAME + suffix).unlink(missing_ok=True)

    def forget(self, account: str) -> bool:
        """Throw away what an account's filter has learned. False: there was nothing."""
        with self._mutex:
            notebook = self._open.pop(account, None)
            if notebook is not None:
                notebook.close()
            path = self._home(account) / NAME
            there = path.exists()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(NAME + suffix).unlink(missing_ok=True)
            return there

    def close(self) -> None:
        with self._mutex:
            for notebook in self._open.values():
                notebook.close()
            self._open.clear()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
