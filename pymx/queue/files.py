"""The content files of the queue: `<directory>/messages/<queue id>`, one per message.

A file is complete in itself, so that the queue can be rebuilt from the files alone:

    pymx-queue-1 00000412 --+-\\n      format, octets of the next line, one mark per recipient
    {"queue_id":…,"mail_from":…}\\n    the envelope
    Received: …                       the content in wire form

A mark is `-` for a recipient that waits and `+` for one that is done with (delivered or given up). It is overwritten in
place: one octet is written whole or not at all.

`Disk` is the handful of calls that durability hangs on; the power-cut tests record and replay them.

Errors: OSError from the file system. `DamagedFile` for a file that is not what was written (only after a power cut,
and then never one that was acknowledged).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from pymx.mail.address import Address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.queue.item import Copy, QueueId
from pymx.spool import Content, SpoolFile

_MAGIC = b"pymx-queue-1 "
_MARKS_AT = len(_MAGIC) + 9
_FIRST_READ = 65536
_MAX_ENVELOPE_OCTETS = 64 << 20
_IN_MEMORY_OCTETS = 262_144
WAITING, DONE = b"-", b"+"


class DamagedFile(Exception):
    """The file is not a whole queue file."""


class Disk:
    """What the queue asks of the file system."""

    def create(self, directory: Path) -> int:
        """A new unnamed file: a killed process leaves nothing behind."""
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, pieces: list[bytes]) -> None:
        left = sum(map(len, pieces)) - os.writev(fd, pieces)
        if left:  # a short write: rare, and then the rest goes the simple way
            rest = memoryview(b"".join(pieces))[-left:]
            while rest:
                rest = rest[os.write(fd, rest) :]

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def link(self, fd: int, directory_fd: int, name: str) -> None:
        # dst_dir_fd makes CPython call linkat() with AT_SYMLINK_FOLLOW; link() would answer EXDEV
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)

    def sync_directory(self, directory_fd: int) -> None:
        os.fsync(directory_fd)

    def overwrite(self, fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data, offset)

    def unlink(self, directory_fd: int, name: str) -> None:
        os.unlink(name, dir_fd=directory_fd)


class _Origin(msgspec.Struct, omit_defaults=True):
    listener: str = "local"
    session: str = ""
    peer_ip: str = ""
    helo: str = ""
    esmtp: bool = True
    tls: str = ""
    account: str = ""
    peer_name: str = ""
    sender_proven: bool = False


class _Header(msgspec.Struct, omit_defaults=True):
    queue_id: str
    arrived_s: float
    size_octets: int
    mail_from: tuple[str, str] | None
    recipients: list[tuple[str, str, list[str], str]]  # local part, domain, NOTIFY, ORCPT
    local: bool = False
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    requiretls: bool = False
    source_address: str = ""
    origin: _Origin = msgspec.field(default_factory=_Origin)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A queue file as read. `done[n]` says that recipient n needs nothing more."""

    queue_id: QueueId
    envelope: Envelope
    content: Content
    content_octets: int
    local: bool
    arrived_s: float
    done: tuple[bool, ...]

    def waiting(self) -> Iterator[tuple[int, Recipient]]:
        return ((n, r) for n, r in enumerate(self.envelope.recipients) if not self.done[n])


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Header)


def header(copy: Copy, arrived_s: float) -> bytes:
    """The first two lines of a copy's file."""
    envelope, origin = copy.envelope, copy.envelope.origin
    line = _encoder.encode(
        _Header(
            queue_id=copy.queue_id,
            arrived_s=arrived_s,
            size_octets=copy.content.size_octets,
            mail_from=(envelope.mail_from.local_part, envelope.mail_from.domain) if envelope.mail_from else None,
            recipients=[
                (r.address.local_part, r.address.domain, sorted(r.notify), r.orcpt) for r in envelope.recipients
            ],
            local=copy.local,
            body=envelope.body,
            smtputf8=envelope.smtputf8,
            ret=envelope.ret,
            envid=envelope.envid,
            requiretls=envelope.requiretls,
            source_address=envelope.source_address,
            origin=_Origin(
                origin.listener.value, origin.session, origin.peer_ip, origin.helo,
                origin.esmtp, origin.tls, origin.account, origin.peer_name, origin.sender_proven,
            ),
        )
    )  # fmt: skip
    marks = WAITING * len(envelope.recipients)
    return b"%s%08d %s\n%s\n" % (_MAGIC, len(line) + 1, marks, line)


def _envelope(head: _Header) -> Envelope:
    o = head.origin
    return Envelope(
        mail_from=Address(*head.mail_from) if head.mail_from else None,
        recipients=tuple(
            Recipient(Address(local_part, domain), frozenset(notify), orcpt)
            for local_part, domain, notify, orcpt in head.recipients
        ),
        origin=Origin(
            listener=Listener(o.listener),
            session=o.session,
            peer_ip=o.peer_ip,
            helo=o.helo,
            esmtp=o.esmtp,
            tls=o.tls,
            account=o.account,
            peer_name=o.peer_name,
            sender_proven=o.sender_proven,
        ),
        body=head.body,
        smtputf8=head.smtputf8,
        ret=head.ret,
        envid=head.envid,
        requiretls=head.requiretls,
        source_address=head.source_address,
    )


class Files:
    """The directory of content files."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.directory = directory / "messages"
        self.disk = disk or Disk()
        self._fd = -1

    def open(self) -> None:
        """Make the directory when it is missing."""
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for made in (self.directory.parent, self.directory.parent.parent):
                sync_directory(made)
        self._fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def write(self, copy: Copy, arrived_s: float) -> int:
        """A synced file without a name; the caller links and closes it."""
        fd = self.disk.create(self.directory)
        try:
            pieces, size = [header(copy, arrived_s)], 0
            for chunk in copy.content.chunks():
                pieces.append(chunk)
                size += len(chunk)
                if size >= 1 << 20:
                    self.disk.write(fd, pieces)
                    pieces, size = [], 0
            if pieces:
                self.disk.write(fd, pieces)
            self.disk.sync(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def link(self, fd: int, queue_id: QueueId) -> None:
        self.disk.link(fd, self._fd, queue_id)

    def sync_names(self) -> None:
        self.disk.sync_directory(self._fd)

    def remove(self, queue_id: QueueId) -> None:
        """Unlink; that it is gone already is no error."""
        try:
            self.disk.unlink(self._fd, queue_id)
        except FileNotFoundError:
            pass

    def mark_done(self, queue_id: QueueId, numbers: Sequence[int]) -> None:
        """Note in the file that these recipients need nothing more. A missing file is no error: it was removed."""
        try:
            fd = os.open(queue_id, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return
        try:
            for number in numbers:
                self.disk.overwrite(fd, DONE, _MARKS_AT + number)
            self.disk.sync(fd)
        finally:
            os.close(fd)

    def names(self) -> list[QueueId]:
        """Every file, oldest first."""
        return [QueueId(name) for name in sorted(os.listdir(self._fd)) if not name.startswith(".")]

    def set_aside(self, queue_id: QueueId) -> None:
        """Move a damaged file to `damaged/`, for a person to look at."""
        target = self.directory.parent / "damaged"
        target.mkdir(mode=0o700, exist_ok=True)
        os.rename(self.directory / queue_id, target / queue_id)

    def read(self, queue_id: QueueId, *, content: bool = True) -> StoredMessage:
        """A message; a large content stays in the file. Raises FileNotFoundError, DamagedFile.

        Without `content` only the envelope is read and the content is empty.
        """
        fd = os.open(queue_id, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            message, keeps_fd = _read(fd, with_content=content)
        except BaseException:
            os.close(fd)
            raise
        if not keeps_fd:
            os.close(fd)
        if message.queue_id != queue_id:
            raise DamagedFile(f"{queue_id} holds the envelope of {message.queue_id}")
        return message


def _read(fd: int, *, with_content: bool) -> tuple[StoredMessage, bool]:
    start = os.pread(fd, _FIRST_READ if with_content else 4096, 0)
    if not start.startswith(_MAGIC) or not start[len(_MAGIC) : _MARKS_AT - 1].isdigit():
        raise DamagedFile("no queue file header")
    envelope_octets = int(start[len(_MAGIC) : _MARKS_AT - 1])
    if envelope_octets > _MAX_ENVELOPE_OCTETS:
        raise DamagedFile("envelope is too large")
    line_end = start.find(b"\n")
    if line_end < 0:  # thousands of recipients; each has far more octets in the envelope than its mark
        size = os.fstat(fd).st_size
        start += _pread(fd, min(_MARKS_AT + envelope_octets, size) - len(start), len(start))
        line_end = start.find(b"\n")
        if line_end < 0:
            raise DamagedFile("no queue file header")
    marks = start[_MARKS_AT:line_end]
    content_at = line_end + 1 + envelope_octets
    if content_at > len(start):
        start += _pread(fd, content_at - len(start), len(start))
    try:
        head = _decoder.decode(start[line_end + 1 : content_at])
        envelope = _envelope(head)
    except (msgspec.DecodeError, ValueError) as e:
        raise DamagedFile(f"unreadable envelope: {e}") from None
    if len(marks) != len(head.recipients) or os.fstat(fd).st_size != content_at + head.size_octets:
        raise DamagedFile("file is shorter or longer than it was when written")
    if not with_content:
        content = Content(b"")
    elif head.size_octets <= _IN_MEMORY_OCTETS:
        data = start[content_at:]
        content = Content.from_bytes(data + _pread(fd, head.size_octets - len(data), content_at + len(data)))
    else:
        content = _file_content(fd, content_at, head.size_octets)
    message = StoredMessage(
        QueueId(head.queue_id), envelope, content, head.size_octets, head.local, head.arrived_s,
        tuple(mark != WAITING[0] for mark in marks),
    )  # fmt: skip
    return message, not content.in_memory


def _file_content(fd: int, offset: int, octets: int) -> Content:
    """The content as a region of the file; the fd is closed with it."""
    step = _FIRST_READ
    while True:
        start = _pread(fd, min(step, octets), offset)
        end = -2 if start.startswith(b"\r\n") else start.find(b"\r\n\r\n")
        if end != -1 or len(start) == octets:
            break
        step *= 4  # how long a header may be was judged when the message was taken
    head = start[: end + 2] if end != -1 else start
    return Content(head, file=SpoolFile.adopt(fd), offset=offset + len(head), length=octets - len(head))


def _pread(fd: int, octets: int, offset: int) -> bytes:
    pieces = []
    while octets > 0:
        piece = os.pread(fd, octets, offset)
        if not piece:
            raise DamagedFile("file ends early")
        pieces.append(piece)
        octets -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def only(envelope: Envelope, numbers: Sequence[int]) -> Envelope:
    """The envelope with some of its recipients."""
    if len(numbers) == len(envelope.recipients):
        return envelope
    return replace(envelope, recipients=tuple(envelope.recipients[n] for n in numbers))


def sync_directory(directory: Path) -> None:
    """Make the names in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
