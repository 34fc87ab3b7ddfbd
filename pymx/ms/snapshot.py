"""A picture of one account on disk, taken while it is in use: a new tree of hard links to the same messages.

What holds of the picture of an account:

- A message that is there all the time is in it, wherever it is moved meanwhile (to be missed it would have to slip from
  a mailbox ahead of us into one behind us in each of six rounds). One that arrives or is expunged while the picture is
  taken may or may not be.
- A message in it has the UID that anybody was told: each uidlist is read under Dovecot's lock after the messages were
  linked, and a file's line is always there before the file. Lines of messages that arrived later stay in it, so that
  their UIDs are not given to others.
- Flags, keyword letters and the names of keywords fit each other: they are read in the same hold.

Most links are made without a lock. Then, under the mailbox's locks, the directories are listed again, what is still
missing is linked, and the uidlist and the keywords are read; what was renamed or expunged meanwhile is put right
afterwards, in the picture only. CREATE, DELETE and RENAME wait for the whole account (some microseconds a message).
Between two mailboxes a message may move to where we have been: mailboxes that changed are looked at again, and what is
gone from one is kept there unless its inode is found in another.

Left out: what is a cache (`pymx.index`, `pymx.fts`, Dovecot's indexes), locks, and `tmp/`. SQLite databases are copied
by the function that is handed in. Errors: StoreError when a lock is held for too long; OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pymx.ms import folders, keywords, morekeywords, uidlist
from pymx.ms.box import LOCK
from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.dovecotplace import Place
from pymx.ms.errors import Unavailable
from pymx.ms.layout import TRASHED, Layout, Levels, storage_name
from pymx.ms.row import Stamp

CopyDatabase = Callable[[str, str], None]

_LINKS_PER_HOLD = 1000
_TRIES = 8
_ROUNDS = 5
_TICK_NS = 20_000_000  # changes within a clock tick may leave the same mtime
_CACHES = (b"pymx.index", b"pymx.fts", b"dovecot.index", b"dovecot.list.index", b"dovecot.mailbox.log")
_NOT_COPIED = frozenset({b"maildirsize", b"pymx.lock", b"pymx-account.lock"})
_UNDER_LOCK = (uidlist.NAME, keywords.NAME, morekeywords.NAME)
_SQLITE = b"SQLite format 3\0"
_UNLINKABLE = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class _File:
    """A message's file: in which of the two directories, its name, its inode."""

    directory: bytes
    name: bytes
    inode: int


@dataclass(slots=True)
class _Mailbox:
    levels: Levels
    path: bytes
    control: bytes
    target: bytes
    target_control: bytes
    stamp: Stamp = (0, 0, 0, 0, 0)
    taken_ns: int = 0
    files: dict[bytes, _File] = field(default_factory=dict)  # by base
    gone: dict[bytes, _File] = field(default_factory=dict)  # was there, and lies in `parked` of the picture
    uidlists: list[bytes] = field(default_factory=list)  # as read, oldest first


def take(source: Place, target: Place, layout: Layout, copy_database: CopyDatabase) -> list[str]:
    """Take the picture; `target.root` is made. Returns the storage names of the mailboxes in it."""
    return _Picture(source, target, layout, copy_database).take()


class _Picture:
    def __init__(self, source: Place, target: Place, layout: Layout, copy_database: CopyDatabase) -> None:
        self._source = source
        self._target = target
        self._layout = layout
        self._copy_database = copy_database
        self._disk = Disk()
        self._boxes: dict[Levels, _Mailbox] = {}
        self._parked = os.path.join(target.root, b"tmp", b"pymx-parked")

    def take(self) -> list[str]:
        os.makedirs(self._target.root, 0o700, exist_ok=True)
        with self._account_lock():
            for levels in list(self._layout.mailboxes(self._source.root)):
                self._first(levels)
            for _ in range(_ROUNDS):
                changed = [box for box in self._boxes.values() if _changed(box)]
                if not changed:
                    break
                for box in changed:
                    self._take(box)
            self._put_back()
            self._others(self._source.root, self._target.root)
            if self._source.control:
                self._others(self._source.control, self._target.control)
        shutil.rmtree(self._parked, ignore_errors=True)
        return sorted(storage_name(levels) for levels in self._boxes)

    @contextmanager
    def _account_lock(self) -> Iterator[None]:
        fd = os.open(os.path.join(self._source.root, folders.LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _first(self, levels: Levels) -> None:
        path, target = (self._layout.path(place.root, levels) for place in (self._source, self._target))
        box = _Mailbox(
            levels, path, self._source.control_of(path, levels), target, self._target.control_of(target, levels)
        )
        try:
            os.stat(os.path.join(path, b"cur"))
        except FileNotFoundError:
            return  # INBOX of an account that has none yet
        for part in (b"cur", b"new", b"tmp"):
            os.makedirs(os.path.join(target, part), 0o700, exist_ok=True)
        os.makedirs(box.target_control, 0o700, exist_ok=True)
        box.uidlists.append(_read(os.path.join(box.control, uidlist.NAME)))
        self._boxes[levels] = box
        self._take(box)

    def _take(self, box: _Mailbox) -> None:
        """What the mailbox holds now, in the picture."""
        for attempt in range(_TRIES):
            self._link(box, _names(box.path))
            with self._locks(box):
                now = _names(box.path)
                missing = {base: where for base, where in now.items() if base not in box.files}
                if len(missing) > _LINKS_PER_HOLD and attempt + 1 < _TRIES:
                    continue
                if not self._link(box, missing):  # Dovecot renames without our locks
                    continue
                taken = {name: _read(os.path.join(box.control, name)) for name in _UNDER_LOCK}
                box.stamp, box.taken_ns = _stamp(box), time.time_ns()
            self._follow(box, now)
            for name, data in taken.items():
                if data:
                    copy_file(os.path.join(box.control, name), os.path.join(box.target_control, name), data)
            box.uidlists.append(taken[uidlist.NAME])
            return
        raise Unavailable("Mailbox changes too fast", reason=f"{box.path!r} never held still")

    @contextmanager
    def _locks(self, box: _Mailbox) -> Iterator[None]:
        fd = os.open(os.path.join(box.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with DotLock(self._disk, os.path.join(box.control, uidlist.NAME)):
                yield
        finally:
            os.close(fd)

    def _link(self, box: _Mailbox, names: dict[bytes, tuple[bytes, bytes]]) -> bool:
        """Link what is not yet in the picture; whether all of it was still there."""
        complete = True
        for base, (directory, name) in names.items():
            if base in box.files:
                continue
            target = os.path.join(box.target, directory, name)
            try:
                inode = link_or_copy(os.path.join(box.path, directory, name), target)
            except FileNotFoundError:
                complete = False
                continue
            box.files[base] = _File(directory, name, inode)
            box.gone.pop(base, None)
        return complete

    def _follow(self, box: _Mailbox, now: dict[bytes, tuple[bytes, bytes]]) -> None:
        """Give the picture's files the names that they have `now`; set aside what is gone."""
        for base, file in list(box.files.items()):
            path = os.path.join(box.target, file.directory, file.name)
            found = now.get(base)
            if found is None:
                os.makedirs(self._parked, 0o700, exist_ok=True)
                parked = os.path.join(self._parked, b"%d" % file.inode)
                if os.path.exists(parked):
                    os.unlink(path)  # rename() does nothing between two links to one file
                else:
                    os.rename(path, parked)
                box.gone[base] = box.files.pop(base)
            elif found != (file.directory, file.name):
                os.rename(path, os.path.join(box.target, *found))
                box.files[base] = _File(*found, file.inode)

    def _put_back(self) -> None:
        """What is gone from a mailbox and in no other was expunged meanwhile, or is on its way: it stays."""
        there = {file.inode for box in self._boxes.values() for file in box.files.values()}
        for box in self._boxes.values():
            kept = set()
            for base, file in box.gone.items():
                if file.inode in there:
                    continue
                parked = os.path.join(self._parked, b"%d" % file.inode)
                os.rename(parked, os.path.join(box.target, file.directory, file.name))
                there.add(file.inode)
                kept.add(base)
            if kept:
                _keep_lines(box, kept)

    def _others(self, source: bytes, target: bytes) -> None:
        """The files beside the messages, and the directories that are no mailboxes (`sieve/`)."""
        os.makedirs(target, 0o700, exist_ok=True)
        try:
            with os.scandir(source) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        mailbox = any(entry.name == b"cur" for entry in entries)
        for entry in entries:
            there = os.path.join(target, entry.name)
            try:
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), there)
                elif entry.is_dir():
                    if not (mailbox and entry.name in (b"cur", b"new", b"tmp")) and not entry.name.startswith(TRASHED):
                        self._others(entry.path, there)
                elif entry.is_file() and _is_copied(entry.name) and not os.path.exists(there):
                    self._copy(entry.path, there)
            except FileNotFoundError:
                continue  # removed meanwhile

    def _copy(self, source: bytes, target: bytes) -> None:
        with open(source, "rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
        if is_database:
            self._copy_database(os.fsdecode(source), os.fsdecode(target))
        else:
            copy_file(source, target)


def _is_copied(name: bytes) -> bool:
    return not (
        name in _NOT_COPIED
        or name.startswith(_CACHES)
        or name.endswith((b".lock", b"-wal", b"-shm", b"-journal", b".tmp"))
    )


def _names(path: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Base → directory and name. `new` first: what moves on to `cur` meanwhile is seen there."""
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for directory in (b"new", b"cur"):
        for name in os.listdir(os.path.join(path, directory)):
            if not name.startswith(b"."):
                found[name.partition(b":")[0]] = (directory, name)
    return found


def _stamp(box: _Mailbox) -> Stamp:
    cur, new = (os.stat(os.path.join(box.path, part)).st_mtime_ns for part in (b"cur", b"new"))
    try:
        found = os.stat(os.path.join(box.control, uidlist.NAME))
    except FileNotFoundError:
        return (0, 0, 0, cur, new)
    return (found.st_ino, found.st_size, found.st_mtime_ns, cur, new)


def _changed(box: _Mailbox) -> bool:
    return _stamp(box) != box.stamp or max(box.stamp[2:]) > box.taken_ns - _TICK_NS


def _keep_lines(box: _Mailbox, bases: set[bytes]) -> None:
    """Lines of messages that are kept, if a rewrite of the uidlist dropped them meanwhile."""
    read = []
    for data in box.uidlists:
        try:
            read.append(uidlist.parse(data))
        except uidlist.Damaged:
            continue
    if not read:
        return
    latest = read[-1]
    known = {record[2] for record in latest.records}
    used = {record[0] for record in latest.records}
    found = {r[2]: r for listed in read for r in listed.records if r[2] in bases - known and r[0] not in used}
    if found:
        latest.records = sorted([*latest.records, *found.values()])
        path = os.path.join(box.target_control, uidlist.NAME)
        copy_file(os.path.join(box.control, uidlist.NAME), path, latest.to_bytes())


def _read(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def link_or_copy(source: bytes, target: bytes) -> int:
    """A hard link, or a copy where there can be none; the inode of `source`. FileNotFoundError if it is gone."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        os.unlink(target)
        return link_or_copy(source, target)
    except OSError as error:
        if error.errno not in _UNLINKABLE:
            raise
        found = os.stat(source)
        copy_file(source, target)
        return found.st_ino
    return os.stat(target, follow_symlinks=False).st_ino


def copy_file(source: bytes, target: bytes, data: bytes | None = None) -> None:
    """A copy with mode and time; of `data` if that was read already."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as out:
        if data is None:
            with open(source, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
        else:
            out.write(data)
    try:
        found = os.stat(source)
    except FileNotFoundError:
        return
    os.chmod(target, stat.S_IMODE(found.st_mode) & 0o7777)
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
