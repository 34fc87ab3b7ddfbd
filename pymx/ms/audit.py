"""`mailbox check`: everything that can be wrong with an account's files and index, found by looking.

No file is made, changed or locked for writing. Other processes go on meanwhile: a mailbox is looked at again if it
changed while it was being read, and the third time its `pymx.lock` is held shared for that moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pymx.ms import auditfiles, auditindex, keywords, names, subscriptions, uidlist
from pymx.ms.auditfiles import Problem
from pymx.ms.dovecotplace import Place
from pymx.ms.fault import Finding, some
from pymx.ms.index import Connection, IndexBusy, IndexOutdated, IndexTrouble, open_read_only
from pymx.ms.layout import Layout, Levels, is_mailbox, storage_name
from pymx.ms.row import Stamp

_TRIES = 3
# what only a person can decide; for the rest there is `mailbox reindex`
_REMEDIES = {
    "file_name_unusable": "rename the files to names without line breaks or colons, or remove them",
    "not_a_message_file": "move them somewhere else; folders belong beside cur/, not in it",
    "keywords_nameless": "give them names in dovecot-keywords (a line is: number of the letter, space, name)",
    "packed": "pymx can't serve such files: let Dovecot write them anew without that plugin",
    "packed_gzip": "they are torn or damaged: restore them from a backup",
    "packed_zstd": "they are damaged, or the package that reads them is missing: pip install 'pymx[zstd]'",
    "message_unreadable": "look at the file's owner and mode; on an I/O error restore it from a backup",
}


@dataclass(slots=True)
class Snapshot:
    """One mailbox at one moment."""

    stamp: Stamp
    cur: set[bytes]
    new: set[bytes]
    uidlist: bytes | None
    keywords: bytes | None
    indexed: auditindex.Indexed | None


class Audit:
    """Of one account. `index` None: only Dovecot's files are looked at."""

    def __init__(
        self,
        root: bytes,
        layout: Layout,
        index: bytes | None,
        *,
        user: str,
        read_messages: bool = True,
        place: Place | None = None,
    ) -> None:
        """`place`: where Dovecot has its files, if not all in `root`."""
        self.root = root
        self._place = place or Place(root, layout.fs)
        self.layout = layout
        self.user = user
        self._index_path = index
        self._read_messages = read_messages
        self._db: Connection | None = None

    def run(self, only: Levels | None = None) -> Iterator[Finding]:
        """All findings of the account, or of one mailbox."""
        yield from self._open_index()
        try:
            if only is None:
                yield from self._account()
            for levels in (
                [only] if only else sorted(self.layout.mailboxes(self.root), key=lambda n: (n != ("INBOX",), n))
            ):
                yield from self.mailbox(levels)
        finally:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open_index(self) -> Iterator[Finding]:
        if self._index_path is None:
            return
        try:
            self._db = open_read_only(self._index_path)
            found = [text for (text,) in self._db.execute("PRAGMA quick_check(3)") if text != "ok"]
            if found:
                raise IndexTrouble("; ".join(found))
        except FileNotFoundError:
            yield Finding("", "index_missing", "there is no index yet; the first access makes it", wrong=False)
        except IndexOutdated:
            text = "the index is of another version of pymx; the next access makes a new one"
            yield Finding("", "index_outdated", text, wrong=False)
        except IndexBusy as error:
            yield Finding("", "index_busy", f"the index could not be read: {error}", "try again")
            self._db = None
        except IndexTrouble as error:
            if self._db is not None:
                self._db.close()
                self._db = None
            yield self._finding("", ("index_damaged", f"the index can't be read: {error}", True))

    def _account(self) -> Iterator[Finding]:
        there = list(self.layout.mailboxes(self.root))
        try:
            with open(os.path.join(self._place.account_files, subscriptions.NAME), "rb") as file:
                data = file.read()
            separator = "/" if self.layout.fs else "."
            for problem in auditfiles.subscriptions_problems(data, separator, there):
                yield self._finding("", problem)
        except FileNotFoundError:
            pass
        if self._db is not None:
            known = {storage_name(levels) for levels in there}
            rows = self._db.execute("SELECT name FROM mailbox WHERE messages > 0").fetchall()
            ghosts = [name for (name,) in rows if name not in known]
            if ghosts:
                text = f"the index counts messages of mailboxes that are gone: {some(ghosts)}"
                yield self._finding("", ("index_ghost", text, True))
            orphans = self._db.execute(
                "SELECT count(*) FROM message WHERE id >> 32 NOT IN (SELECT id FROM mailbox)"
            ).fetchone()[0]
            if orphans:
                yield self._finding("", ("index_orphans", f"{orphans} rows of the index belong to no mailbox", True))

    def mailbox(self, levels: Levels) -> Iterator[Finding]:
        """The findings of one mailbox, those that need no reading of messages first."""
        name = self.layout.name(levels)
        path = self.layout.path(self.root, levels)
        if not is_mailbox(path):
            yield Finding(name, "mailbox_missing", "there is no such mailbox", "pymxctl mailbox check USER lists them")
            return
        snapshot = self._snapshot(levels, path)
        found: uidlist.UidList | None = None
        with contextlib.suppress(uidlist.Damaged):
            found = uidlist.parse(snapshot.uidlist or b"")
        for problem in self._problems(path, self._place.control_of(path, levels), snapshot, found):
            yield self._finding(name, problem)
        for problem in self._sizes(path, snapshot, found):
            yield self._finding(name, problem)

    def _problems(
        self, path: bytes, control: bytes, snapshot: Snapshot, found: uidlist.UidList | None
    ) -> Iterator[Problem]:
        if snapshot.uidlist is not None:
            yield from auditfiles.uidlist_problems(snapshot.uidlist)
        elif snapshot.indexed is not None and snapshot.indexed.messages:
            yield "uidlist_missing", "dovecot-uidlist is gone, the index still has its UIDs", True
        elif snapshot.cur or snapshot.new:
            text = "there is no dovecot-uidlist: the messages get new UIDs at the first access"
            yield "uidlist_missing", text, False
        used = 0
        for file_name in snapshot.cur:
            used |= names.flags_of(file_name)[1]
        yield from auditfiles.keywords_problems(snapshot.keywords, used)
        yield from auditfiles.listing_problems(path, snapshot.cur, snapshot.new)
        yield from auditfiles.tmp_problems(path)
        yield from auditfiles.lock_problems(control)
        if snapshot.indexed is not None:
            listed = (snapshot.cur, snapshot.new)
            yield from auditindex.problems(snapshot.indexed, snapshot.stamp, listed, found, snapshot.keywords or b"")

    def _finding(self, mailbox: str, problem: Problem) -> Finding:
        kind, text, wrong = problem
        where = f" '{mailbox}'" if mailbox else ""
        remedy = _REMEDIES.get(kind) or _REMEDIES.get(kind.partition("_")[0], "")
        if wrong and not remedy:
            remedy = f"pymxctl mailbox reindex {self.user}{where}"
        return Finding(mailbox, kind, text, remedy, wrong)

    # Looking at one moment

    def _snapshot(self, levels: Levels, path: bytes) -> Snapshot:
        control = self._place.control_of(path, levels)
        for attempt in range(_TRIES):
            with contextlib.ExitStack() as stack:
                if attempt == _TRIES - 1:
                    stack.enter_context(_shared_lock(path))
                before = _stamp(path, control)
                snapshot = Snapshot(
                    before,
                    _listing(os.path.join(path, b"cur")),
                    _listing(os.path.join(path, b"new")),
                    _read(os.path.join(control, uidlist.NAME)),
                    _read(os.path.join(control, keywords.NAME)),
                    self._indexed(levels),
                )
                if attempt == _TRIES - 1 or before == _stamp(path, control):
                    break
        return snapshot

    def _indexed(self, levels: Levels) -> auditindex.Indexed | None:
        if self._db is None:
            return None
        self._db.execute("BEGIN")
        try:
            return auditindex.read(self._db, storage_name(levels))
        finally:
            self._db.execute("COMMIT")

    # Reading the messages

    def _sizes(self, path: bytes, snapshot: Snapshot, found: uidlist.UidList | None) -> Iterator[Problem]:
        keys = {base: line_keys for _, line_keys, base in found.records} if found else {}
        wrong: list[str] = []
        unreadable: list[str] = []
        kinds: dict[str, list[str]] = {}
        for part, there in ((b"cur", snapshot.cur), (b"new", snapshot.new)):
            for name in sorted(there):
                file = os.path.join(path, part, name)
                try:
                    text, kind = self._size(file, name, keys.get(names.base_of(name), b""))
                except (FileNotFoundError, IsADirectoryError):
                    continue  # moved meanwhile, or said already
                except OSError as error:
                    unreadable.append(f"{os.fsdecode(name)} ({error.strerror})")
                    continue
                if kind:
                    kinds.setdefault(kind, []).append(os.fsdecode(name))
                elif text:
                    wrong.append(f"{os.fsdecode(name)} ({text})")
        if wrong:
            yield "size_wrong", f"{len(wrong)} file names give wrong sizes: {some(wrong)}", True
        if unreadable:
            yield "message_unreadable", f"messages can't be read: {some(unreadable)}", True
        for kind, files in kinds.items():
            yield f"packed_{kind}", f"{len(files)} messages are {_packing(kind)}: {some(files)}", True

    def _size(self, file: bytes, name: bytes, keys: bytes) -> tuple[str, str]:
        """What is wrong with the sizes, and how the file is packed."""
        disk, wire = auditfiles.claimed_sizes(name, keys)
        if not self._read_messages:
            octets = os.stat(file, follow_symlinks=False).st_size
            if disk in (None, octets) or auditfiles.packed_kind(file):
                return "", ""
            return f"S={disk}, is {octets}", ""
        if not auditfiles.is_regular(file):
            return "", ""
        octets, wire_octets, kind = auditfiles.true_sizes(file)
        said = []
        if disk not in (None, octets):
            said.append(f"S={disk}, is {octets}")
        if wire not in (None, wire_octets):
            said.append(f"W={wire}, is {wire_octets}")
        return ", ".join(said), kind


def _packing(kind: str) -> str:
    return kind if kind == "encrypted" else f"compressed with {kind}"


def _stamp(path: bytes, control: bytes) -> Stamp:
    cur = os.stat(os.path.join(path, b"cur")).st_mtime_ns
    try:
        new = os.stat(os.path.join(path, b"new")).st_mtime_ns
    except FileNotFoundError:
        new = 0
    try:
        found = os.stat(os.path.join(control, uidlist.NAME))
    except FileNotFoundError:
        return (0, 0, 0, cur, new)
    return (found.st_ino, found.st_size, found.st_mtime_ns, cur, new)


def _listing(directory: bytes) -> set[bytes]:
    try:
        return {name for name in os.listdir(directory) if not name.startswith(b".")}
    except FileNotFoundError:
        return set()


def _read(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _shared_lock(path: bytes) -> Iterator[None]:
    """Holds off pymx's own writers, if there ever were any."""
    try:
        fd = os.open(os.path.join(path, b"pymx.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)
