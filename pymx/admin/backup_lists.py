"""What a backup consists of: a manifest and, for each account and for the rest, a list of its files with SHA-256.

    pymx-backup.json            written last: a tree without it is none
    lists/mail/<domain>/<local part>, lists/rest
                                one JSON line a file: [path, octets, mtime in ns, SHA-256], or [path, "link", target]

The manifest holds the SHA-256 of each list, so that nothing can be changed or be missing unseen. Paths are relative to
the tree. Messages never change once they are written, so the hash of one that an earlier list has under the same
mailbox and base, with the same size and time, is taken from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pymx.admin.context import CtlError

MANIFEST = "pymx-backup.json"
LISTS = "lists"
FORMAT = 1
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree."""

    path: str
    octets: int
    mtime_ns: int
    sha256: str
    link: str = ""  # a symbolic link's target; then the rest is empty

    def line(self) -> str:
        if self.link:
            return json.dumps([self.path, "link", self.link])
        return json.dumps([self.path, self.octets, self.mtime_ns, self.sha256])

    @classmethod
    def parse(cls, line: str) -> Entry:
        item = json.loads(line)
        if item[1] == "link":
            return cls(item[0], 0, 0, "", item[2])
        return cls(*item)

    @property
    def message(self) -> tuple[str, str] | None:
        """Mailbox directory and base, if it is a message's file."""
        directory, _, name = self.path.rpartition("/")
        mailbox, _, part = directory.rpartition("/")
        return (mailbox, name.partition(":")[0]) if part in ("cur", "new") else None


@dataclass(slots=True)
class Manifest:
    """What a tree is. `files` are copies of files from elsewhere, by their path in the tree."""

    at: str
    hostname: str
    version: str
    keys: bool
    database: str = ""  # accounts.sqlite or accounts.jsonl
    queued: int = 0
    messages: int = 0
    accounts: dict[str, dict[str, object]] = field(default_factory=dict)  # address → {"special_use": {mailbox: use}}
    files: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, tree: Path) -> None:
        path = tree / MANIFEST
        with path.open("x", encoding="utf-8") as out:
            json.dump(asdict(self), out, indent=1)
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def read(cls, tree: Path) -> Manifest:
        """Raises CtlError when there is none, or one that can't be used."""
        try:
            data = json.loads((tree / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CtlError(f"{tree} is no backup: it has no {MANIFEST}") from None
        except ValueError as e:
            raise CtlError(f"{tree / MANIFEST} is damaged: {e}") from None
        if data.get("format") != FORMAT:
            raise CtlError(f"{tree} has the format {data.get('format')}, and this version knows {FORMAT}")
        try:
            return cls(**data)
        except TypeError as e:
            raise CtlError(f"{tree / MANIFEST} is damaged: {e}") from None


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def files(tree: Path, start: str) -> Iterator[str]:
    """Every file and link below `start`, sorted, relative to the tree."""
    top = os.path.join(tree, start)
    if not os.path.isdir(top):
        return
    for directory, names, found in os.walk(top):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in sorted([*found, *links]):
            yield os.path.relpath(os.path.join(directory, name), tree)


def parts(tree: Path) -> Iterator[tuple[str, list[str]]]:
    """The lists that a tree has, and the directories or files that each is of."""
    mail = tree / "mail"
    for domain in (
        sorted(p for p in mail.iterdir() if p.is_dir() and not p.name.startswith(".")) if mail.is_dir() else ()
    ):
        for account in sorted(p for p in domain.iterdir() if p.is_dir()):
            yield f"mail/{domain.name}/{account.name}", [f"mail/{domain.name}/{account.name}"]
    rest = [p.name for p in sorted(tree.iterdir()) if p.name not in (MANIFEST, LISTS, "mail")]
    yield "rest", [*rest, "mail/.removed"]


def paths(tree: Path, starts: list[str]) -> Iterator[str]:
    for start in starts:
        if (tree / start).is_file() or (tree / start).is_symlink():
            yield start
        else:
            yield from files(tree, start)


def write_lists(
    tree: Path, target: Path, manifest: Manifest, previous: Path | None, store: Callable[[str, Entry | None], str]
) -> None:
    """Lists of everything in `tree` under `target`. `store(path, earlier)` puts a file where it belongs and gives its
    hash; `earlier` is the same message in the previous backup, whose hash holds."""
    for name, starts in parts(tree):
        earlier = _messages(previous, name) if previous is not None and name != "rest" else {}
        path = target / LISTS / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as out:
            for file in paths(tree, starts):
                out.write(_entry(tree, file, earlier, store).line() + "\n")
            out.flush()
            os.fsync(out.fileno())
        manifest.lists[name] = sha256(str(path))


def _entry(
    tree: Path, file: str, earlier: dict[tuple[str, str], Entry], store: Callable[[str, Entry | None], str]
) -> Entry:
    full = os.path.join(tree, file)
    found = os.lstat(full)
    if os.path.islink(full):
        store(file, None)
        return Entry(file, 0, 0, "", os.readlink(full))
    new = Entry(file, found.st_size, found.st_mtime_ns, "")
    before = earlier.get(new.message) if new.message else None
    if before is not None and (before.octets, before.mtime_ns) != (new.octets, new.mtime_ns):
        before = None
    return Entry(file, new.octets, new.mtime_ns, store(file, before))


def _messages(previous: Path, name: str) -> dict[tuple[str, str], Entry]:
    try:
        entries = list(read_list(previous, name))
    except (FileNotFoundError, ValueError):
        return {}
    return {entry.message: entry for entry in entries if entry.message}


def read_list(tree: Path, name: str) -> Iterator[Entry]:
    """Raises FileNotFoundError, ValueError."""
    with (tree / LISTS / name).open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield Entry.parse(line)
            except (TypeError, IndexError) as e:
                raise ValueError(f"lists/{name}: {e}") from None


def compare(tree: Path, manifest: Manifest) -> Iterator[str]:
    """What of a tree is not as its lists say, a sentence each."""
    for name, digest in sorted(manifest.lists.items()):
        path = tree / LISTS / name
        try:
            if sha256(str(path)) != digest:
                yield f"lists/{name} was changed"
            listed = {entry.path: entry for entry in read_list(tree, name)}
        except FileNotFoundError:
            yield f"lists/{name} is missing"
            continue
        except ValueError as e:
            yield f"lists/{name} is not readable: {e}"
            continue
        starts = ["mail/.removed"] if name == "rest" else [name]
        if name == "rest":
            starts = dict(parts(tree))["rest"]
        there = set(paths(tree, starts))
        for extra in sorted(there - listed.keys()):
            yield f"{extra} was not in the backup when it was made"
        for file, entry in listed.items():
            problem = f"{file} is missing" if file not in there else _differs(tree, entry)
            if problem:
                yield problem


def _differs(tree: Path, entry: Entry) -> str:
    path = os.path.join(tree, entry.path)
    if entry.link:
        same = os.path.islink(path) and os.readlink(path) == entry.link
        return "" if same else f"{entry.path} is another link than it was"
    try:
        octets = os.stat(path).st_size
        if octets != entry.octets:
            return f"{entry.path} has {octets} octets, not {entry.octets}"
        return "" if sha256(path) == entry.sha256 else f"{entry.path} is damaged: its content is not what it was"
    except OSError as e:
        return f"{entry.path} can't be read: {e.strerror}"
