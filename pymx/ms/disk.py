"""Every change `ms` makes to the file system, as one object.

The crash tests pass in a recorder in its place, so nothing in `ms` changes a file except through here (the index,
which is SQLite's, apart). Reading is done with `os` directly. Paths are absolute and bytes, so that each call says by
itself what it touches.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Disk:
    """The real file system. All calls raise OSError."""

    def create(self, path: bytes, mode: int = 0o600, *, exclusive: bool = True) -> int:
        """A new file for writing; without `exclusive` an old one is emptied."""
        kind = os.O_EXCL if exclusive else os.O_TRUNC
        return os.open(path, os.O_CREAT | kind | os.O_WRONLY | os.O_CLOEXEC, mode)

    def create_unnamed(self, directory: bytes, mode: int = 0o600) -> int:
        """A file with no name yet (O_TMPFILE): killed before `link_unnamed`, it leaves nothing."""
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)

    def open_append(self, path: bytes) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def append(self, fd: int, data: bytes) -> None:
        """All of `data` at the end of the file, or nothing: a short write is cut off again, then ENOSPC."""
        before = os.fstat(fd).st_size
        try:
            written = os.write(fd, data)
        except OSError:
            if os.fstat(fd).st_size != before:
                self.truncate(fd, before)
            raise
        if written != len(data):
            self.truncate(fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def set_mtime(self, fd: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def close(self, fd: int) -> None:
        os.close(fd)

    def link_unnamed(self, fd: int, path: bytes) -> None:
        """Give an unnamed file its name; FileExistsError if that is taken."""
        # CPython calls plain link() unless a dir_fd is given, and that does not follow the /proc link (EXDEV).
        os.link(b"/proc/self/fd/%d" % fd, path, src_dir_fd=fd, follow_symlinks=True)

    def link(self, source: bytes, target: bytes) -> None:
        os.link(source, target)

    def rename(self, source: bytes, target: bytes) -> None:
        os.rename(source, target)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: bytes) -> None:
        """Make the entries of a directory durable."""
        with opened_directory(path) as fd:
            self.fsync_directory(fd, path)

    def fsync_directory(self, fd: int, path: bytes) -> None:
        os.fsync(fd)

    def sync_data(self, path: bytes) -> None:
        """Make a file's octets durable (fdatasync), opening it for that."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.fdatasync(fd)
        finally:
            os.close(fd)

    def replace_file(self, path: bytes, temporary: bytes, data: bytes, mode: int = 0o600, *, mtime_s: int = 0) -> None:
        """Write `data` to `temporary`, sync, rename over `path`; the directory is the caller's to sync."""
        fd = self.create(temporary, mode, exclusive=False)
        try:
            self.write(fd, data)
            if mtime_s:
                self.set_mtime(fd, mtime_s * 1_000_000_000)
            self.fsync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)


@contextmanager
def opened_directory(path: bytes) -> Iterator[int]:
    """A directory to sync later, wherever it is renamed to meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
