"""Backups in a plain directory: one tree each, named by its time, in which unchanged messages are hard links.

    DIR/20261124T030000Z/          one backup, whole: see backup_lists
    DIR/.unfinished-…              one that is being made, or whose making was killed; removed by the next

A tree gets its name by a rename after everything in it is on disk, so half of one is never taken for whole. Messages
are copied when they are first seen, never linked to the live ones: what damages those must not reach the backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pymx.admin.backup_lists import MANIFEST, Entry, Manifest, write_lists
from pymx.admin.backup_place import refuse_read_only
from pymx.admin.backup_retention import when
from pymx.admin.context import CtlError
from pymx.ms.disk import Disk

_UNFINISHED = ".unfinished-"
_DOOMED = ".removed-"
_PIECE = 1 << 20


class DirectoryTarget:
    """`path` is made when it is missing."""

    encrypted = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = str(path)

    def prepare(self) -> None:
        refuse_read_only(self.path)
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as e:
            raise CtlError(
                f"{self.path} can't be made: {e.strerror}; make it for the server's user: "
                f"install -d -m 700 -o vmail -g vmail {self.path}"
            ) from None

    def names(self) -> list[str]:
        """The whole ones, oldest first."""
        if not self.path.is_dir():
            raise CtlError(f"there is no {self.path}")
        return sorted(p.name for p in self.path.iterdir() if when(p.name) and (p / MANIFEST).is_file())

    def create(self, stage: Path, manifest: Manifest, name: str, *, full: bool) -> None:
        """Raises CtlError, OSError."""
        with self._alone():
            for left in self.path.iterdir():
                if left.name.startswith((_UNFINISHED, _DOOMED)):
                    shutil.rmtree(left)
            names = self.names()
            if name in names:
                raise CtlError(f"{self.path / name} is there already")
            previous = self.path / names[-1] if names and not full else None
            unfinished = self.path / f"{_UNFINISHED}{name}"
            unfinished.mkdir(mode=0o700)
            _copy(stage, unfinished, manifest, previous)
            os.sync()  # one for all files, before the name that says that they are there
            os.rename(unfinished, self.path / name)
            Disk().sync_directory(os.fsencode(self.path))

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """The tree, to be read only."""
        yield self.path / name

    def remove(self, names: list[str]) -> None:
        with self._alone():
            for name in names:
                os.rename(self.path / name, self.path / f"{_DOOMED}{name}")
                shutil.rmtree(self.path / f"{_DOOMED}{name}")

    def scratch(self) -> Path | None:
        """Where a throw-away copy costs nothing: hard links are possible."""
        return self.path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise CtlError(f"{self.path} is in use by another backup") from None
        finally:
            os.close(fd)


def _copy(stage: Path, target: Path, manifest: Manifest, previous: Path | None) -> None:
    for directory, names, _ in os.walk(stage):
        names[:] = [name for name in names if not os.path.islink(os.path.join(directory, name))]
        for name in names:
            there = target / os.path.relpath(os.path.join(directory, name), stage)
            there.mkdir(mode=0o700)

    def store(file: str, earlier: Entry | None) -> str:
        source, there = stage / file, target / file
        if source.is_symlink():
            os.symlink(os.readlink(source), there)
            return ""
        if earlier is not None and previous is not None and _linked(previous / earlier.path, there, earlier):
            return earlier.sha256
        return _copied(source, there)

    write_lists(stage, target, manifest, previous, store)
    replace(manifest).write(target)


def _linked(source: Path, target: Path, entry: Entry) -> bool:
    try:
        if source.stat().st_size != entry.octets:
            return False  # cut short since: copy it again
        os.link(source, target)
    except OSError:
        return False  # too many links, or gone
    return True


def _copied(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("xb") as out:
        while piece := file.read(_PIECE):
            digest.update(piece)
            out.write(piece)
    shutil.copystat(source, target)
    return digest.hexdigest()
