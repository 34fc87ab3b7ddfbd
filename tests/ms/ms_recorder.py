"""A Disk that logs what it does, and what may be left of it after a kill or a power cut.

The model of a power cut: a write is safe once its file is synced, a change of a directory once that directory is; of
the others any may be missing. `kill_states` and `cut_states` give virtual file systems, `materialise` writes one out.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from pymx.ms.disk import Disk


@dataclass
class Tree:
    """A virtual file system: names to inodes, inodes to octets; directories map to None."""

    names: dict[bytes, int | None] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(dict(self.names), dict(self.data))

    def key(self) -> tuple[tuple[bytes, bytes | None], ...]:
        return tuple(
            sorted((name, None if node is None else self.data.get(node, b"")) for name, node in self.names.items())
        )


@dataclass(frozen=True)
class Call:
    """One recorded call. `kind`: create link rename unlink mkdir rmdir (directory changes), write truncate (data),
    fsync fdatasync syncdir, ack (a fact told to the peer)."""

    kind: str
    node: int = 0
    path: bytes = b""
    target: bytes = b""
    data: bytes = b""
    size: int = 0
    fact: object = None


DIRECTORY_CALLS = {"create", "link", "rename", "unlink", "mkdir", "rmdir"}
SYNCS = {"fsync", "fdatasync", "syncdir"}


class Recorder(Disk):
    """Does what Disk does, and remembers. The `skip`th sync (from 0) is left out."""

    def __init__(self, root: bytes, *, skip: int = -1) -> None:
        self.root = root
        self.skip = skip
        self.calls: list[Call] = []
        self.syncs = 0
        self.indexes: list[dict[bytes, bytes]] = []
        self._fds: dict[int, int] = {}
        self._next = 1
        self._mutex = threading.RLock()
        self.start = _scan(root, self)
        self._now = self.start.copy()

    def new_node(self) -> int:
        self._next += 1
        return self._next

    def _log(self, call: Call) -> None:
        with self._mutex:
            self.calls.append(call)
            apply(self._now, call)
            self.indexes.append(read_indexes(self.root))

    def ack(self, fact: object) -> None:
        self._log(Call("ack", fact=fact))

    def _node(self, fd: int) -> int:
        if fd in self._fds:
            return self._fds[fd]
        node = self._now.names[os.readlink(b"/proc/self/fd/%d" % fd)]
        assert node is not None
        return node

    def create(self, path: bytes, mode: int = 0o600, *, exclusive: bool = True) -> int:
        fd = super().create(path, mode, exclusive=exclusive)
        if path in self._now.names:
            node = self._node_at(path)
            self._fds[fd] = node
            self._log(Call("truncate", node, size=0))
        else:
            self._fds[fd] = self.new_node()
            self._log(Call("create", self._fds[fd], path))
        return fd

    def _node_at(self, path: bytes) -> int:
        node = self._now.names[path]
        assert node is not None
        return node

    def create_unnamed(self, directory: bytes, mode: int = 0o600) -> int:
        fd = super().create_unnamed(directory, mode)
        self._fds[fd] = self.new_node()
        return fd

    def open_append(self, path: bytes) -> int:
        fd = super().open_append(path)
        self._fds[fd] = self._node_at(path)
        return fd

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        super().close(fd)

    def write(self, fd: int, data: bytes) -> None:
        super().write(fd, data)
        self._log(Call("write", self._node(fd), data=bytes(data)))

    def append(self, fd: int, data: bytes) -> None:
        super().append(fd, data)
        self._log(Call("write", self._node(fd), data=bytes(data)))

    def truncate(self, fd: int, size: int) -> None:
        super().truncate(fd, size)
        self._log(Call("truncate", self._node(fd), size=size))

    def link_unnamed(self, fd: int, path: bytes) -> None:
        super().link_unnamed(fd, path)
        self._log(Call("link", self._node(fd), path))

    def link(self, source: bytes, target: bytes) -> None:
        super().link(source, target)
        self._log(Call("link", self._node_at(source), target))

    def rename(self, source: bytes, target: bytes) -> None:
        super().rename(source, target)
        self._log(Call("rename", path=source, target=target))

    def unlink(self, path: bytes) -> None:
        super().unlink(path)
        self._log(Call("unlink", path=path))

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        super().mkdir(path, mode)
        self._log(Call("mkdir", path=path))

    def rmdir(self, path: bytes) -> None:
        super().rmdir(path)
        self._log(Call("rmdir", path=path))

    def _sync(self, call: Call) -> bool:
        number = self.syncs
        self.syncs += 1
        if number == self.skip:
            return False
        self._log(call)
        return True

    def fsync(self, fd: int) -> None:
        if self._sync(Call("fsync", self._node(fd))):
            super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if self._sync(Call("fdatasync", self._node(fd))):
            super().fdatasync(fd)

    def fsync_directory(self, fd: int, path: bytes) -> None:
        if self._sync(Call("syncdir", path=path)):
            super().fsync_directory(fd, path)


def _scan(root: bytes, recorder: Recorder) -> Tree:
    tree = Tree()
    by_inode: dict[int, int] = {}
    for directory, _, files in os.walk(root):
        tree.names[directory] = None
        for name in files:
            if name.startswith(b"pymx.index"):
                continue
            path = os.path.join(directory, name)
            inode = os.stat(path).st_ino
            node = by_inode.setdefault(inode, recorder.new_node())
            tree.names[path] = node
            with open(path, "rb") as file:
                tree.data[node] = file.read()
    return tree


def read_indexes(root: bytes) -> dict[bytes, bytes]:
    out = {}
    for directory, _, files in os.walk(root):
        for name in files:
            if name in (b"pymx.index", b"pymx.index-wal"):
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    out[path] = file.read()
    return out


def apply(tree: Tree, call: Call, part: float = 1.0) -> None:
    """Carry out a call if what it needs is there; `part` of a write."""
    match call.kind:
        case "create":
            tree.names[call.path] = call.node
            tree.data.setdefault(call.node, b"")
        case "write":
            data = call.data[: int(len(call.data) * part)]
            tree.data[call.node] = tree.data.get(call.node, b"") + data
        case "truncate":
            tree.data[call.node] = tree.data.get(call.node, b"")[: call.size]
        case "link":
            tree.names.setdefault(call.path, call.node)
            tree.data.setdefault(call.node, b"")
        case "rename":
            _rename(tree, call.path, call.target)
        case "unlink" | "rmdir":
            tree.names.pop(call.path, None)
        case "mkdir":
            tree.names.setdefault(call.path, None)


def _rename(tree: Tree, source: bytes, target: bytes) -> None:
    if source not in tree.names:
        return
    moved = {name: node for name, node in tree.names.items() if name == source or name.startswith(source + b"/")}
    for name in moved:
        del tree.names[name]
    for name, node in moved.items():
        tree.names[target + name[len(source) :]] = node


def _safe(calls: list[Call], upto: int) -> list[bool]:
    """Which of the first `upto` calls can't be lost any more."""
    safe = [call.kind in SYNCS or call.kind == "ack" for call in calls[:upto]]
    for n, call in enumerate(calls[:upto]):
        if call.kind not in SYNCS:
            continue
        for m, earlier in enumerate(calls[:n]):
            if call.kind == "syncdir":
                touched = [os.path.dirname(p) for p in (earlier.path, earlier.target) if p]
                if earlier.kind in DIRECTORY_CALLS and call.path in touched:
                    safe[m] = True
            elif earlier.kind in ("write", "truncate") and earlier.node == call.node:
                safe[m] = True
    return safe


@dataclass
class State:
    """What may be found, and what had been told by then."""

    what: str
    tree: Tree
    facts: list[object]
    index: dict[bytes, bytes]
    cut: bool = False


def _replay(recorder: Recorder, upto: int, dropped: set[int], half: int = -1) -> Tree:
    tree = recorder.start.copy()
    for n, call in enumerate(recorder.calls[:upto]):
        if n in dropped:
            continue
        apply(tree, call, 0.5 if n == half else 1.0)
    return tree


def _facts(recorder: Recorder, upto: int) -> list[object]:
    return [call.fact for call in recorder.calls[:upto] if call.kind == "ack"]


def _describe(recorder: Recorder, upto: int) -> str:
    if not upto:
        return "before anything"
    call = recorder.calls[upto - 1]
    return f"after call {upto} {call.kind} {os.path.basename(call.path or call.target)!r}"


def kill_states(recorder: Recorder) -> Iterator[State]:
    """After every call."""
    for upto in range(len(recorder.calls), 0, -1):
        tree = _replay(recorder, upto, set())
        yield State("killed " + _describe(recorder, upto), tree, _facts(recorder, upto), recorder.indexes[upto - 1])


def cut_states(recorder: Recorder) -> Iterator[State]:
    """After every call: all unsynced calls dropped, each alone, each suffix, half of a write; each with the index as
    it was then and without any."""
    seen = set()
    for upto in range(len(recorder.calls), 0, -1):
        safe = _safe(recorder.calls, upto)
        loose = [n for n in range(upto) if not safe[n]]
        drops: list[tuple[set[int], int]] = [(set(loose), -1)]
        drops += [({n}, -1) for n in loose]
        drops += [(set(loose[n:]), -1) for n in range(1, len(loose))]
        drops += [(set(), n) for n in loose if recorder.calls[n].kind == "write"]
        facts = _facts(recorder, upto)
        for dropped, half in drops:
            tree = _replay(recorder, upto, dropped, half)
            key = (tree.key(), len(facts))
            if key in seen:
                continue
            seen.add(key)
            what = f"power cut {_describe(recorder, upto)}, lost {[_name(recorder.calls[n]) for n in sorted(dropped)]}"
            what += f", half of {half}" if half >= 0 else ""
            yield State(what + ", no index", tree, facts, {}, True)
            yield State(what + ", index", tree, facts, recorder.indexes[upto - 1], True)


def _name(call: Call) -> str:
    return f"{call.kind} {os.path.basename(call.target or call.path).decode('latin-1')}"


def materialise(state: State, old_root: bytes, new_root: bytes) -> None:
    """Write the state below `new_root`."""
    shutil.rmtree(new_root, ignore_errors=True)
    os.makedirs(new_root)

    def moved(path: bytes) -> bytes:
        return new_root + path[len(old_root) :]

    made: dict[int, bytes] = {}
    for path in sorted(state.tree.names):
        node = state.tree.names[path]
        target = moved(path)
        if not os.path.isdir(os.path.dirname(target)):
            continue  # its directory is lost
        if node is None:
            os.makedirs(target, exist_ok=True)
        elif node in made:
            os.link(made[node], target)
        else:
            with open(target, "wb") as file:
                file.write(state.tree.data.get(node, b""))
            made[node] = target
            if target.endswith(b".lock") and (state.cut or not state.tree.data.get(node)):
                os.utime(target, (0, 0))  # from before the machine started, or empty for long
    for path, data in state.index.items():
        if os.path.isdir(os.path.dirname(moved(path))):
            with open(moved(path), "wb") as file:
                file.write(data)
