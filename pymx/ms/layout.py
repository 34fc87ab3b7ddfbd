"""Folder names: at the door, in storage, on disk.

At the door a name is Unicode, its levels joined by the configured separator; in storage it is a tuple of levels in
modified UTF-7, `("INBOX",)` being the account root. Maildir++ has mailbox A.B in `.A.B`, fs has it in `A/B/`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from pymx.mail import mutf7
from pymx.ms.errors import InvalidName

Levels = tuple[str, ...]

INBOX: Levels = ("INBOX",)
MAX_NAME_OCTETS = 255
TRASHED = b"..DOVECOT-TRASHED"
_NOT_FOLDERS = frozenset({"cur", "new", "tmp"})


class Layout:
    """The names of one store: its layout on disk and its separator at the door."""

    def __init__(self, layout: str, separator: str) -> None:
        self.separator = separator
        self.fs = layout == "fs"

    def levels(self, name: str) -> Levels:
        """A name from the door as levels. Raises InvalidName."""
        if not name:
            raise InvalidName("Empty mailbox name")
        parts = name.split(self.separator)
        if parts[0].upper() == "INBOX":
            parts[0] = "INBOX"
        try:
            levels = tuple(mutf7.encode(part) for part in parts)
        except ValueError as error:
            raise InvalidName("Mailbox name is not Unicode") from error
        for part, level in zip(parts, levels, strict=True):
            self._check(part, level)
        if len(".".join(levels)) + 1 > MAX_NAME_OCTETS:
            raise InvalidName("Mailbox name is too long")
        return levels

    def _check(self, part: str, level: str) -> None:
        if not part:
            raise InvalidName("Empty level in mailbox name")
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in part):
            raise InvalidName("Control character in mailbox name")
        if "/" in level or (not self.fs and "." in level):
            raise InvalidName("Character not allowed in mailbox name")
        if self.fs and (level.startswith(".") or level in _NOT_FOLDERS or level.startswith(("dovecot", "pymx"))):
            raise InvalidName("Mailbox name is reserved")

    def name(self, levels: Levels) -> str:
        """Levels as a name for the door; a level that is no modified UTF-7 is shown as it is."""
        return self.separator.join(_decoded(level) for level in levels)

    def path(self, root: bytes, levels: Levels) -> bytes:
        if levels == INBOX:
            return root
        if self.fs:
            return os.path.join(root, *(level.encode() for level in levels))
        return os.path.join(root, b"." + ".".join(levels).encode())

    def mailboxes(self, root: bytes) -> Iterator[Levels]:
        """The mailboxes that are there, INBOX first, the others in no order."""
        yield INBOX
        if self.fs:
            yield from self._tree(root, ())
            return
        with os.scandir(root) as entries:
            for entry in entries:
                name = entry.name
                if not name.startswith(b".") or name.startswith((b"..", b".dovecot.")) or name == b".":
                    continue
                levels = _storage(name[1:].split(b"."))
                if levels and entry.is_dir(follow_symlinks=False) and levels != INBOX and is_mailbox(entry.path):
                    yield levels

    def _tree(self, directory: bytes, above: Levels) -> Iterator[Levels]:
        with os.scandir(directory) as entries:
            found = [e for e in entries if not e.name.startswith((b".", b"dovecot", b"pymx"))]
        for entry in found:
            levels = _storage([entry.name])
            if not levels or levels[0] in _NOT_FOLDERS or not entry.is_dir(follow_symlinks=False):
                continue
            here = (*above, *levels)
            if is_mailbox(entry.path):
                yield here
            yield from self._tree(entry.path, here)


def _decoded(level: str) -> str:
    try:
        return mutf7.decode(level)
    except ValueError:
        return level


def _storage(parts: list[bytes]) -> Levels:
    try:
        levels = tuple(part.decode("utf-8") for part in parts)
    except UnicodeDecodeError:
        return ()
    return levels if all(levels) else ()


def is_mailbox(path: bytes) -> bool:
    """A Maildir: it has a `cur`."""
    try:
        return stat.S_ISDIR(os.stat(os.path.join(path, b"cur")).st_mode)
    except OSError:
        return False


def storage_name(levels: Levels) -> str:
    """How the index calls a mailbox: levels joined by `/`, which no level holds."""
    return "/".join(levels)
