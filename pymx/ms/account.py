"""One account in this process: its directory, its index, and its mailboxes while somebody uses them.

Synchronous; `pymx.ms.store` calls it in threads. A damaged index is moved aside and the call made once more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from pymx import log
from pymx.ms import firstsight, folders, morekeywords, subscriptions, uidlist
from pymx.ms.box import Box, Home, make_directories
from pymx.ms.disk import Disk
from pymx.ms.dovecotplace import Place
from pymx.ms.errors import NoSuchMailbox, translated
from pymx.ms.hints import FOLDERS
from pymx.ms.index import Index, IndexBusy, IndexDamaged
from pymx.ms.layout import INBOX, Layout, Levels, is_mailbox, storage_name
from pymx.ms.owner import Owner
from pymx.ms.reconcile import reconcile
from pymx.ms.row import FILLING, Row

T = TypeVar("T")
_TMP_S = 36 * 3600
_KEPT = 200  # mailboxes that nobody uses just now
_log = log.get("ms")


class Account:
    """What a process has open of one account."""

    def __init__(
        self,
        owner: Owner,
        root: bytes,
        index_path: bytes,
        layout: Layout,
        *,
        disk: Disk,
        host: bytes,
        changed: Callable[[str, str, int], None],
        boot: str = "",
        control: bytes = b"",
    ) -> None:
        self.layout = layout
        self.email = owner.email
        self.uses = 0  # calls in progress, and
        self.sessions = 0  # open mailboxes, both kept by the store
        self._boxes: WeakValueDictionary[Levels, Box] = WeakValueDictionary()  # one for all who use it
        self._recent: dict[Levels, Box] = {}
        self._mutex = threading.Lock()
        self._counted = False
        try:
            mode = os.stat(root).st_mode & 0o666
        except FileNotFoundError:
            mode = 0o600
        self.home = Home(
            owner.email,
            root,
            disk,
            Index(index_path, mode=mode, boot=boot),
            host,
            mode,
            Place(root, layout.fs, control),
            self._path_of,
            lambda guid, modseq: changed(owner.email, guid, modseq),
        )

    def _path_of(self, name: str) -> bytes | None:
        return self.layout.path(self.home.root, tuple(name.split("/"))) if name else None

    def call(self, function: Callable[[], T]) -> T:
        """Run it with errors translated; once more after a damaged index was moved aside."""
        with translated():
            try:
                return function()
            except IndexBusy:
                raise
            except IndexDamaged as error:
                _log.error("index_damaged", account=self.email, path=os.fsdecode(self.home.root), error=str(error))
                self.home.index.discard_damaged()
                return function()

    def box(self, levels: Levels) -> Box:
        """The mailbox; NoSuchMailbox if it has no directory. INBOX is made."""
        path = self.layout.path(self.home.root, levels)
        if not is_mailbox(path):
            if levels != INBOX:
                with self._mutex:
                    self._boxes.pop(levels, None)
                    self._recent.pop(levels, None)
                raise NoSuchMailbox("Mailbox does not exist")
            self.make_inbox()
        with self._mutex:
            box = self._boxes.get(levels)
            if box is None:
                box = self._boxes[levels] = Box(
                    self.home, levels, path, reconcile, morekeywords.write, firstsight.prepare
                )
            self._recent.pop(levels, None)
            self._recent[levels] = box
            if len(self._recent) > _KEPT:
                del self._recent[next(iter(self._recent))]
            return box

    def guid(self, levels: Levels) -> str:
        """The mailbox's GUID as the index knows it; "" if it does not."""
        with self.home.index.read() as db:
            found = db.execute("SELECT guid FROM mailbox WHERE name=?", (storage_name(levels),)).fetchone()
        return found[0] if found else ""

    def with_guid(self, guid: str) -> Box | None:
        """The mailbox that has this GUID by its uidlist, whatever its name is by now."""
        for levels in self.layout.mailboxes(self.home.root):
            path = self.layout.path(self.home.root, levels)
            try:
                if uidlist.guid_of(os.path.join(self.home.place.control_of(path, levels), uidlist.NAME)) == guid:
                    return self.box(levels)
            except (FileNotFoundError, NoSuchMailbox, uidlist.Damaged):
                continue
        return None

    def make_inbox(self) -> None:
        """The account's own directory and the mailbox in it."""
        self._make_roots()
        with folders.account_lock(self.home):
            if not is_mailbox(self.home.root):
                inbox = Box(self.home, INBOX, self.home.root, reconcile, morekeywords.write, firstsight.prepare)
                if os.path.exists(inbox.uidlist):
                    inbox.mend()
                else:
                    folders.make(self.home, self.home.root, INBOX)

    def _make_roots(self) -> None:
        for path in (self.home.root, self.home.place.account_files):
            make_directories(self.home.disk, path)

    def usage(self) -> tuple[int, int]:
        """Octets and messages of all mailboxes; those the index has never seen are looked at first."""
        if not self._counted:
            self.make_inbox()
            with self.home.index.read() as db:
                known = {name for (name,) in db.execute("SELECT name FROM mailbox WHERE guid <> ''")}
            for levels in self.layout.mailboxes(self.home.root):
                if storage_name(levels) not in known:
                    self.box(levels).refresh()
            self._counted = True
        with self.home.index.read() as db:
            octets, messages, filling = db.execute(
                "SELECT coalesce(sum(octets), 0), coalesce(sum(messages), 0), total(dirty_since = ?) FROM mailbox",
                (FILLING,),
            ).fetchone()
        return self._usage_while_filling() if filling else (octets, messages)

    def _usage_while_filling(self) -> tuple[int, int]:
        """As `usage`, with mailboxes whose rows are being written, or were when a process was killed."""
        with self.home.index.snapshot() as db:  # else one that is finished in between is not counted at all
            octets, messages = db.execute(
                "SELECT coalesce(sum(octets), 0), coalesce(sum(messages), 0) FROM mailbox WHERE dirty_since IS NOT ?",
                (FILLING,),
            ).fetchone()
            filling = db.execute("SELECT name FROM mailbox WHERE dirty_since = ?", (FILLING,)).fetchall()
        for (name,) in filling:
            row = self._whole_row(tuple(name.split("/")))
            octets += row.octets if row else 0
            messages += row.messages if row else 0
        return octets, messages

    def _whole_row(self, levels: Levels) -> Row | None:
        """The row of a mailbox with all of its messages counted; None if the mailbox is gone."""
        try:
            box = self.box(levels)
            known = firstsight.counted(box)
            if known is not None:
                return known.row
            box.refresh()
        except NoSuchMailbox:
            return None
        with self.home.index.read() as db:
            return box.row(db)

    def tidy(self) -> None:
        """Now and then, not in a mail path: checkpoint, forget old changes, remove what deliveries left in `tmp/`."""
        self.home.index.checkpoint()
        self.home.index.forget_old_changes()
        with self._mutex:
            boxes = list(self._boxes.values())
        for box in boxes:
            sweep_tmp(box)

    def subscribe(self, levels: Levels, *, subscribe: bool) -> None:
        self._make_roots()
        separator = "/" if self.layout.fs else "."
        subscriptions.change(
            self.home.disk, self.home.place.account_files, separator, levels, subscribe=subscribe, mode=self.home.mode
        )
        self.home.changed(FOLDERS, 0)

    def close(self) -> None:
        self.home.index.close()


def sweep_tmp(box: Box) -> None:
    """Remove files that lie in `tmp/` for more than 36 h (Maildir)."""
    before = time.time() - _TMP_S
    try:
        with os.scandir(box.tmp) as entries:
            old = [e.path for e in entries if e.is_file(follow_symlinks=False) and e.stat().st_mtime < before]
    except FileNotFoundError:
        return
    for path in old:
        box.home.disk.unlink(path)
