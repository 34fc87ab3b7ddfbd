"""One mailbox as a process knows it: where it is, its row in the index, and how it is locked.

A `Hold` is the locked mailbox with an open index transaction: in-process lock, flock on `pymx.lock`, Dovecot's
`dovecot-uidlist.lock`, SQLite, in this order. Entering it brings the index up to date with what foreign writers did;
leaving it records the files' state, commits, unlocks in reverse and tells the other sessions. An exception rolls the
index back; what was done to files by then is found again by the next hold, which sees that they changed.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from pymx.ms import uidlist
from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.dovecotplace import Place
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.index import FLAGGED, Connection, Index
from pymx.ms.layout import Levels, storage_name
from pymx.ms.row import COLUMNS, FILLING, POWER_CUT, Row, Stamp
from pymx.ms.uidlist import Record
from pymx.ms.view import ViewCache

if TYPE_CHECKING:
    from pymx.ms.firstsight import Sight

LOCK = b"pymx.lock"

_UPDATE = "UPDATE mailbox SET " + ", ".join(f"{f.name}=?" for f in fields(Row)[2:]) + " WHERE id=?"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Home:
    """What all mailboxes of an account share."""

    email: str
    root: bytes
    disk: Disk
    index: Index
    host: bytes
    mode: int
    place: Place
    path_of: Callable[[str], bytes | None]  # storage name to directory
    changed: Callable[[str, int], None]  # guid, modseq; called after unlocking, from any thread


class Box:
    """A mailbox: its place and what is shared by the sessions of this process that look at it."""

    def __init__(
        self,
        home: Home,
        levels: Levels,
        path: bytes,
        reconcile: Callable[[Hold, bool], None],
        write_more_keywords: Callable[[Hold], None],
        prepare: Callable[[Box, Row | None], None],
    ) -> None:
        self.home = home
        self.levels = levels
        self.name = storage_name(levels)
        self.path = path
        self.cur = os.path.join(path, b"cur")
        self.new = os.path.join(path, b"new")
        self.tmp = os.path.join(path, b"tmp")
        self.control = home.place.control_of(path, levels)  # Dovecot's CONTROL=; path itself without
        self.uidlist = os.path.join(self.control, uidlist.NAME)
        self.mutex = threading.RLock()
        self.reconcile = reconcile
        self.write_more_keywords = write_more_keywords
        self.prepare = prepare
        # For the first sight; taken before `mutex`, in this order, never in a hold, and nobody sleeps with them.
        self.beginning = threading.RLock()
        self.filling = threading.RLock()
        self.sight: Sight | None = None  # rows that are still to be written
        self.views = ViewCache()
        self.last_listing = 0.0
        self.seen: Stamp | None = None  # what the files looked like when the index was last known to be current
        self.seen_modseq = 0  # the mailbox's at that time
        self.first_change = True
        self.guid = ""  # as last seen in the index
        self._told = (0, 0)  # inode and size of the uidlist up to which it is known to be on disk
        self._told_mutex = threading.Lock()

    def stamp(self) -> Stamp:
        """What the files look like now. Raises NoSuchMailbox when the directory is gone."""
        try:
            cur = os.stat(self.cur).st_mtime_ns
            new = os.stat(self.new).st_mtime_ns
        except FileNotFoundError:
            self.mend()
            cur = os.stat(self.cur).st_mtime_ns
            new = os.stat(self.new).st_mtime_ns
        try:
            found = os.stat(self.uidlist)
        except FileNotFoundError:
            return (0, 0, 0, cur, new)
        if found.st_ino == self._told[0] and found.st_size < self._told[1]:
            self._forget_told()  # rewritten twice by another process, the second time with an inode that was free again
        return (found.st_ino, found.st_size, found.st_mtime_ns, cur, new)

    def mend(self) -> None:
        """Make what a Maildir must have; NoSuchMailbox if it has nothing of it."""
        if not os.path.isdir(self.path) or (self.levels != ("INBOX",) and not os.path.isdir(self.cur)):
            raise NoSuchMailbox(f"Mailbox {self.name} does not exist")
        for directory in (self.cur, self.new, self.tmp):
            if not os.path.isdir(directory):
                try:
                    self.home.disk.mkdir(directory, self.home.mode | (self.home.mode & 0o444) >> 2)
                except FileExistsError:
                    continue
                self.home.disk.sync_directory(self.path)

    def row(self, db: Connection) -> Row | None:
        found = db.execute(f"SELECT {COLUMNS} FROM mailbox WHERE name=?", (self.name,)).fetchone()  # noqa: S608
        if found is None:
            return None
        row = Row(*found)
        self.is_now(row.guid)
        return row

    def renamed(self, db: Connection) -> Row | None:
        """The row of a mailbox that another program renamed, known by its GUID; it has this name from now on."""
        try:
            guid = uidlist.guid_of(self.uidlist)
        except (FileNotFoundError, uidlist.Damaged):
            return None
        if not guid:
            return None
        statement = f"SELECT {COLUMNS} FROM mailbox WHERE guid=?"  # noqa: S608
        for found in db.execute(statement, (guid,)).fetchall():
            row = Row(*found)
            path = self.home.path_of(row.name)
            if path is None or not os.path.isdir(os.path.join(path, b"cur")):
                row.name = self.name
                db.execute("UPDATE mailbox SET name=? WHERE id=?", (row.name, row.id))
                return row
        return None

    def is_now(self, guid: str) -> None:
        """The mailbox under this name has this GUID. If another had it, what is known of its uidlist is void."""
        if self.guid and guid != self.guid:
            self._forget_told()  # the inode may be used again
        self.guid = guid

    def _forget_told(self) -> None:
        self.told(0, 0)

    def current(self, row: Row | None) -> bool:
        """Whether the index says what the files say, as far as three stats can tell."""
        stamp = self.stamp()
        if row is None or row.stamp != stamp:
            return False
        if row.dirty_since:
            now = time.time()
            return not (now - row.dirty_since > 2.0 and now - self.last_listing > 60.0)
        return True

    def quiet(self) -> bool:
        """Nothing changed since the last look, as three stats show; without the index."""
        return self.seen is not None and self.stamp() == self.seen

    def refresh(self) -> None:
        """Take in what others did to the files, if anything."""
        with self.home.index.read() as db:
            row = self.row(db)
        if not self.current(row):
            self.prepare(self, row)
            with Hold(self):
                return
        assert row is not None
        self.seen = None if row.dirty_since else row.stamp
        self.seen_modseq = row.highestmodseq

    def tell(self, ino: int, size: int, lines: int = -1) -> None:
        """The told barrier: return only when the uidlist, open as `lines` or looked up, is on disk up to `size`."""
        if self._told[0] == ino and self._told[1] >= size:
            return
        with self._told_mutex:
            known_ino, known_size = self._told
            if known_ino == ino and known_size >= size:
                return
            try:
                fd = os.dup(lines) if lines >= 0 else os.open(self.uidlist, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    found = os.fstat(fd)
                    self.home.disk.fdatasync(fd)
                finally:
                    os.close(fd)
                if found.st_ino != known_ino:
                    # Somebody renamed a new file here, perhaps without syncing the directory.
                    self.home.disk.sync_directory(self.control)
            except FileNotFoundError:
                # Deleted or renamed just now: what is open is on disk, for the rest there is no such mailbox any more.
                if lines < 0:
                    raise NoSuchMailbox(f"Mailbox {self.name} does not exist") from None
                return
            self._told = (found.st_ino, found.st_size)

    def told(self, ino: int, size: int) -> None:
        """The uidlist was just written and synced, with its directory, by us."""
        with self._told_mutex:
            self._told = (ino, size)


class Hold:
    """The mailbox under all its locks, with its row and an open index transaction.

    `rows`: which of them the holder needs. Usually all, as the files are; with `stale` as they are, to be brought
    nearer; with `some` a mailbox may be FILLING, the uidlist being taken in; with `none` it may never have been seen.
    """

    def __init__(self, box: Box, *, full: bool = False, rows: Literal["all", "stale", "some", "none"] = "all") -> None:
        self.box = box
        self.disk = box.home.disk
        self.row: Row
        self.db: Connection
        self.modseq = 0
        self.more_keywords = False  # keywords beyond the letters changed
        self.listed: tuple[int, int] | None = None  # times of cur/ and new/ from before they were listed
        self.undo: list[bytes] = []  # names made in this hold, to take away if it can't be committed
        self._full = full
        self._rows = rows
        self._lock_fd = -1
        self._dotlock = DotLock(self.disk, box.uidlist)
        self._dotlocked = False
        self._taken: tuple[int, Connection] | None = None
        self._touched = False

    def __enter__(self) -> Hold:
        self.box.mutex.acquire()
        try:
            self._flock()
            self._acquire_dotlock()
            self._taken = self.box.home.index.begin()
            self.db = self._taken[1]
            row = self.box.row(self.db)
            self.row = row or self._adopt()
            if self._rows == "stale":
                self.listed = (self.row.cur_mtime, self.row.new_mtime)  # no newer than they are
            if self._full or row is None or not self.box.current(row):
                self._take_in()
        except BaseException:
            self._leave(commit=False)
            raise
        return self

    def _take_in(self) -> None:
        row = self.row
        if self._rows == "stale" and row.guid and row.dirty_since != FILLING and row.dirty_since != POWER_CUT:
            return
        if not self._full and (
            (self._rows == "none" and not row.guid)
            or (self._rows != "all" and row.dirty_since == FILLING and self._uidlist_taken_in())
        ):
            return
        self.box.reconcile(self, self._full)

    def _uidlist_taken_in(self) -> bool:
        """Whether `row.uidnext` is above all lines, those that others added last among them."""
        row, (ino, size, mtime, *_) = self.row, self.box.stamp()
        if (ino, size, mtime) == row.stamp[:3]:
            return True
        if not ino or ino != row.uidlist_ino or size <= row.uidlist_size:
            return False
        with open(self.box.uidlist, "rb") as file:
            file.seek(row.uidlist_size)
            records, clean = uidlist.parse_records(file.read(), after=row.uidnext - 1)
        if not clean or not records:
            return False
        row.uidnext = records[-1][0] + 1
        self.saved()
        return True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._leave(commit=kind is None)
        self.box.is_now(self.row.guid)
        if kind is None and self.modseq:
            self.box.home.changed(self.row.guid, self.modseq)

    def _flock(self) -> None:
        path = os.path.join(self.box.path, LOCK)
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self.box.home.mode)
            except (FileNotFoundError, NotADirectoryError):
                raise NoSuchMailbox(f"Mailbox {self.box.name} does not exist") from None
            self._lock_fd = fd
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return
            except FileNotFoundError:
                pass
            os.close(fd)  # the directory was renamed or deleted while we waited
            self._lock_fd = -1

    def _acquire_dotlock(self) -> None:
        try:
            try:
                self._dotlock.acquire()
            except FileNotFoundError:
                if self.box.control == self.box.path:
                    raise
                make_directories(self.disk, self.box.control)
                self._dotlock.acquire()
        except FileNotFoundError:
            raise NoSuchMailbox(f"Mailbox {self.box.name} does not exist") from None
        self._dotlocked = True

    def _leave(self, *, commit: bool) -> None:
        committed = False
        try:
            if self._taken is not None:
                taken, self._taken = self._taken, None
                if commit and self._touched:
                    try:
                        if self.more_keywords:
                            self.box.write_more_keywords(self)
                        self._save()
                    except BaseException:
                        self.box.home.index.rollback(taken)
                        raise
                    self.box.home.index.commit(taken)
                    committed = True
                else:
                    self.box.home.index.rollback(taken)
        finally:
            if not committed:
                self._take_back()
            if self._dotlocked:
                self._dotlocked = False
                self._dotlock.release()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1
            self.box.mutex.release()

    def _take_back(self) -> None:
        for path in self.undo:
            try:
                self.disk.unlink(path)
            except FileNotFoundError:
                continue

    def _adopt(self) -> Row:
        """The row of a mailbox the index does not know by this name: one renamed, or a new one."""
        self.box.mend()
        self._touched = True
        known = self.box.renamed(self.db)
        if known is not None:
            return known
        added = self.db.execute("INSERT INTO mailbox(name) VALUES(?)", (self.box.name,)).lastrowid
        return Row(added or 0, self.box.name)

    def _save(self) -> None:
        row = self.row
        stamp = self.box.stamp()
        if row.dirty_since == FILLING:
            stamp = (*stamp[:3], 0, 0)
        elif self.listed is not None:
            stamp = (*stamp[:3], *self.listed)  # what changed since the listing is found by the next
        row.uidlist_ino, row.uidlist_size, row.uidlist_mtime, row.cur_mtime, row.new_mtime = stamp
        self.box.seen = None if row.dirty_since else stamp
        self.box.seen_modseq = row.highestmodseq
        self.db.execute(
            _UPDATE,
            (
                row.guid,
                row.uidvalidity,
                row.uidnext,
                row.highestmodseq,
                row.expunge_floor,
                row.first_recent,
                row.special_use,
                row.messages,
                row.unseen,
                row.deleted,
                row.octets,
                *stamp,
                row.dirty_since,
                row.id,
            ),
        )

    # What holders do

    def touched(self) -> None:
        """Files changed by us: note their state at the end, and look once more when all is quiet."""
        self._touched = True
        if self.box.first_change:
            self.box.first_change = False
            try:
                self.disk.unlink(os.path.join(self.box.home.root, b"maildirsize"))  # Dovecot makes it anew
            except FileNotFoundError:
                pass
        self.listed = None
        if self.row.dirty_since != FILLING:
            self.row.dirty_since = time.time()

    def saved(self) -> None:
        """The row changed; the files perhaps not."""
        self._touched = True

    def next_modseq(self) -> int:
        """The one modseq of this commit: past all that was told, by us or by Dovecot."""
        if not self.modseq:
            self.modseq = max(self.row.highestmodseq + 1, time.time_ns() // 1000)
            self.row.highestmodseq = self.modseq
        self._touched = True
        return self.modseq

    def append_lines(self, records: list[Record], lines: bytes = b"") -> None:
        """Add lines to the uidlist in one write; UIDs from `row.uidnext` up. `lines`: the records, made before."""
        fd = self.disk.open_append(self.box.uidlist)
        try:
            self.disk.append(fd, lines or uidlist.lines(records))
        finally:
            self.disk.close(fd)
        self.row.uidnext = max(self.row.uidnext, records[-1][0] + 1)
        self.touched()

    def rewrite(self, records: list[Record], *, extra: bytes = b"") -> None:
        """Replace the uidlist: same UIDVALIDITY, GUID and next UID."""
        row = self.row
        header = uidlist.Header(row.uidvalidity, row.uidnext, row.guid, extra)
        data = header.line() + uidlist.lines(records)
        temporary = self.box.uidlist + b".tmp"
        fd = self.disk.create(temporary, self.box.home.mode, exclusive=False)
        try:
            self.disk.write(fd, data)
            self.disk.fdatasync(fd)
            ino = os.fstat(fd).st_ino
        finally:
            self.disk.close(fd)
        self.disk.rename(temporary, self.box.uidlist)
        # Before unlocking: else an append by the next holder, synced, would hang on an unsynced rename.
        self.disk.sync_directory(self.box.control)
        self.box.told(ino, len(data))
        self.touched()

    def record_change(self, uids: Iterable[int], kind: int) -> None:
        """Note which UIDs this commit touched, as runs."""
        modseq = self.next_modseq()
        mailbox = self.row.id
        self.db.executemany(
            "INSERT OR REPLACE INTO change VALUES(?, ?, ?, ?, ?)",
            [(mailbox, modseq, first, last, kind) for first, last in runs(uids)],
        )

    def set_modseq(self, uids: list[int]) -> None:
        """Give messages this commit's modseq, flags as they are in the rows."""
        modseq, low = self.next_modseq(), self.row.low
        self.db.executemany("UPDATE message SET modseq=? WHERE id=?", [(modseq, low | uid) for uid in uids])
        self.record_change(uids, FLAGGED)

    def recount(self) -> None:
        """Count the mailbox anew."""
        row = self.row
        row.messages, row.unseen, row.deleted, row.octets = self.db.execute(
            "SELECT count(*), coalesce(sum(flags & 1 = 0), 0), coalesce(sum(flags >> 3 & 1), 0),"
            " coalesce(sum(octets), 0) FROM message WHERE id BETWEEN ? AND ?",
            (row.low, row.high),
        ).fetchone()


def make_directories(disk: Disk, path: bytes) -> None:
    """A directory and what is missing above it, durably."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(disk, parent)
    try:
        disk.mkdir(path, 0o700)
    except FileExistsError:
        return
    disk.sync_directory(parent)


def runs(uids: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending UIDs as inclusive runs."""
    out: list[tuple[int, int]] = []
    first = last = -2
    for uid in uids:
        if uid != last + 1:
            if first >= 0:
                out.append((first, last))
            first = uid
        last = uid
    if first >= 0:
        out.append((first, last))
    return out
