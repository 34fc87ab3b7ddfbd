"""A second tree beside an existing one, in which pymx can work without changing anything in the first.

Each mailbox of the shadow is a directory with copies of Dovecot's small files and links to the real `cur/` and `new/`.
So a store opened on it gives the answers pymx would give, reads the real messages, and writes its locks, its index and
the UIDs of new messages into the shadow. `GuardedDisk` refuses everything that would reach the real tree through the
links (undoing a doubled name, moving new messages): it raises EROFS.
"""

from __future__ import annotations

import errno
import os
import shutil

from pymx.ms import keywords, morekeywords, subscriptions, uidlist, uidvalidity
from pymx.ms.disk import Disk
from pymx.ms.dovecotplace import Place
from pymx.ms.layout import Layout


class GuardedDisk(Disk):
    """Changes files below one directory only."""

    def __init__(self, directory: bytes) -> None:
        self._directory = os.path.realpath(directory) + b"/"

    def _guard(self, path: bytes) -> None:
        if not (os.path.realpath(os.path.dirname(path)) + b"/").startswith(self._directory):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def create(self, path: bytes, mode: int = 0o600, *, exclusive: bool = True) -> int:
        self._guard(path)
        return super().create(path, mode, exclusive=exclusive)

    def create_unnamed(self, directory: bytes, mode: int = 0o600) -> int:
        self._guard(os.path.join(directory, b"file"))
        return super().create_unnamed(directory, mode)

    def open_append(self, path: bytes) -> int:
        self._guard(path)
        return super().open_append(path)

    def link_unnamed(self, fd: int, path: bytes) -> None:
        self._guard(path)
        super().link_unnamed(fd, path)

    def link(self, source: bytes, target: bytes) -> None:
        self._guard(source)  # a link changes the inode
        self._guard(target)
        super().link(source, target)

    def rename(self, source: bytes, target: bytes) -> None:
        self._guard(source)
        self._guard(target)
        super().rename(source, target)

    def unlink(self, path: bytes) -> None:
        self._guard(path)
        super().unlink(path)

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        self._guard(path)
        super().mkdir(path, mode)

    def rmdir(self, path: bytes) -> None:
        self._guard(path)
        super().rmdir(path)


def make(place: Place, layout: Layout, shadow: bytes) -> list[str]:
    """Build the shadow of an account in the new directory `shadow`; the mailboxes as clients see them."""
    os.makedirs(shadow, 0o700)
    made = []
    for levels in layout.mailboxes(place.root):
        real = layout.path(place.root, levels)
        path = layout.path(shadow, levels)
        os.makedirs(path, 0o700, exist_ok=True)
        for part in (b"cur", b"new"):
            if os.path.isdir(os.path.join(real, part)):
                os.symlink(os.path.realpath(os.path.join(real, part)), os.path.join(path, part))
            else:
                os.mkdir(os.path.join(path, part), 0o700)
        os.mkdir(os.path.join(path, b"tmp"), 0o700)
        control = place.control_of(real, levels)
        for name in (uidlist.NAME, keywords.NAME, morekeywords.NAME):
            _copy(os.path.join(control, name), os.path.join(path, name))
        made.append(layout.name(levels))
    for name in os.listdir(place.account_files):
        if name == subscriptions.NAME or name.startswith(uidvalidity.NAME):
            _copy(os.path.join(place.account_files, name), os.path.join(shadow, name))
    return made


def _copy(source: bytes, target: bytes) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return
    os.chmod(target, 0o600)
