"""CREATE, DELETE, RENAME and the list of folders, under the account's lock.

Every change is durable when it returns. What a crash leaves half done is harmless: a directory without `cur` is no
mailbox, and gives way to one that is made or renamed there; a renamed one is known again by the GUID in its uidlist,
files of a deleted one lie in `..DOVECOT-TRASHED`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pymx.ms import subscriptions, uidlist, uidvalidity
from pymx.ms.box import Home, make_directories
from pymx.ms.errors import InvalidName, MailboxExists, NoSuchMailbox
from pymx.ms.hints import FOLDERS
from pymx.ms.index import Connection
from pymx.ms.layout import INBOX, TRASHED, Layout, Levels, is_mailbox, storage_name

LOCK = b"pymx-account.lock"
_REST_DIRECTORIES = frozenset({b"new", b"tmp"})
_REST_FILES = frozenset({b"pymx.lock", b"maildirfolder", uidlist.NAME})


@dataclass(frozen=True, slots=True)
class Folder:
    """One line of LIST; a name that is only subscribed has `exists` False."""

    name: str
    special_use: str
    subscribed: bool
    exists: bool
    has_children: bool


@contextmanager
def account_lock(home: Home) -> Iterator[None]:
    fd = os.open(os.path.join(home.root, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, home.mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make(home: Home, path: bytes, levels: Levels) -> None:
    """The directories and files of a new mailbox; the uidlist comes last. The caller holds the account lock.

    The mailbox is locked meanwhile: whoever finds its `cur` waits until there is a uidlist and all of it is on disk.
    """
    disk, mode, inbox = home.disk, home.mode, levels == INBOX
    control = home.place.control_of(path, levels)
    directory_mode = mode | (mode & 0o444) >> 2
    _make_directory(home, path, directory_mode)
    with _flock(path, mode):
        for part in (b"cur", b"new", b"tmp"):
            _make_directory(home, os.path.join(path, part), directory_mode)
        if not inbox:
            disk.close(disk.create(os.path.join(path, b"maildirfolder"), mode, exclusive=False))
        make_directories(disk, control)
        if not _uids_given(control):
            value = uidvalidity.next_value(disk, home.place.account_files, mode)
            header = uidlist.Header(value, 1, secrets.token_hex(16))
            fd = disk.create(os.path.join(control, uidlist.NAME), mode, exclusive=False)
            try:
                disk.write(fd, header.line())
                disk.fdatasync(fd)
            finally:
                disk.close(fd)
        for changed in dict.fromkeys((control, path)):
            disk.sync_directory(changed)
        if not inbox:
            disk.sync_directory(os.path.dirname(path))


def _uids_given(control: bytes) -> bool:
    """Whether there is a uidlist with lines: that of a mailbox which lost its `cur`."""
    try:
        with open(os.path.join(control, uidlist.NAME), "rb") as file:
            file.readline()
            return bool(file.readline())
    except FileNotFoundError:
        return False


def _is_rest(path: bytes) -> bool:
    """Whether a directory has nothing but what a CREATE makes before there is a mailbox, or nothing at all."""
    if os.path.islink(path) or not os.path.isdir(path):
        return False
    for name in os.listdir(path):
        below = os.path.join(path, name)
        if name in _REST_DIRECTORIES:
            if os.path.islink(below) or not os.path.isdir(below) or os.listdir(below):
                return False
        elif name not in _REST_FILES or (name == uidlist.NAME and _uids_given(path)):
            return False
    return True


def _clear_rest(home: Home, path: bytes) -> None:
    """Take away what `_is_rest`."""
    for name in os.listdir(path):
        remove = home.disk.rmdir if name in _REST_DIRECTORIES else home.disk.unlink
        remove(os.path.join(path, name))
    home.disk.rmdir(path)


def _make_directory(home: Home, path: bytes, mode: int) -> None:
    try:
        home.disk.mkdir(path, mode)
    except FileExistsError:
        return


def create(home: Home, layout: Layout, levels: Levels, special_use: str) -> None:
    path = layout.path(home.root, levels)
    with account_lock(home):
        if levels == INBOX or is_mailbox(path):
            raise MailboxExists("Mailbox exists already")
        if layout.fs:
            _make_parents(home, os.path.dirname(path))
        make(home, path, levels)
        if special_use:
            set_special_use(home, levels, special_use)
    _tell(home, [])


def _make_parents(home: Home, path: bytes) -> None:
    if os.path.isdir(path) or path == home.root:
        return
    _make_parents(home, os.path.dirname(path))
    home.disk.mkdir(path, home.mode | (home.mode & 0o444) >> 2)
    home.disk.sync_directory(os.path.dirname(path))


def set_special_use(home: Home, levels: Levels, special_use: str) -> None:
    """Keep the special use in the mailbox's row; it is made here if need be and filled at first use."""
    with home.index.write() as db:
        name = storage_name(levels)
        done = db.execute("UPDATE mailbox SET special_use=? WHERE name=?", (special_use, name)).rowcount
        if not done:
            db.execute(
                "INSERT INTO mailbox(name, special_use, guid, uidvalidity, uidnext, highestmodseq, expunge_floor,"
                " first_recent, messages, unseen, deleted, octets, uidlist_ino, uidlist_size, uidlist_mtime,"
                " cur_mtime, new_mtime, dirty_since) VALUES(?, ?, '', 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
                (name, special_use),
            )


def delete(home: Home, layout: Layout, levels: Levels) -> bytes:
    """Take a mailbox away; the path where its files wait to be removed (`purge`)."""
    if levels == INBOX:
        raise InvalidName("INBOX can't be deleted")
    path = layout.path(home.root, levels)
    with account_lock(home), mailbox_lock(home, path):
        trash = os.path.join(home.root, TRASHED)
        if layout.fs and any(name[: len(levels)] == levels and name != levels for name in layout.mailboxes(home.root)):
            raise InvalidName("Mailbox has children")
        if os.path.isdir(trash):
            trash = os.path.join(trash, b"%d.%s" % (time.time_ns(), secrets.token_hex(4).encode()))
        home.disk.rename(path, trash)
        home.disk.sync_directory(os.path.dirname(path))
        guids = _forget(home, storage_name(levels))
        if home.place.control:
            purge(home.place.control_of(path, levels))
    _tell(home, guids)
    return trash


def _tell(home: Home, guids: list[str]) -> None:
    """Sessions that wait in these mailboxes look, and find them gone; so do those that want to hear of names."""
    for guid in (*guids, FOLDERS):
        home.changed(guid, 0)


def purge(trash: bytes) -> None:
    """Remove the files of a deleted mailbox; nothing is lost if this never happens."""
    shutil.rmtree(trash, ignore_errors=True)


def _forget(home: Home, name: str) -> list[str]:
    """Take a mailbox out of the index; its GUID."""
    with home.index.write() as db:
        return _take_out(db, name)


def _take_out(db: Connection, name: str) -> list[str]:
    found = db.execute("SELECT id, guid FROM mailbox WHERE name=?", (name,)).fetchall()
    for mailbox, _ in found:
        for table in ("message", "rendered", "keys"):
            db.execute(
                f"DELETE FROM {table} WHERE id BETWEEN ? AND ?",  # noqa: S608
                (mailbox << 32, mailbox << 32 | 0xFFFFFFFF),
            )
        for table in ("change", "keyword"):
            db.execute(f"DELETE FROM {table} WHERE mailbox=?", (mailbox,))  # noqa: S608
        db.execute("DELETE FROM mailbox WHERE id=?", (mailbox,))
    return [guid for _, guid in found]


@contextmanager
def mailbox_lock(home: Home, path: bytes) -> Iterator[None]:
    """The flock of one mailbox, so that nobody works in it while it is moved."""
    if not is_mailbox(path):
        raise NoSuchMailbox("Mailbox does not exist")
    with _flock(path, home.mode):
        yield


@contextmanager
def _flock(path: bytes, mode: int) -> Iterator[None]:
    fd = os.open(os.path.join(path, b"pymx.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def rename(home: Home, layout: Layout, old: Levels, new: Levels) -> None:
    """Rename a mailbox and all below it (INBOX is the caller's: its messages move)."""
    if new == INBOX:
        raise MailboxExists("Mailbox exists already")
    if new[: len(old)] == old:
        raise InvalidName("Can't rename a mailbox to below itself")
    with account_lock(home):
        there = [name for name in layout.mailboxes(home.root) if name[: len(old)] == old]
        if not there:
            raise NoSuchMailbox("Mailbox does not exist")
        target = layout.path(home.root, new)
        moves = [(name, (*new, *name[len(old) :])) for name in sorted(there, key=len, reverse=True)]
        targets = [target] if layout.fs else [layout.path(home.root, after) for _, after in moves]
        rests = [path for path in targets if os.path.lexists(path)]
        if any(name[: len(new)] == new for name in layout.mailboxes(home.root)) or not all(map(_is_rest, rests)):
            raise MailboxExists("Mailbox exists already")
        for path in rests:
            _clear_rest(home, path)
        # Uidlists that lie apart go first: without them, after a crash, they are written anew from the index.
        if layout.fs:
            _make_parents(home, os.path.dirname(target))
            _move_control(home, old, new)
            home.disk.rename(layout.path(home.root, old), target)
            home.disk.sync_directory(os.path.dirname(layout.path(home.root, old)))
            home.disk.sync_directory(os.path.dirname(target))
        else:
            for before, after in moves:
                with mailbox_lock(home, layout.path(home.root, before)):
                    _move_control(home, before, after)
                    home.disk.rename(layout.path(home.root, before), layout.path(home.root, after))
            home.disk.sync_directory(home.root)
        guids: list[str] = []
        with home.index.write() as db:
            for before, after in moves:
                found = db.execute("SELECT guid FROM mailbox WHERE name=?", (storage_name(before),)).fetchall()
                if not found:
                    continue  # never looked at, or somebody was faster to find it under its new name
                guids += [guid for (guid,) in found]
                _take_out(db, storage_name(after))  # what is left of one that another program removed
                db.execute("UPDATE mailbox SET name=? WHERE name=?", (storage_name(after), storage_name(before)))
    _tell(home, guids)


def _move_control(home: Home, old: Levels, new: Levels) -> None:
    """The uidlist and keywords of a renamed mailbox (and with fs of all below it) where Dovecot has them apart."""
    if not home.place.control:
        return
    source, target = home.place.control_of(b"", old), home.place.control_of(b"", new)
    if not os.path.isdir(source):
        return
    make_directories(home.disk, os.path.dirname(target))
    purge(target)  # of a mailbox that is no longer there
    home.disk.rename(source, target)
    for directory in dict.fromkeys((os.path.dirname(source), os.path.dirname(target))):
        home.disk.sync_directory(directory)


def special_use(home: Home, layout: Layout, levels: Levels, special: dict[str, str]) -> str:
    """The special use of one mailbox (RFC 6154): what CREATE gave it, else what the settings give its name."""
    with home.index.read() as db:
        row = db.execute("SELECT special_use FROM mailbox WHERE name=?", (storage_name(levels),)).fetchone()
    return (row[0] if row else "") or special.get(layout.name(levels), "")


def listing(home: Home, layout: Layout, special: dict[str, str]) -> list[Folder]:
    """All folders there are or that are subscribed, by name; INBOX first."""
    there = set(layout.mailboxes(home.root))
    storage_separator = "/" if layout.fs else "."
    wanted = set(subscriptions.read(home.place.account_files, storage_separator)[1])
    with home.index.read() as db:
        uses = dict(db.execute("SELECT name, special_use FROM mailbox WHERE special_use <> ''"))
    parents = {levels[:n] for levels in there for n in range(1, len(levels))}
    names = there | wanted | parents
    out = []
    for levels in sorted(names, key=lambda name: (name != INBOX, name)):
        name = layout.name(levels)
        use = uses.get(storage_name(levels)) or special.get(name, "")
        out.append(Folder(name, use if levels in there else "", levels in wanted, levels in there, levels in parents))
    return out
