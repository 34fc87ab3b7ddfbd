"""Fills `pymx.fts`, newest messages first; for a niced process of its own, never in the way of mail.

Takes 0.25 ms a message and little memory. Commits every CHUNK messages and may be killed at any moment. A message is
taken in only after the uidlist that proves its UID is on disk: a UID that was never told may become another message's
after a power cut. The file is held below a part of what the account's mail takes: beyond it the volume with the oldest
messages goes, and old messages are only taken in again while there is clearly room.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pymx import log
from pymx.ms import fulltext, reading
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.delivering import told_row
from pymx.ms.errors import NoSuchMailbox, translated
from pymx.ms.fulltext import LEFT_OUT, MAX_CHARACTERS, Connection, Damaged, FullText, Trouble
from pymx.ms.index import UID_BITS
from pymx.ms.row import Row
from pymx.ms.search import searched_texts

CHUNK = 500
VOLUME = 10_000
LEAST_OCTETS = 64 * 1024 * 1024  # a small account's file may be larger than its part
_DEAD_PART = 0.3
_LEAST_DEAD = 50
_BACKFILL_PART = 0.8  # of the limit, for messages older than all in the file
_CHECKPOINT_CHUNKS = 8
_TABLE = "fts5(text, content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')"
_log = log.get("ms")


@dataclass(slots=True)
class Built:
    """What a run did, and what the file is now."""

    messages: int = 0
    left_out: int = 0
    dropped: int = 0  # volumes
    size_octets: int = 0
    full: bool = False
    refused: str = ""


@dataclass(slots=True)
class _Known:
    """A mailbox with what the index and the file know of it."""

    box: Box
    row: Row
    number: int
    live: set[int] = field(default_factory=set)


class Builder:
    """Of one account. `stopped` is asked between chunks."""

    def __init__(
        self,
        account: Account,
        *,
        max_percent: int,
        stopped: Callable[[], bool] = lambda: False,
        chunk: int = CHUNK,
        volume: int = VOLUME,
        least_octets: int = LEAST_OCTETS,
    ) -> None:
        self._account = account
        self._file = FullText(account.home.index.path, account.home.mode)
        self._max_percent = max_percent
        self._stopped = stopped
        self._chunk = chunk
        self._volume = volume
        self._least_octets = least_octets
        self._limit = 0
        self._done = Built()

    def run(self) -> Built:
        """Take in what is missing. Raises StoreError."""
        with translated():
            return self._run()

    def _run(self) -> Built:
        if self._file.is_off:
            self._file.switch(on=False)
            return Built(refused="switched off for this account")
        with self._file.building() as free:
            if not free:
                return Built(refused="another process builds it")
            try:
                self._build()
            except Damaged as error:
                _log.error("fulltext_damaged", path=os.fsdecode(self._file.path), reason=str(error))
                self._file.delete()
                self._done = Built()
                try:
                    self._build()
                except Damaged as again:
                    raise Trouble(str(again)) from again
            return self._done

    def _build(self) -> None:
        with contextlib.closing(self._file.connect(busy_s=30.0)) as db, fulltext.translated():
            db.execute("PRAGMA cache_size=-8192")
            self._limit = max(self._least_octets, self._account.usage()[0] * self._max_percent // 100)
            known = [self._know(db, box) for box in self._boxes()]
            self._drop_dead(db, known)
            try:
                self._fill(db, known)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            db.execute("PRAGMA incremental_vacuum").fetchall()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._done.size_octets = _size(db)

    def _boxes(self) -> Iterator[Box]:
        for levels in self._account.layout.mailboxes(self._account.home.root):
            try:
                yield self._account.call(functools.partial(self._account.box, levels))
            except NoSuchMailbox:
                continue  # deleted meanwhile

    def _know(self, db: Connection, box: Box) -> _Known:
        row = self._account.call(lambda: told_row(box))
        # a UID beyond what `told_row` saw may not be on disk yet
        live = set(self._account.call(lambda: _dates(box, row)))
        number = fulltext.mailbox_number(db, row.guid, row.uidvalidity)
        if number is None:
            db.execute("INSERT INTO mailbox(guid, uidvalidity) VALUES(?, ?)", (row.guid, row.uidvalidity))
            number = fulltext.mailbox_number(db, row.guid, row.uidvalidity) or 0
        covered = _covered(db, number)
        if covered and max(covered) >= row.uidnext:
            raise Damaged(f"knows UIDs that mailbox {box.name} never gave")
        return _Known(box, row, number, live)

    def _drop_dead(self, db: Connection, known: list[_Known]) -> None:
        """Volumes of which a good part is no longer there are dropped; the rest of them is taken in anew."""
        live = {each.number: each.live for each in known}
        for volume, messages in db.execute("SELECT id, messages FROM volume").fetchall():
            there = 0
            for number, blob in db.execute("SELECT mailbox, uids FROM covered WHERE volume=?", (volume,)).fetchall():
                there += len(live.get(number, set()).intersection(array("I", blob)))
            if messages - there > max(messages * _DEAD_PART, _LEAST_DEAD) or not there:
                self._drop(db, volume)
        gone = [n for (n,) in db.execute("SELECT id FROM mailbox").fetchall() if n not in live]
        db.executemany("DELETE FROM covered WHERE mailbox=? AND volume=0", [(number,) for number in gone])
        db.execute("DELETE FROM mailbox WHERE id NOT IN (SELECT mailbox FROM covered)")
        for each in known:  # those without a message so far keep their number
            db.execute(
                "INSERT OR IGNORE INTO mailbox VALUES(?, ?, ?)", (each.number, each.row.guid, each.row.uidvalidity)
            )

    def _drop(self, db: Connection, volume: int) -> None:
        db.execute("BEGIN IMMEDIATE")
        for table in ("header", "body"):
            db.execute(f"DROP TABLE IF EXISTS {table}_{volume}")
        db.execute("DELETE FROM covered WHERE volume=?", (volume,))
        db.execute("DELETE FROM volume WHERE id=?", (volume,))
        fulltext.set_meta(db, "full", 0)
        db.execute("COMMIT")
        self._done.dropped += 1

    def _fill(self, db: Connection, known: list[_Known]) -> None:
        pending = self._pending(db, known)
        chunks = 0
        while pending and not self._stopped():
            chunk, pending = pending[-self._chunk :], pending[: -self._chunk]
            if not self._has_room(db, newest=chunk[-1][0]):
                self._done.full = True
                break
            self._take_in(db, known, chunk)
            chunks += 1
            if chunks % _CHECKPOINT_CHUNKS == 0:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        fulltext.set_meta(db, "full", int(self._done.full))
        fulltext.set_meta(db, "built", time.time())

    def _pending(self, db: Connection, known: list[_Known]) -> list[tuple[int, int, int]]:
        """(date, position in `known`, UID) of what is not in the file, the newest last."""
        pending: list[tuple[int, int, int]] = []
        for at, each in enumerate(known):
            missing = each.live - _covered(db, each.number)
            if not missing:
                continue
            dates = self._account.call(functools.partial(_dates, each.box, each.row))
            pending += [(date, at, uid) for uid, date in dates.items() if uid in missing]
        pending.sort()
        return pending

    def _has_room(self, db: Connection, *, newest: int) -> bool:
        """Whether messages of that date may come in; older ones go for them."""
        while (size := _size(db)) > self._limit * _BACKFILL_PART:
            oldest = db.execute("SELECT id, newest FROM volume ORDER BY newest LIMIT 1").fetchone()
            if oldest is None or oldest[1] >= newest:
                return False  # they are the oldest
            if size <= self._limit:
                return True
            self._drop(db, oldest[0])
        return True

    def _take_in(self, db: Connection, known: list[_Known], chunk: list[tuple[int, int, int]]) -> None:
        headers: list[tuple[int, str]] = []
        bodies: list[tuple[int, str]] = []
        taken: dict[int, array[int]] = {}
        left_out: dict[int, array[int]] = {}
        # FTS5 collects what comes in the order of its rowids
        for number, at, uid in sorted((known[at].number, at, uid) for _, at, uid in chunk):
            try:
                message = self._account.call(functools.partial(reading.read_message, known[at].box, uid))
            except NoSuchMailbox:
                continue
            if message is None:
                continue  # gone by now
            header, body = searched_texts(message)
            if len(header) + len(body) > MAX_CHARACTERS:
                left_out.setdefault(number, array("I")).append(uid)
                continue
            headers.append((number << UID_BITS | uid, fulltext.indexable(header)))
            bodies.append((number << UID_BITS | uid, fulltext.indexable(body)))
            taken.setdefault(number, array("I")).append(uid)
        db.execute("BEGIN IMMEDIATE")
        volume = _volume(db, self._volume)
        db.executemany(f"INSERT INTO header_{volume}(rowid, text) VALUES(?, ?)", headers)
        db.executemany(f"INSERT INTO body_{volume}(rowid, text) VALUES(?, ?)", bodies)
        for uids, where in ((taken, volume), (left_out, LEFT_OUT)):
            for number, new in uids.items():
                db.execute(
                    "INSERT INTO covered VALUES(?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET uids = CAST(uids || excluded.uids AS BLOB)",
                    (where, number, new.tobytes()),
                )
        db.execute(
            "UPDATE volume SET messages = messages + ?, newest = max(newest, ?) WHERE id=?",
            (len(headers), chunk[-1][0], volume),
        )
        db.execute("COMMIT")
        self._done.messages += len(headers)
        self._done.left_out += sum(map(len, left_out.values()))


def _dates(box: Box, row: Row) -> dict[int, int]:
    """The mailbox's messages by UID, with their dates."""
    with box.home.index.read() as index:
        return dict(
            index.execute(
                "SELECT id & 4294967295, coalesce(internaldate, savedate, 0) FROM message WHERE id BETWEEN ? AND ?",
                (row.low, row.low | row.uidnext - 1),
            ).fetchall()
        )


def _covered(db: Connection, number: int) -> set[int]:
    found: set[int] = set()
    for (blob,) in db.execute("SELECT uids FROM covered WHERE mailbox=?", (number,)).fetchall():
        found.update(array("I", blob))
    return found


def _volume(db: Connection, messages: int) -> int:
    """The volume that is being filled: the last one, or a new one when it is full, which is put in order then."""
    last = db.execute("SELECT id, messages FROM volume ORDER BY id DESC LIMIT 1").fetchone()
    if last is not None and last[1] < messages:
        return int(last[0])
    if last is not None:
        for table in (f"header_{last[0]}", f"body_{last[0]}"):
            db.execute(f"INSERT INTO {table}({table}) VALUES('optimize')")
    volume = db.execute("INSERT INTO volume(newest, messages) VALUES(0, 0)").lastrowid
    for table in ("header", "body"):
        db.execute(f"CREATE VIRTUAL TABLE {table}_{volume} USING {_TABLE}")
    return volume or 0


def _size(db: Connection) -> int:
    """Octets in use."""
    (pages,), (free,), (page,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return int(pages - free) * int(page)


@dataclass(frozen=True, slots=True)
class Stats:
    """What `pymxctl mailbox fulltext stats` shows."""

    is_off: bool
    messages: int
    left_out: int
    volumes: int
    size_octets: int
    searched_s: float
    built_s: float
    full: bool


def stats(file: FullText) -> Stats:
    """Of one account. Raises Damaged, Trouble, OSError."""
    if not os.path.exists(file.path):
        return Stats(file.is_off, 0, 0, 0, 0, 0.0, 0.0, False)
    with contextlib.closing(file.connect()) as db, fulltext.translated():
        counts = {
            bool(volume): octets // 4
            for volume, octets in db.execute("SELECT volume > 0, sum(length(uids)) FROM covered GROUP BY volume > 0")
        }
        (volumes,) = db.execute("SELECT count(*) FROM volume").fetchone()
        return Stats(
            file.is_off,
            counts.get(True, 0),
            counts.get(False, 0),
            volumes,
            _size(db),
            fulltext.meta(db, "searched"),
            fulltext.meta(db, "built"),
            bool(fulltext.meta(db, "full")),
        )
