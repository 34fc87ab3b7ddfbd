"""The message store's door: deliveries, folders, mailboxes. Everything async, the work in threads.

One thread hop per call. Long work on many messages goes to a pool of its own, so that it never stands in the way of a
delivery. What may be raised is in `pymx.ms.errors`; nothing else comes out.

Guarantee: when `deliver` or `append` returns, the message and its name are on disk; when a UID or UIDNEXT is returned
by `append`, `status`, `open`, `refresh`, `copy` or `move`, the uidlist line behind it is too.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pymx import log
from pymx.config import model
from pymx.ms import (
    appending,
    arrive,
    attributes,
    copying,
    deliveries,
    delivering,
    firstsight,
    flagging,
    folders,
    names,
    quota,
)
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.change import Changed
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.disk import Disk
from pymx.ms.dovecotplace import control_root
from pymx.ms.errors import MailboxExists, NoSuchMailbox, StoreError, translated
from pymx.ms.folders import Folder
from pymx.ms.hints import Hints
from pymx.ms.index import NAME as INDEX_NAME
from pymx.ms.layout import INBOX, Layout, is_mailbox
from pymx.ms.mailbox import Mailbox
from pymx.ms.objectid import mailbox_id
from pymx.ms.observer import Observer
from pymx.ms.owner import Owner
from pymx.ms.threads import Threads
from pymx.ms.watch import Watch
from pymx.spool import Content

T = TypeVar("T")
MAX_OPEN_ACCOUNTS = 32
_log = log.get("ms")


@dataclass(frozen=True, slots=True)
class Append:
    """One message of APPEND."""

    content: Content
    flags: int
    keywords: tuple[str, ...]
    internaldate: int | None


@dataclass(frozen=True, slots=True)
class Appended:
    """APPENDUID."""

    uidvalidity: int
    uids: list[int]


@dataclass(frozen=True, slots=True)
class Status:
    """The items of STATUS."""

    messages: int
    unseen: int
    recent: int
    uidnext: int
    uidvalidity: int
    highestmodseq: int
    octets: int
    deleted: int
    deleted_octets: int = 0
    mailbox_id: str = ""


def _aside(account: Account, work: Callable[[], None]) -> None:
    """Work nobody waits for: a failure is logged, and harmless."""
    try:
        account.call(work)
    except StoreError as error:
        _log.warning("tidying_failed", account=account.email, reason=error.reason)


class Store:
    """The mailboxes of all accounts under one root."""

    def __init__(
        self,
        mail: model.Mail,
        *,
        render: arrive.Render | None,
        runtime_dir: Path | None,
        hostname: str,
        disk: Disk | None = None,
        boot: str = "",
        changed: Changed | None = None,
    ) -> None:
        self._mail = mail
        self.changed = changed
        self.separator = mail.separator
        self.fulltext = mail.fulltext
        # called in the loop when an account comes close to its limits
        self.quota_crossed: Callable[[Owner, quota.Crossing], None] | None = None
        # called in the loop with an address and a mailbox's GUID when most of a large mailbox is not rendered yet
        self.wants_rendering: Callable[[str, str], None] = lambda _email, _guid: None
        # called in the loop with the address of an account that searched messages not in its full-text index
        self.wants_fulltext: Callable[[str], None] = lambda _email: None
        self.render = render
        self._root = os.fsencode(mail.root)
        self._layout = Layout(mail.layout, mail.separator)
        self.disk = disk or Disk()
        self._boot = boot
        self._host = names.host_part(hostname)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accounts: dict[str, Account] = {}
        self._open_indexes: dict[str, Account] = {}
        self.hints = Hints(runtime_dir)
        self.watch = Watch(self._look)
        self._threads = Threads(mail.threads, "ms")
        self._behind: dict[Box, asyncio.Future[None]] = {}  # mailboxes whose rows are being written
        self._closing = False
        self._bulk = ThreadPoolExecutor(mail.bulk_threads, thread_name_prefix="ms-bulk")

    async def start(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.hints.start(loop, f"{os.getpid()}-{secrets.token_hex(4)}")
        self.watch.start(loop)

    async def close(self) -> None:
        await self.watch.close()
        self.hints.close()
        self._closing = True
        if self._behind:
            await asyncio.wait(self._behind.values())
        loop = asyncio.get_running_loop()
        for account in list(self._accounts.values()):
            await loop.run_in_executor(self._bulk, functools.partial(account.call, account.close))
        self._accounts.clear()
        self._open_indexes.clear()
        await self._threads.close()
        await loop.run_in_executor(None, self._bulk.shutdown)

    # Threads and accounts

    def _account(self, owner: Owner) -> Account:
        account = self._accounts.get(owner.email)
        if account is None:
            root = owner.path(self._root)
            if self._mail.index_dir:
                index = os.path.join(owner.path(os.fsencode(self._mail.index_dir)), INDEX_NAME)
            else:
                index = os.path.join(root, INDEX_NAME)
            account = Account(
                owner,
                root,
                index,
                self._layout,
                disk=self.disk,
                host=self._host,
                changed=self.hints.publish,
                boot=self._boot,
                control=control_root(self._mail.control_dir, owner),
            )
            self._accounts[owner.email] = account
        self._used(account)
        return account

    def _used(self, account: Account) -> None:
        """Last used last; beyond the limit the indexes of those at the front are closed."""
        self._open_indexes.pop(account.email, None)
        self._open_indexes[account.email] = account
        while len(self._open_indexes) > MAX_OPEN_ACCOUNTS:
            idle = next((a for a in self._open_indexes.values() if not a.uses and a is not account), None)
            if idle is None:
                break
            del self._open_indexes[idle.email]
            if not idle.sessions:
                del self._accounts[idle.email]
            self._bulk.submit(_aside, idle, idle.close)

    async def run(self, owner: Owner, function: Callable[[Account], T], *, bulk: bool = False) -> T:
        """`function(account)` in a thread, with the account kept open meanwhile and errors translated."""
        if bulk:
            return await self.begin(owner, function)
        account = self._account(owner)
        account.uses += 1
        try:
            return await self._threads.run(functools.partial(account.call, functools.partial(function, account)))
        finally:
            self._ran(account)

    def begin(self, owner: Owner, function: Callable[[Account], T]) -> asyncio.Future[T]:
        """As `run` with `bulk`, under way when this returns; the caller awaits it."""
        account = self._account(owner)
        account.uses += 1
        work = functools.partial(account.call, functools.partial(function, account))
        future = asyncio.get_running_loop().run_in_executor(self._bulk, work)
        future.add_done_callback(lambda _: self._ran(account))
        return future

    def _ran(self, account: Account) -> None:
        account.uses -= 1
        if account.home.index.wants_checkpoint and not self._closing:
            self._bulk.submit(_aside, account, account.tidy)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Plain file work in a thread."""

        def work() -> T:
            with translated():
                return function()

        return await self._threads.run(work)

    def retain(self, owner: Owner) -> Account:
        """An account that is remembered until `release`: a session has a mailbox of it selected."""
        account = self._account(owner)
        account.sessions += 1
        return account

    def release(self, account: Account) -> None:
        account.sessions -= 1
        if not account.sessions and not account.uses and account.email not in self._open_indexes:
            self._accounts.pop(account.email, None)

    async def _look(self, boxes: list[Box]) -> None:
        """Compare watched mailboxes with their index; differences, and hints that did not arrive, become hints."""
        accounts = [a for email in {box.home.email for box in boxes} if (a := self._accounts.get(email))]
        for account in accounts:
            account.uses += 1

        def look() -> list[Account]:
            opened = []
            for box in boxes:
                try:
                    with translated():
                        if not box.quiet():
                            box.refresh()
                            opened += [a for a in accounts if a.email == box.home.email]
                        # What another process of ours did is in the index already, and its hint may be lost.
                        self.hints.missed((box.home.email, box.guid), box.seen_modseq)
                except NoSuchMailbox:
                    box.home.changed(box.guid, 0)
                except StoreError as error:
                    _log.warning("mailbox_not_looked_at", mailbox=box.name, account=box.home.email, reason=error.reason)
            return opened

        opened: list[Account] = []
        try:
            opened = await asyncio.get_running_loop().run_in_executor(self._bulk, look)
        finally:
            for account in accounts:
                account.uses -= 1
        for account in opened:
            self._used(account)

    # Delivery

    async def deliver(self, several: Sequence[Delivery]) -> list[Delivered | StoreError]:
        """Store each; durable at return. One bad mailbox does not stop the others."""
        return await deliveries.deliver(self, several)

    def rows_missing(self, owner: Owner, box: Box) -> None:
        """Something came into a mailbox whose rows are not all written, perhaps with nobody at it; in a thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._write_rows, owner, box)

    # Quota

    def check_room(self, account: Account, owner: Owner, octets: int, messages: int = 1) -> None:
        """OverQuota if so much more would be too much; in a thread."""
        quota.check_room(account, owner, octets, messages)

    def came_in(self, account: Account, owner: Owner) -> None:
        """Warn if something that came in passed a level; in a thread. Never fails."""
        if self.quota_crossed is None or self._loop is None:
            return
        try:
            with translated():
                crossing = quota.crossing(account, owner)
        except StoreError as error:
            _log.warning("tidying_failed", account=account.email, reason=error.reason)
            return
        if crossing is not None:
            self._loop.call_soon_threadsafe(self.quota_crossed, owner, crossing)

    async def check_quota(self, owner: Owner, octets: int) -> None:
        """OverQuota if a message of `octets` would be too much."""
        if owner.is_limited:
            await self.run(owner, lambda account: self.check_room(account, owner, octets))

    async def usage(self, owner: Owner) -> quota.Usage:
        return quota.Usage(*await self.run(owner, lambda account: account.usage()))

    # Folders

    async def prepare(self, owner: Owner) -> None:
        """First login: make and subscribe the usual folders, once."""

        def prepare(account: Account) -> None:
            account.box(INBOX)
            with account.home.index.read() as db:
                if db.execute("SELECT 1 FROM meta WHERE key='prepared'").fetchone():
                    return
            if not os.path.exists(os.path.join(account.home.place.account_files, b"subscriptions")):
                account.subscribe(INBOX, subscribe=True)
                for name in self._mail.folders:
                    levels = self._layout.levels(name)
                    if not is_mailbox(self._layout.path(account.home.root, levels)):
                        try:
                            folders.create(account.home, self._layout, levels, self._mail.folders[name])
                        except MailboxExists:
                            pass  # another session of this user's first login
                    account.subscribe(levels, subscribe=True)
            with account.home.index.write() as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES('prepared', 1)")

        await self.run(owner, prepare)

    async def folders(self, owner: Owner) -> list[Folder]:
        def listing(account: Account) -> list[Folder]:
            account.box(INBOX)
            return folders.listing(account.home, self._layout, self._mail.folders)

        return await self.run(owner, listing)

    async def status(self, owner: Owner, name: str) -> Status:
        levels = self._layout.levels(name)

        def status(account: Account) -> Status:
            found = delivering.counted(account.box(levels))
            row = found.row
            return Status(
                row.messages,
                row.unseen,
                found.recent,
                row.uidnext,
                row.uidvalidity,
                row.highestmodseq,
                row.octets,
                row.deleted,
                found.deleted_octets,
                mailbox_id(row.guid),
            )

        return await self.run(owner, status)

    async def create(self, owner: Owner, name: str, special_use: str = "") -> None:
        levels = self._layout.levels(name)

        def create(account: Account) -> None:
            account.box(INBOX)
            folders.create(account.home, self._layout, levels, special_use)

        await self.run(owner, create)

    async def delete(self, owner: Owner, name: str) -> None:
        levels = self._layout.levels(name)

        def delete(account: Account) -> bytes:
            guid = account.guid(levels)
            trash = folders.delete(account.home, self._layout, levels)
            attributes.forget(account.home, guid)
            return trash

        trash = await self.run(owner, delete)
        await self.run(owner, lambda _: folders.purge(trash), bulk=True)

    async def rename(self, owner: Owner, old: str, new: str) -> None:
        """RENAME; of INBOX it means that its messages move to a new mailbox (RFC 3501 s. 6.3.5)."""
        before, after = self._layout.levels(old), self._layout.levels(new)

        def rename(account: Account) -> None:
            if before != INBOX:
                folders.rename(account.home, self._layout, before, after)
                return
            inbox = account.box(INBOX)
            folders.create(account.home, self._layout, after, "")
            row = delivering.told_row(inbox)
            with account.home.index.read() as db:
                uids = inbox.views.full(db, row)
            copying.move(inbox, account.box(after), uids, account.with_guid)

        await self.run(owner, rename, bulk=before == INBOX)

    async def subscribe(self, owner: Owner, name: str) -> None:
        levels = self._layout.levels(name)
        await self.run(owner, lambda account: account.subscribe(levels, subscribe=True))

    async def unsubscribe(self, owner: Owner, name: str) -> None:
        levels = self._layout.levels(name)
        await self.run(owner, lambda account: account.subscribe(levels, subscribe=False))

    # Attributes

    async def attributes(self, owner: Owner, name: str) -> dict[str, bytes]:
        """Entries of METADATA (RFC 5464) by name; of the account itself if the mailbox's name is empty."""
        levels = self._layout.levels(name or INBOX[0])
        return await self.run(owner, lambda account: attributes.of_mailbox(account, levels, server=not name))

    async def set_attributes(
        self, owner: Owner, name: str, values: Mapping[str, bytes | None], *, max_octets: int
    ) -> None:
        """Change entries (None: take away), durably; LimitReached if the account would have more than `max_octets`."""
        change = attributes.Change(self._layout.levels(name or INBOX[0]), not name, values, max_octets)
        await self.run(owner, change.make)

    # Mailboxes

    async def append(self, owner: Owner, name: str, items: Sequence[Append], *, freed: int = 0) -> Appended:
        """APPEND or MULTIAPPEND: all or none, durable, UIDs told. `freed`: octets that will go for it (REPLACE)."""
        levels = self._layout.levels(name)

        def append(account: Account) -> Appended:
            box = account.box(levels)
            octets = sum(item.content.size_octets for item in items)
            self.check_room(account, owner, octets - freed, len(items) - bool(freed))
            messages = [(i.content, i.flags, i.keywords, i.internaldate) for i in items]
            appended = Appended(*appending.append(box, messages, self.render))
            self.came_in(account, owner)
            return appended

        return await self.run(owner, append)

    async def open(self, owner: Owner, name: str, *, read_only: bool) -> Mailbox:
        """SELECT, or EXAMINE with `read_only`."""
        levels = self._layout.levels(name)

        def opened(account: Account) -> tuple[Box, delivering.Opened]:
            box = account.box(levels)
            return box, delivering.opened(box, None if read_only else flagging.claim_new)

        box, state = await self.run(owner, opened)
        mailbox = Mailbox(self, owner, self._layout.name(levels), box, state, read_only=read_only)
        if state.early is None:
            await mailbox.prepare_rendering()
        else:
            # as `Mailbox.prepare_rendering`: it can only be cold
            self._write_rows(owner, box, lambda: self.wants_rendering(owner.email, box.guid))
        return mailbox

    def _write_rows(self, owner: Owner, box: Box, then: Callable[[], None] | None = None) -> None:
        """Those that a mailbox at its first sight lacks; whatever needs them first waits for this, or does it."""
        if box in self._behind or self._closing:
            return
        account = self._account(owner)
        account.uses += 1
        work = functools.partial(firstsight.complete, box, lambda: self._closing)
        future = asyncio.get_running_loop().run_in_executor(self._bulk, _aside, account, work)

        def written(done: asyncio.Future[None]) -> None:
            account.uses -= 1
            del self._behind[box]
            if then is not None and not self._closing:
                then()

        self._behind[box] = future
        future.add_done_callback(written)

    def observe(self, owner: Owner, wake: Callable[[], None]) -> Observer:
        """Hear of whatever happens in the account; `wake` is called in the loop."""
        return Observer(self, owner, wake)

    def levels(self, name: str) -> tuple[str, ...]:
        return self._layout.levels(name)

    def name(self, levels: tuple[str, ...]) -> str:
        return self._layout.name(levels)

    def special_use(self, account: Account, name: str) -> str:
        """The special use of a mailbox; in a thread."""
        return folders.special_use(account.home, self._layout, self._layout.levels(name), self._mail.folders)
