"""Messages into a mailbox: written and synced without a name first, then given UID and name under the lock.

`prepare` (no lock held) is step (a) of a delivery, `place` (in a Hold) steps (b) to (d): the uidlist line before the
name, so that a kill between them burns a UID and nothing else. The caller syncs the directory afterwards.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pymx.mail.flags import DELETED, SEEN
from pymx.ms import keys, names
from pymx.ms.box import Box, Hold
from pymx.ms.disk import Disk
from pymx.ms.errors import LimitReached
from pymx.ms.index import ARRIVED, Connection
from pymx.ms.measure import to_wire, wire_growth
from pymx.ms.uidlist import MAX_UID, Record
from pymx.spool import Content

# ENVELOPE, BODYSTRUCTURE, and the columns of the table `keys` behind its id (None: not kept).
Rendered = tuple[bytes, bytes, keys.Keys | None]
Render = Callable[[bytes], Rendered]
RENDER_MAX_OCTETS = 1_048_576


@dataclass(slots=True)
class Prepared:
    """A message on disk that has no name in a mailbox yet."""

    fd: int
    disk_octets: int
    wire_octets: int
    internaldate: int
    rendered: Rendered | None
    temporary: bytes = b""  # its name in tmp/ where the file system has no unnamed files
    owned: bool = True  # False: the fd is another Prepared's

    def close(self, disk: Disk) -> None:
        if not self.owned:
            return
        disk.close(self.fd)
        if self.temporary:
            disk.unlink(self.temporary)

    def link(self, disk: Disk, path: bytes) -> None:
        if self.temporary:
            disk.link(self.temporary, path)
        else:
            disk.link_unnamed(self.fd, path)

    def shared(self) -> Prepared:
        """The same file for another mailbox."""
        return Prepared(
            self.fd, self.disk_octets, self.wire_octets, self.internaldate, self.rendered, self.temporary, owned=False
        )


def prepare(box: Box, content: Content, render: Render | None, *, internaldate: int | None = None) -> Prepared:
    """Write the message into `tmp/` of the mailbox, with LF line ends, and sync it. Raises OSError."""
    disk = box.home.disk
    fd, temporary = _unnamed(box)
    try:
        if content.size_octets <= RENDER_MAX_OCTETS:
            wire = content.read()
            data = wire.replace(b"\r\n", b"\n") if b"\r\n" in wire else wire
            growth = wire_growth(data)
            disk.write(fd, data)
            octets = len(data)
            if octets + growth != len(wire):
                wire = to_wire(data)  # had bare LFs
                growth = len(wire) - octets
            rendered = render(wire) if render else None
        else:
            octets, growth = _stream(disk, fd, content)
            rendered = None
        if internaldate is not None:
            disk.set_mtime(fd, internaldate * 1_000_000_000)
        disk.fsync(fd)
        date = internaldate if internaldate is not None else int(os.fstat(fd).st_mtime)
    except BaseException:
        disk.close(fd)
        if temporary:
            disk.unlink(temporary)
        raise
    return Prepared(fd, octets, octets + growth, date, rendered, temporary)


def _unnamed(box: Box) -> tuple[int, bytes]:
    disk = box.home.disk
    try:
        try:
            return disk.create_unnamed(box.tmp, box.home.mode), b""
        except FileNotFoundError:
            box.mend()
            return disk.create_unnamed(box.tmp, box.home.mode), b""
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = os.path.join(box.tmp, names.base_of(names.new_base(box.home.host, 0, 0)))
    return disk.create(path, box.home.mode), path


def _stream(disk: Disk, fd: int, content: Content) -> tuple[int, int]:
    octets = growth = 0
    last = b""
    for piece in content.disk_chunks():
        disk.write(fd, piece)
        octets += len(piece)
        growth += wire_growth(piece)
        if last == b"\r" and piece.startswith(b"\n"):
            growth -= 1
        last = piece[-1:]
    return octets, growth


def place(hold: Hold, messages: Sequence[tuple[Prepared, int, int]]) -> list[int]:
    """Give prepared messages (with flags and keyword bits) their UIDs and names; the UIDs."""
    row, disk, box = hold.row, hold.disk, hold.box
    first = row.uidnext
    if first + len(messages) > MAX_UID:
        raise LimitReached("Mailbox is out of UIDs")
    bases = [names.new_base(box.home.host, m.disk_octets, m.wire_octets) for m, _, _ in messages]
    records: list[Record] = [(first + n, b"", base) for n, base in enumerate(bases)]
    hold.append_lines(records)
    modseq, now, low = hold.next_modseq(), int(time.time()), row.low
    uids: list[int] = []
    rows: list[tuple[object, ...]] = []
    rendered: list[tuple[int, Rendered]] = []
    for (message, flags, bits), (uid, _, base) in zip(messages, records, strict=True):
        in_new = not flags and not bits
        name = base if in_new else names.with_flags(base, flags, bits)
        path = os.path.join(box.new if in_new else box.cur, name)
        try:
            message.link(disk, path)
        except FileExistsError:
            # The line is burnt: next name, next UID; later messages move up with it.
            left = messages[len(uids) :]
            _insert(hold, rows, rendered, uids)
            return uids + place(hold, left)
        hold.undo.append(path)
        uids.append(uid)
        rows.append(
            (low | uid, modseq, flags, bits, message.wire_octets, message.internaldate, now, int(in_new), name, None)
        )
        if message.rendered:
            rendered.append((low | uid, message.rendered))
    _insert(hold, rows, rendered, uids)
    return uids


def _insert(hold: Hold, rows: list[tuple[object, ...]], rendered: list[tuple[int, Rendered]], uids: list[int]) -> None:
    hold.db.executemany("INSERT INTO message VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    if rendered:
        keep_rendered(hold.db, rendered)
    if uids:
        hold.record_change(uids, ARRIVED)
    count(hold, rows)


def keep_rendered(db: Connection, rendered: Sequence[tuple[int, Rendered]]) -> None:
    """Write what was made of messages, by id, of those that are in the index."""
    db.executemany(
        "INSERT INTO rendered(id, envelope, bodystructure)"
        " SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM message WHERE id=?1) ON CONFLICT(id)"
        " DO UPDATE SET envelope=excluded.envelope, bodystructure=excluded.bodystructure",
        [(at, *made[:2]) for at, made in rendered],
    )
    keys.keep(db, [(at, made[2]) for at, made in rendered])


def count(hold: Hold, rows: Sequence[tuple[object, ...]], sign: int = 1) -> None:
    """Add message rows to the mailbox's counters, or take them off."""
    row = hold.row
    for _, _, flags, _, octets, *_ in rows:
        assert isinstance(flags, int)
        assert isinstance(octets, int)
        row.messages += sign
        row.octets += sign * octets
        row.unseen += sign * (not flags & SEEN)
        row.deleted += sign * bool(flags & DELETED)
