"""COPY and MOVE: hard links under new bases, the source's GUID in the target's uidlist lines.

Links, lines and rows of up to 1,000 messages are one hold of the target; any failure before the commit takes all names
back. Where links are impossible (EXDEV, EMLINK) the message is copied and synced before the lock is taken.

All or none (RFC 9051 s. 6.4.7), also of more messages than one hold takes: what the first holds copied is removed again
when a later one fails. A target that is renamed meanwhile is followed, since what was copied went along; only a kill
leaves the first ones there, and a target that was deleted took them with it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pymx import log
from pymx.ms import arrive, letters, names, removing
from pymx.ms.box import Box, Hold
from pymx.ms.disk import opened_directory
from pymx.ms.errors import LimitReached, NoSuchMailbox, StoreError, Unavailable
from pymx.ms.flagging import HOLD_MESSAGES
from pymx.ms.index import ARRIVED, IndexTrouble
from pymx.ms.keys import copy as copy_keys
from pymx.ms.measure import CHUNK, sizes
from pymx.ms.rows import MessageRow, select
from pymx.ms.uidlist import MAX_UID, Record

_COLUMNS = "id & 4294967295, modseq, flags, keywords, octets, internaldate, in_new, name, guid"


_TRIES = 20
_REPLACED = "what is copied from was renamed or deleted just now"
_log = log.get("ms")


class _NeedsCopy(Exception):
    """The file system does not link these."""


class _Moved(Exception):
    """A file is no longer where it was looked up."""


@dataclass(frozen=True, slots=True)
class Copied:
    """COPYUID: sources and targets in the same order."""

    uidvalidity: int
    source_uids: list[int]
    target_uids: list[int]


@dataclass(slots=True)
class _Made:
    """What the holds so far made; files are opened in them, to be synced wherever the mailbox is by then."""

    files: ExitStack
    source: str  # GUID of the mailbox that is copied from
    mailbox: int = 0  # the target's id in the index
    uidvalidity: int = 0
    guid: str = ""
    old: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    old_bases: set[bytes] = field(default_factory=set)
    new_bases: set[bytes] = field(default_factory=set)
    directories: dict[bytes, int] = field(default_factory=dict)  # path to fd
    lines: int = -1  # the uidlist, as open in the last hold

    def opened(self, lines: int) -> None:
        self.close()
        self.lines = lines

    def close(self) -> None:
        if self.lines >= 0:
            os.close(self.lines)


def copy(source: Box, target: Box, uids: Sequence[int], find: Callable[[str], Box | None]) -> Copied:
    """Copy messages, everything on disk and the UIDs told. `find`: the mailbox that has a GUID now."""
    made = _copy(source, target, uids, find)
    return Copied(made.uidvalidity, made.old, made.new)


def move(source: Box, target: Box, uids: Sequence[int], find: Callable[[str], Box | None]) -> Copied:
    """Copy, and when that is on disk remove. A crash between leaves both, never neither."""
    made = _copy(source, target, uids, find)
    _remove(source, made.source, made.old, made.old_bases, find)
    return Copied(made.uidvalidity, made.old, made.new)


def _copy(source: Box, target: Box, uids: Sequence[int], find: Callable[[str], Box | None]) -> _Made:
    with ExitStack() as files:
        made = _Made(files, source.guid)
        files.callback(made.close)
        try:
            for start in range(0, len(uids), HOLD_MESSAGES):
                target = _copy_following(source, target, uids[start : start + HOLD_MESSAGES], made, find)
            for path, fd in made.directories.items():
                target.home.disk.fsync_directory(fd, path)
            if made.new:
                state = os.fstat(made.lines)
                target.tell(state.st_ino, state.st_size, made.lines)
        except (StoreError, OSError, IndexTrouble):
            _take_back(target, made, find)
            raise
        if made.new and not os.path.isdir(target.cur) and find(made.guid) is None:
            raise NoSuchMailbox(f"Mailbox {target.name} does not exist any more")
        return made


def _copy_following(
    source: Box, target: Box, uids: Sequence[int], made: _Made, find: Callable[[str], Box | None]
) -> Box:
    """One hold's messages; the target, which may have another name than at the last hold."""
    for _ in range(_TRIES):
        try:
            _copy_part(source, target, uids, made)
        except _Moved:
            continue  # somebody changed flags or expunged just now: look again
        except NoSuchMailbox:
            renamed = find(made.guid) if made.guid else None
            if renamed is None or renamed.levels == target.levels:
                raise
            target = renamed
            continue
        return target
    raise Unavailable("Mailbox is busy", reason="messages were renamed again and again while they were copied")


def _take_back(target: Box, made: _Made, find: Callable[[str], Box | None]) -> None:
    """Remove what was copied; if that fails too, it is logged, and the copies stay."""
    if not made.new:
        return
    try:
        _remove(target, made.guid, made.new, made.new_bases, find)
    except (StoreError, OSError, IndexTrouble) as error:
        _log.warning("copies_left", mailbox=target.name, count=len(made.new), error=str(error))


def _remove(box: Box, guid: str, uids: Sequence[int], bases: set[bytes], find: Callable[[str], Box | None]) -> None:
    """Remove messages wherever their mailbox is by now; if it was deleted, they are gone.

    Another may have its name, a copy made by hand its GUID, and with either its UIDs: only the bases are the messages'
    own.
    """
    try:
        removing.expunge(box, uids, only_deleted=False, bases=bases)
        if box.guid == guid:
            return
    except NoSuchMailbox:  # renamed just now, or deleted with all that was in it
        pass
    renamed = find(guid)
    if renamed is not None:
        removing.expunge(renamed, uids, only_deleted=False, bases=bases)


def _copy_part(source: Box, target: Box, uids: Sequence[int], made: _Made) -> None:
    """As `copy`, in one hold, all or none. Raises _Moved."""
    with source.home.index.snapshot() as db:
        row = source.row(db)
        if row is None or row.guid != made.source:
            raise Unavailable("Mailbox is busy", reason=_REPLACED)
        found = select(db, row.low, uids, columns=_COLUMNS)
        known = letters.keyword_names(db, row)
        low = row.low
    there, paths = _located(source, found, made.source)
    if not there:
        return
    try:
        _place(target, there, paths, known, low, made)
    except _NeedsCopy:
        copies: list[bytes] = []
        try:
            copies += (_duplicate(target, path) for path in paths)
            _place(target, there, copies, known, low, made)
        finally:
            for path in copies:
                target.home.disk.unlink(path)


def _located(source: Box, found: list[MessageRow], guid: str) -> tuple[list[MessageRow], list[bytes]]:
    """Rows whose file is there, and where; a file renamed by somebody is looked up once more. Raises _Moved."""
    there, paths = [], []
    missing = [row for row in found if not os.path.exists(_path(source, row))]
    if missing:
        with Hold(source, full=True) as hold:
            if hold.row.guid != guid:
                raise Unavailable("Mailbox is busy", reason=_REPLACED)
            again = {row[0]: row for row in select(hold.db, hold.row.low, [r[0] for r in missing], columns=_COLUMNS)}
        gone = {row[0] for row in missing} - again.keys()
        found = [again.get(row[0], row) for row in found if row[0] not in gone]
    for row in found:
        path = _path(source, row)
        if missing and not os.path.exists(path):
            raise _Moved  # once more: it is there, but under another name by now
        there.append(row)
        paths.append(path)
    return there, paths


def _path(box: Box, row: MessageRow) -> bytes:
    return os.path.join(box.new if row[6] else box.cur, row[7])


def _place(
    target: Box, found: list[MessageRow], paths: list[bytes], known: list[str], source_low: int, made: _Made
) -> None:
    directories: dict[bytes, int] = {}
    with Hold(target) as hold:
        row = hold.row
        if made.new and (made.mailbox, made.guid, made.uidvalidity) != (row.id, row.guid, row.uidvalidity):
            raise NoSuchMailbox(f"Mailbox {target.name} was replaced by another one")
        first = row.uidnext
        if first + len(found) > MAX_UID:
            raise LimitReached("Mailbox is out of UIDs")
        records: list[Record] = []
        for n, message in enumerate(found):
            old_base = names.base_of(message[7])
            octets = names.disk_octets(message[7])
            if octets is None:
                octets = _size(paths[n])
            base = names.new_base(target.home.host, octets, message[4])
            guid = message[8].encode() if message[8] else old_base
            records.append((first + n, b" G" + guid if b" " not in guid else b"", base))
        bits = _translated(hold, found, known)
        hold.append_lines(records)
        modseq, now = hold.next_modseq(), int(time.time())
        rows = []
        for (uid, keys, base), message, path in zip(records, found, paths, strict=True):
            flags, letters_here = message[2], bits[message[3]]
            in_new = not flags and not letters_here
            name = base if in_new else names.with_flags(base, flags, letters_here)
            directory = target.new if in_new else target.cur
            _link(hold, path, os.path.join(directory, name))
            if directory not in made.directories and directory not in directories:
                directories[directory] = made.files.enter_context(opened_directory(directory))
            guid_text = keys[2:].decode("utf-8", "replace") or None
            rows.append(
                (row.low | uid, modseq, flags, letters_here, message[4], message[5], now, int(in_new), name, guid_text)
            )
        hold.db.executemany("INSERT INTO message VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        hold.db.executemany(
            "INSERT OR REPLACE INTO rendered(id, envelope, bodystructure, preview)"
            " SELECT ?, envelope, bodystructure, preview"
            " FROM rendered WHERE id=?",
            [(row[0], source_low | message[0]) for row, message in zip(rows, found, strict=True)],
        )
        copy_keys(hold.db, [(source_low | message[0], row[0]) for row, message in zip(rows, found, strict=True)])
        uids = [record[0] for record in records]
        hold.record_change(uids, ARRIVED)
        arrive.count(hold, rows)
        made.opened(os.open(target.uidlist, os.O_RDONLY | os.O_CLOEXEC))
    made.mailbox, made.guid, made.uidvalidity = row.id, row.guid, row.uidvalidity
    made.directories |= directories
    made.old += [message[0] for message in found]
    made.new += uids
    made.old_bases.update(names.base_of(message[7]) for message in found)
    made.new_bases.update(base for _, _, base in records)


def _size(path: bytes) -> int:
    try:
        return sizes(path)[0]
    except FileNotFoundError as error:
        raise _Moved from error


def _translated(hold: Hold, found: list[MessageRow], known: list[str]) -> dict[int, int]:
    """The source's keyword bits as the target's."""
    out = {0: 0}
    for bits in {row[3] for row in found}:
        if bits:
            out[bits] = letters.bits(hold, [n for bit, n in enumerate(known) if bits >> bit & 1 and n])
    return out


def _link(hold: Hold, source: bytes, target: bytes) -> None:
    try:
        hold.disk.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise _NeedsCopy from error
        if error.errno == errno.ENOENT:
            raise _Moved from error
        raise
    hold.undo.append(target)


def _duplicate(target: Box, path: bytes) -> bytes:
    """A synced copy of the file in the target's `tmp/`."""
    disk = target.home.disk
    try:
        found, size = os.stat(path), sizes(path)
    except FileNotFoundError as error:
        raise _Moved from error
    copy_path = os.path.join(target.tmp, names.new_base(target.home.host, *size))
    fd = disk.create(copy_path, target.home.mode)
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                disk.write(fd, data)
        disk.set_mtime(fd, found.st_mtime_ns)
        disk.fsync(fd)
    finally:
        disk.close(fd)
    return copy_path
