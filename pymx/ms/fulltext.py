"""The full-text index of one account, `pymx.fts`: which messages can't hold a text (docs/adr/0013).

It says of a message that is *covered* whether it may hold a key of three characters or more: whether each run of three
characters of the folded key occurs in it. What may match is verified on the message by `pymx.ms.search`; what is not
covered is asked as if there were no such file. So an answer never depends on how much of it there is.

Rows are known by the mailbox's GUID, its UIDVALIDITY and the UID, which stay when the mailbox is renamed or the other
index made anew, and are not given to another message. The file consists of volumes of 10,000 messages, each with two
FTS5 tables (trigrams of the headers, trigrams of the body), which are dropped whole: SQLite 3.40 can't take a row out
of a contentless table. Messages with more than MAX_CHARACTERS of text are left out. Nothing here is needed: a damaged
file is deleted, and whoever can't read it at the moment does without.

`pymx.ms.fulltextbuild` fills it. `pymx.fts.off` beside it: not for this account. `pymx.fts.lock`: held by who builds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pymx import log
from pymx.mail import search
from pymx.mail.search import Criterion
from pymx.mail.text import fold
from pymx.ms.index import UID_BITS, UID_MASK

NAME = b"pymx.fts"
OFF = b"pymx.fts.off"
LOCK = b"pymx.fts.lock"
SCHEMA = 1  # to be raised too when `search.searched_texts` or `fold` makes other texts
MAX_CHARACTERS = 256 * 1024
SHORTEST = 3
_FEW = 100  # so many new ones are no reason to build at once
_SEARCH_NOTED_S = 3600.0
_BUSY_S = 1.0
_MAX_TRIGRAMS = 32
# U+0000 ends what the tokenizer reads, the others it reads as U+FFFD; the same on both sides.
_NOT_INDEXED = re.compile("[\x00\ud800-\udfff\ufffe\uffff]")
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+\Z")
_IN_KEYS = frozenset({"from", "to", "cc", "bcc", "subject"})
_log = log.get("ms")

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE mailbox(id INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT, uidvalidity INTEGER, UNIQUE(guid, uidvalidity));
CREATE TABLE volume(id INTEGER PRIMARY KEY AUTOINCREMENT, newest INTEGER, messages INTEGER);
CREATE TABLE covered(volume INTEGER, mailbox INTEGER, uids BLOB, PRIMARY KEY(volume, mailbox)) WITHOUT ROWID;
"""
LEFT_OUT = 0  # covered.volume of messages with too much text
Connection = sqlite3.Connection
Trouble = sqlite3.Error
Asked = tuple[str, bool, bool]  # folded key, in headers, in the body


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What the file says about a mailbox: per key those of `uids` that may match, the uncovered ones among them."""

    possible: dict[Asked, set[int]]
    wants_build: bool


class Damaged(Exception):
    """The file is no full-text index, or a broken one."""


def asked(criterion: Criterion) -> set[Asked]:
    """The keys in a criterion that the file can say something about."""
    match criterion:
        case search.And(criteria):
            return set().union(*(asked(part) for part in criteria))
        case search.Or(first, second):
            return asked(first) | asked(second)
        case search.Not(inner):
            return asked(inner)
        case search.Text() | search.Header():
            key = asked_by(criterion)
            return {key} if key is not None else set()
        case _:
            return set()


def asked_by(criterion: search.Text | search.Header) -> Asked | None:
    """What this one asks of the file; None for what it can't answer, or the rows of `keys` do."""
    key = fold(criterion.text)
    if len(key) < SHORTEST:
        return None
    if isinstance(criterion, search.Text):
        return key, criterion.headers, True
    if criterion.name.lower() in _IN_KEYS or not _FIELD_NAME.match(criterion.name):
        return None
    return key, True, False


def indexable(text: str) -> str:
    """A folded text as the tokenizer reads it."""
    return _NOT_INDEXED.sub("\ufffd", text)


def _query(key: str) -> str:
    text = indexable(key)
    runs = list(dict.fromkeys(text[at : at + SHORTEST] for at in range(len(text) - SHORTEST + 1)))
    if len(runs) > _MAX_TRIGRAMS:
        runs = [runs[at * len(runs) // _MAX_TRIGRAMS] for at in range(_MAX_TRIGRAMS)]
    return " AND ".join(['"' + run.replace('"', '""') + '"' for run in runs])


class FullText:
    """The file of one account. Methods that search never raise; those that build raise Trouble and OSError."""

    def __init__(self, index_path: bytes, mode: int) -> None:
        self._directory = os.path.dirname(index_path)
        self.path = os.path.join(self._directory, NAME)
        self._mode = mode

    @property
    def is_off(self) -> bool:
        return os.path.exists(os.path.join(self._directory, OFF))

    def switch(self, *, on: bool) -> None:
        """For this account; off deletes the file as soon as nobody builds. Raises OSError."""
        marker = os.path.join(self._directory, OFF)
        if on:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(marker)
            return
        os.close(os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, self._mode))
        with self.building() as free:
            if free:
                self.delete()

    @contextmanager
    def building(self) -> Iterator[bool]:
        """Hold the lock of who builds or deletes; False when somebody else has it."""
        fd = os.open(os.path.join(self._directory, LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._mode)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)

    def delete(self) -> None:
        for suffix in (b"", b"-wal", b"-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)

    def connect(self, *, busy_s: float = _BUSY_S) -> Connection:
        """The file, made if it is missing. Raises Damaged, Trouble, OSError."""
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._mode))
        db = sqlite3.connect(os.fsdecode(self.path), timeout=busy_s, isolation_level=None, cached_statements=0)
        try:
            with translated():
                for pragma in ("synchronous=NORMAL", "cache_size=-1024", "temp_store=MEMORY", "wal_autocheckpoint=0"):
                    db.execute(f"PRAGMA {pragma}")
                if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                    self._make(db)
        except BaseException:
            db.close()
            raise
        return db

    @staticmethod
    def _make(db: Connection) -> None:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA:  # somebody else was faster
            db.execute("ROLLBACK")
            return
        if version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise Damaged(f"schema {version}, not {SCHEMA}")
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA}")
        db.execute("COMMIT")

    def narrow(
        self, guid: str, uidvalidity: int, uidnext: Callable[[], int], uids: Sequence[int], keys: Iterable[Asked]
    ) -> Narrowing | None:
        """What is known of `uids` (ascending) about each key; None when there is nothing, and each must be asked."""
        if self.is_off:
            return None
        try:
            db = self.connect()
        except Damaged as error:
            self._discard(str(error))
            return Narrowing({}, wants_build=True)
        except (Trouble, OSError) as error:
            _log.warning("fulltext_unavailable", path=os.fsdecode(self.path), reason=str(error))
            return None
        try:
            with translated():
                _note_search(db)
                db.execute("BEGIN")
                return _look(db, guid, uidvalidity, uidnext, uids, keys)
        except Damaged as error:
            self._discard(str(error))
            return Narrowing({}, wants_build=True)
        except Trouble as error:
            _log.warning("fulltext_unavailable", path=os.fsdecode(self.path), reason=str(error))
            return None
        finally:
            db.close()

    def _discard(self, why: str) -> None:
        _log.error("fulltext_damaged", path=os.fsdecode(self.path), reason=why)
        try:
            with self.building() as free:
                if free:
                    self.delete()  # else who builds finds it too
        except OSError as error:
            _log.warning("fulltext_unavailable", path=os.fsdecode(self.path), reason=str(error))

    def searched_s(self) -> float:
        """When the account last searched for text; 0 if never, or that is not known."""
        if not os.path.exists(self.path):
            return 0.0
        try:
            with contextlib.closing(self.connect(busy_s=0)) as db, translated():
                return float(meta(db, "searched"))
        except (Damaged, Trouble, OSError):
            return 0.0


@contextmanager
def translated() -> Iterator[None]:
    """Tell a damaged file (Damaged) from one that can't be had just now (Trouble)."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in ("locked", "unable to open", "disk", "full", "interrupted", "readonly")):
            raise
        raise Damaged(str(error)) from error  # a table is missing, or not what it should be
    except sqlite3.DatabaseError as error:
        raise Damaged(str(error)) from error


def meta(db: Connection, key: str) -> float:
    found = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return found[0] if found else 0


def set_meta(db: Connection, key: str, value: float) -> None:
    db.execute("REPLACE INTO meta VALUES(?, ?)", (key, value))


def _note_search(db: Connection) -> None:
    """Who searches has the index kept up; written down once an hour, if nobody writes just now."""
    now = time.time()
    if now - meta(db, "searched") > _SEARCH_NOTED_S:
        db.execute("PRAGMA busy_timeout=0")
        with contextlib.suppress(sqlite3.OperationalError):
            set_meta(db, "searched", now)
        db.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")


def mailbox_number(db: Connection, guid: str, uidvalidity: int) -> int | None:
    found = db.execute("SELECT id FROM mailbox WHERE guid=? AND uidvalidity=?", (guid, uidvalidity)).fetchone()
    return found[0] if found else None


def _look(
    db: Connection,
    guid: str,
    uidvalidity: int,
    uidnext: Callable[[], int],
    uids: Sequence[int],
    keys: Iterable[Asked],
) -> Narrowing:
    number = mailbox_number(db, guid, uidvalidity)
    if number is None:
        return Narrowing({}, wants_build=True)
    covered = db.execute("SELECT volume, uids FROM covered WHERE mailbox=?", (number,)).fetchall()
    there = array("I", sorted(array("I", b"".join([blob for volume, blob in covered if volume != LEFT_OUT]))))
    if there and there[-1] >= uidnext():
        # The mailbox was set back to an earlier state, and UIDs may be other messages' by now.
        raise Damaged(f"knows UIDs that mailbox {guid} never gave")
    if array("I", uids[: len(there)]) == there:
        uncovered = set(uids[len(there) :])  # as it is where nothing was expunged; sets of them all take longer
    else:
        uncovered = set(uids).difference(there)
    unknown = len(uncovered)
    if uncovered:
        unknown = len(uncovered.difference(*(array("I", blob) for volume, blob in covered if volume == LEFT_OUT)))
    wants_build = (unknown > _FEW or not there) and unknown > 0 and not meta(db, "full")
    volumes = [volume for volume, _ in covered if volume > 0]
    low = number << UID_BITS
    possible: dict[Asked, set[int]] = {}
    for key in keys:
        text, in_headers, in_body = key
        query = _query(text)
        found = set(uncovered)
        for volume in volumes:
            for table in [f"header_{volume}"] * in_headers + [f"body_{volume}"] * in_body:
                found.update(
                    rowid & UID_MASK
                    for (rowid,) in db.execute(
                        f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid BETWEEN ? AND ?",  # noqa: S608
                        (query, low, low | UID_MASK),
                    )
                )
        possible[key] = found
    return Narrowing(possible, wants_build)
