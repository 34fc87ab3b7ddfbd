"""Dovecot's lock files: `<file>.lock`, made with O_EXCL, holding `pid:hostname`.

A lock is taken over only
- if its process on this host is gone and it is older than 2 s;
- if it bears our own number and none of our threads holds it (a process before us had that number, as in a container);
- if it is empty and older than 10 s: killed before it could write (an unnamed file linked into place would be whole at
  once, but costs 0.1 ms for each delivery);
- if it is from before the machine started;
- if lock and file have not changed for 120 s.

Who waits longer than `timeout_s` gets Unavailable: somebody else is at work, try later.

The lock file stays open while the lock is held: so its inode isn't given to another file, and a lock that was taken
over as stale is known not to be ours any more. It is then left to its new owner (`lock_lost`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from types import TracebackType

from pymx import log
from pymx.ms.disk import Disk
from pymx.ms.errors import Unavailable

_DEAD_OWNER_S = 2.0
_EMPTY_S = 10.0
_STALE_S = 120.0
_TOUCH_S = 10.0
_HOST = socket.gethostname().encode()
_held: dict[bytes, DotLock] = {}  # by this process
_held_mutex = threading.Lock()
_log = log.get("ms")


class DotLock:
    """The lock of one file; a context manager."""

    __slots__ = ("_disk", "_fd", "_path", "_taken_at", "_target", "_timeout_s")

    def __init__(self, disk: Disk, target: bytes, *, timeout_s: float = 30.0) -> None:
        self._disk = disk
        self._target = target
        self._path = target + b".lock"
        self._timeout_s = timeout_s
        self._taken_at = 0.0
        self._fd = -1

    def __enter__(self) -> DotLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        deadline = 0.0
        wait_s = 0.001
        while True:
            try:
                self._make()
            except FileExistsError:
                now = time.monotonic()
                deadline = deadline or now + self._timeout_s
                if self._break_stale():
                    continue
                if now > deadline:
                    raise Unavailable("Mailbox is locked", reason=f"{self._path!r} is held") from None
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 0.05)
                continue
            self._taken_at = time.monotonic()
            return

    def _make(self) -> None:
        with _held_mutex:  # a lock file of ours that nobody here holds is never seen by another thread
            self._fd = self._disk.create(self._path)
            _held[self._path] = self
        try:
            self._disk.write(self._fd, _mark())
        except BaseException:
            self.release()
            raise

    def touch(self) -> None:
        """Called now and then by long holds, so that nobody thinks the lock is stale."""
        now = time.monotonic()
        if now - self._taken_at > _TOUCH_S:
            os.utime(self._fd)
            self._taken_at = now

    def release(self) -> None:
        """Unlock; a lock that somebody else has taken over meanwhile is left alone."""
        with _held_mutex:
            try:
                if self._still_ours():
                    self._disk.unlink(self._path)
                else:
                    _log.warning("lock_lost", path=os.fsdecode(self._path))
            except FileNotFoundError:
                pass  # just now, or the directory was renamed away
            finally:
                self._disk.close(self._fd)
                self._fd = -1
                if _held.get(self._path) is self:
                    del _held[self._path]

    def _still_ours(self) -> bool:
        """Whether the lock file is the one we made. Raises FileNotFoundError if there is none where it was."""
        mine = os.fstat(self._fd)
        if not mine.st_nlink:
            return False
        there = os.stat(self._path, follow_symlinks=False)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def _break_stale(self) -> bool:
        """Remove the lock if nobody holds it any more; True: try again at once."""
        try:
            lock = os.stat(self._path)
            with open(self._path, "rb") as file:
                owner = file.read(512)
        except FileNotFoundError:
            return True
        age = time.time() - lock.st_mtime
        pid, _, host = owner.partition(b":")
        if owner == _mark() and self._break_own():
            return True
        if lock.st_mtime < _started() and host in (b"", _HOST):
            return self._remove(lock)
        if not owner and age > _EMPTY_S:
            return self._remove(lock)
        if age > _DEAD_OWNER_S and host == _HOST and pid.isdigit() and not _alive(int(pid)):
            return self._remove(lock)
        if age > _STALE_S:
            try:
                target_age = time.time() - os.stat(self._target).st_mtime
            except FileNotFoundError:
                target_age = age
            if target_age > _STALE_S:
                return self._remove(lock)
        return False

    def _break_own(self) -> bool:
        """Remove a lock with our number unless one of our threads holds it, maybe a later one than was seen."""
        with _held_mutex:
            if self._path in _held:
                return False
            try:
                with open(self._path, "rb") as file:
                    if file.read(512) == _mark():
                        self._disk.unlink(self._path)
            except FileNotFoundError:
                pass
        return True

    def _remove(self, seen: os.stat_result) -> bool:
        """Remove what was seen; a new lock may have its inode, but not its time."""
        try:
            now = os.stat(self._path)
            if (now.st_ino, now.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns):
                self._disk.unlink(self._path)
        except FileNotFoundError:
            pass
        return True


def _mark() -> bytes:
    return b"%d:%s" % (os.getpid(), _HOST)


def _started() -> float:
    """When the machine did."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
