"""A mailbox as one session has it open.

The session sees a *view*: an array of UIDs that moves only in `refresh`, so that sequence numbers change when the
session says so. Rows are tuples `(uid, modseq, flags, keywords, octets, internaldate, savedate)`. All methods run their
work in threads, one hop each, and raise `StoreError` only.
"""

from __future__ import annotations

import asyncio
import functools
import os
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pymx.mail.search import Criterion
from pymx.mail.threads import Forest
from pymx.ms import (
    copying,
    delivering,
    flagging,
    letters,
    names,
    prerender,
    reading,
    removing,
    rows,
    searching,
    sorting,
    view,
)
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.change import Change
from pymx.ms.copying import Copied
from pymx.ms.errors import NoSuchMailbox, ReadOnly, Stopped
from pymx.ms.index import FLAGGED
from pymx.ms.listing import Listing, Pieces
from pymx.ms.measure import wire_size
from pymx.ms.message import StoredMessage
from pymx.ms.objectid import email_id, mailbox_id
from pymx.ms.owner import Owner
from pymx.ms.row import FILLING
from pymx.ms.rows import MessageRow

if TYPE_CHECKING:
    from pymx.ms.store import Store

T = TypeVar("T")
NO_RECENT = 0xFFFFFFFF
_BULK_MESSAGES = 500
_READ_AT_ONCE = 32  # messages, in one hop
_SMALL_OCTETS = 65_536


@dataclass(frozen=True, slots=True)
class Changes:
    """What `refresh` found: positions expunged (descending), arrivals at the end, changed rows."""

    expunged: list[int]
    arrived: int
    flagged: list[MessageRow]
    keywords_changed: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """STORE: the rows as they are now; UIDs left alone because of UNCHANGEDSINCE."""

    rows: list[MessageRow]
    modified: list[int]


class Mailbox:
    """An open mailbox; `close` it."""

    def __init__(
        self, store: Store, owner: Owner, name: str, box: Box, state: delivering.Opened, *, read_only: bool
    ) -> None:
        self.name = name
        self.owner = owner
        self.read_only = read_only
        self.uidvalidity = state.row.uidvalidity
        self.uidnext = state.row.uidnext
        self.highestmodseq = state.row.highestmodseq
        self.uids: array[int] = state.uids
        self.keywords: list[str] = state.keywords
        self.first_recent = state.first_recent if state.first_recent < state.row.uidnext or not read_only else NO_RECENT
        self._store = store
        self._account = store.retain(owner)
        self._box = box
        self._id = state.row.id
        self._low = state.row.low
        self._guid = state.row.guid
        self._own_modseqs: set[int] = set()
        self._mixed: set[int] = set()  # UIDs that others had changed before our own STORE did
        self._held_back = False  # expunged messages are still in the view
        self._callback: Callable[[], None] | None = None
        self._closed = False
        self._stopped = False
        self._rendering_asked = False
        self._early = state.early  # what SELECT tells is known before the rows are there

    # Looking

    async def refresh(self, *, expunge: bool = True) -> Changes:
        """Move the view to now. Without `expunge` the messages that are gone stay in it for a later call."""
        changes, view_now = await self._run(lambda _: self._refresh(expunge))
        self.uids, self.uidnext, self.highestmodseq, self.keywords, self._held_back, self.first_recent = view_now
        return changes

    def _refresh(self, expunge: bool) -> tuple[Changes, tuple[array[int], int, int, list[str], bool, int]]:
        box, since = self._box, self.highestmodseq
        row = delivering.told_row(box)
        if row.id != self._id or row.uidvalidity != self.uidvalidity:
            raise NoSuchMailbox("Mailbox was replaced by another one")
        if not self._held_back and row.highestmodseq == since and row.uidnext == self.uidnext:
            return Changes([], 0, [], False), (self.uids, self.uidnext, since, self.keywords, False, self.first_recent)
        ours = row.first_recent  # from here on new messages are this session's, if it is one that may claim them
        if not self.read_only and row.first_recent < row.uidnext:
            ours = flagging.claim_new(box)
        with box.home.index.snapshot() as db:
            fresh = box.row(db)
            if fresh is None:
                raise NoSuchMailbox("Mailbox does not exist")
            base = 0 if self._held_back else since
            gone = view.expunged_since(db, fresh, self.uids, base)
            arrived = view.arrived_since(db, fresh, self.uids, self.uidnext)
            flagged = self._flagged(rows.changed(db, fresh.id, self._low, since, FLAGGED), since)
            keywords = letters.keyword_names(db, fresh)
        if not self.read_only and fresh.first_recent < fresh.uidnext:
            flagging.claim_new(box)  # one came in between
        box.tell(fresh.uidlist_ino, fresh.uidlist_size)
        uids = view.without(self.uids, gone) if expunge else self.uids
        if arrived:
            uids = uids + array("I", arrived)
        if uids is not self.uids:
            uids = box.views.shared(self.uids, uids)
        known = keywords != self.keywords
        changes = Changes([p + 1 for p in reversed(gone)] if expunge else [], len(arrived), flagged, known)
        held_back = bool(gone) and not expunge
        # RFC 3501 s. 2.3.2: \Recent in one session only. Recent ones are the end of the view, so if others were told
        # of some that came since, those before them are no news any more either.
        first_recent = max(self.first_recent, ours) if arrived and arrived[0] < ours else self.first_recent
        return changes, (uids, fresh.uidnext, fresh.highestmodseq, keywords, held_back, first_recent)

    def _flagged(self, found: list[MessageRow], since: int) -> list[MessageRow]:
        """Changed rows the session has not been told by its own STORE, and that are in its view."""
        own, self._own_modseqs = self._own_modseqs, set()
        mixed, self._mixed = self._mixed, set()
        last = self.uids[-1] if self.uids else 0
        changed = [row for row in found if row[1] > since and (row[1] not in own or row[0] in mixed) and row[0] <= last]
        there = {self.uids[at] for at in flagging.positions(self.uids, [row[0] for row in changed])}
        return [row for row in changed if row[0] in there]

    async def rows(
        self, uids: Sequence[int], *, rendered: bool = False, dated: bool = True
    ) -> AsyncIterator[list[MessageRow]]:
        """Batches of rows in UID order; messages that are gone are absent. Without `dated` INTERNALDATE may be None."""
        size = 200 if rendered else rows.BATCH
        bulk = len(uids) > _BULK_MESSAGES
        if rendered and len(uids) > prerender.LEAST:
            await self.prepare_rendering()
        for start in range(0, len(uids), size):
            work = functools.partial(self._rows, uids[start : start + size], rendered, dated)
            batch = await self._run(work, bulk=bulk)
            if batch:
                yield batch

    def _rows(self, uids: Sequence[int], rendered: bool, dated: bool, _: Account) -> list[MessageRow]:
        return reading.rows(self._box, self._low, uids, rendered, self._store.render, dated=dated)

    async def listings(self, uids: Sequence[int], columns: Sequence[str]) -> AsyncGenerator[Listing, None]:
        """As `rows`, but columns of text, see `Listing`. Of many messages the next ones are read meanwhile."""
        pieces = Pieces(uids, columns)
        if pieces.rendered and len(uids) > prerender.LEAST:
            await self.prepare_rendering()
        hop = functools.partial(self._hop, pieces)
        if len(uids) > _BULK_MESSAGES:
            async with aclosing(pieces.read_ahead(lambda: self._begin(hop))) as found:
                async for piece in found:
                    yield piece
            return
        while not pieces.done:
            for piece in await self._run(hop):
                yield piece

    def _hop(self, pieces: Pieces, _: Account) -> list[Listing]:
        return pieces.hop(self._box, self._low, self._store.render)

    async def prepare_rendering(self) -> None:
        """Ask for help if most of a large mailbox is not rendered yet: another process begins at its end."""
        wanted, self._rendering_asked = not self._rendering_asked, True
        if not wanted or len(self.uids) <= prerender.LEAST:
            return
        if await self._run(lambda _: prerender.is_cold(self._box, self._low, self.uids)):
            self._store.wants_rendering(self.owner.email, self._guid)

    async def messages(self, uids: Sequence[int]) -> AsyncIterator[tuple[int, StoredMessage | None]]:
        """Open each message in turn; None for one that is gone."""
        for start in range(0, len(uids), _READ_AT_ONCE):
            part = uids[start : start + _READ_AT_ONCE]
            small = await self._run(functools.partial(self._read_small, part))
            for uid in part:
                data = small.pop(uid, None)
                if data is not None:
                    yield uid, StoredMessage(self._store, len(data), data=data)
                    continue
                found = await self._run(functools.partial(self._open, uid))
                if found is None:
                    yield uid, None
                    continue
                message = StoredMessage(self._store, found[1], fd=found[0])
                try:
                    yield uid, message
                finally:
                    message.close()

    def _read_small(self, uids: Sequence[int], _: Account) -> dict[int, bytes]:
        return reading.read_small(self._box, self._low, uids, _SMALL_OCTETS)

    async def first_unseen(self) -> int | None:
        """The first UID of the view without \\Seen."""
        early, self._early = self._early, None
        if early is not None and early.uids is self.uids:
            return early.first_unseen

        def first(_: Account) -> int | None:
            with self._box.home.index.snapshot() as db:
                row = self._box.row(db)
                return rows.first_unseen(db, row.low, self.uids) if row and row.unseen else None

        return await self._run(first)

    @property
    def held_back(self) -> bool:
        """Expunged messages are still in the view, because of `refresh` without `expunge`."""
        return self._held_back

    @property
    def mailbox_id(self) -> str:
        """MAILBOXID (RFC 8474): stays when the mailbox is renamed."""
        return mailbox_id(self._guid)

    async def email_ids(self, uids: Sequence[int]) -> dict[int, str]:
        """EMAILIDs (RFC 8474) by UID."""

        def find(_: Account) -> dict[int, str]:
            with self._box.home.index.read() as db:
                return {uid: email_id(guid) for uid, guid in rows.guids(db, self._low, uids)}

        return await self._run(find, bulk=len(uids) > _BULK_MESSAGES)

    async def previews(self, uids: Sequence[int], *, lazy: bool) -> dict[int, bytes | None]:
        """PREVIEWs (RFC 8970) by UID, made where they are missing; with `lazy` None for those."""
        return await self._run(
            lambda _: reading.previews(self._box, self._low, uids, lazy=lazy), bulk=len(uids) > _BULK_MESSAGES
        )

    async def modified_since(self, uids: Sequence[int], since: int) -> list[int]:
        """Those of `uids` (ascending) that changed after the modseq `since`."""

        def find(_: Account) -> list[int]:
            with self._box.home.index.read() as db:
                return rows.modified_since(db, self._low, uids, since)

        return await self._run(find)

    async def vanished(self, spans: Sequence[tuple[int, int]], since: int) -> list[tuple[int, int]]:
        """Runs of UIDs within `spans` (ascending, disjoint) expunged after `since`, but for those still in the view."""

        def find(_: Account) -> list[tuple[int, int]]:
            with self._box.home.index.snapshot() as db:
                row = self._box.row(db)
                return view.vanished(db, row, self.uids, spans, since, self.uidnext) if row else []

        return await self._run(find)

    def _open(self, uid: int, _account: Account) -> tuple[int, int] | None:
        fd = reading.open_message(self._box, uid)
        if fd is None:
            return None
        with self._box.home.index.read() as db:
            found = rows.name_of(db, self._low, uid)
        if found is None:
            os.close(fd)
            return None
        name, _, octets = found
        if names.disk_octets(name) not in (None, os.fstat(fd).st_size):
            octets = wire_size(b"/proc/self/fd/%d" % fd)  # the name lies
        return fd, octets

    async def search(self, criterion: Criterion) -> list[int]:
        """UIDs of the view that match, ascending."""
        view = _SearchView(self)

        def find(_: Account) -> tuple[list[int], bool]:
            view.name_keywords(self._keywords())
            narrowing = None
            if self._store.fulltext:
                narrowing = searching.narrow(self._box, self._guid, self.uidvalidity, criterion, view.uids)
            wants_build = narrowing is not None and narrowing.wants_build
            render = self._store.render
            found = searching.find(self._box, self._low, criterion, view, render, self._is_stopped, narrowing)
            return found, wants_build

        found, wants_build = await self._stoppable(find)
        if wants_build:
            self._store.wants_fulltext(self.owner.email)
        return found

    async def sort(self, uids: Sequence[int], order: Sequence[tuple[str, bool]]) -> list[int]:
        """`uids` (ascending) in the order of (criterion of `sorting.ORDERS`, reverse)."""
        work = functools.partial(sorting.sort, self._box, self._low, uids, order, self._store.render, self._is_stopped)
        return await self._stoppable(lambda _: work())

    async def threads(self, uids: Sequence[int], algorithm: str) -> Forest:
        """`uids` (ascending) as threads: ORDEREDSUBJECT, REFERENCES or REFS."""
        render = self._store.render
        work = functools.partial(sorting.thread, self._box, self._low, uids, algorithm, render, self._is_stopped)
        return await self._stoppable(lambda _: work())

    def stop(self) -> None:
        """Nobody waits for a search or sort any more: those that run end soon, and raise Stopped."""
        self._stopped = True

    async def _stoppable(self, function: Callable[[Account], T]) -> T:
        found = await self._run(function, bulk=True)
        if self._stopped:
            raise Stopped("Stopped by LOGOUT")  # what was found by then is not the answer
        return found

    def _is_stopped(self) -> bool:
        return self._stopped

    # Changing

    def _writable(self) -> None:
        if self.read_only:
            raise ReadOnly("Mailbox is read-only")

    async def store_flags(
        self,
        uids: Sequence[int],
        mode: Literal["set", "add", "remove"],
        flags: int,
        keywords: Sequence[str],
        *,
        unchanged_since: int | None = None,
    ) -> Stored:
        """Change flags; what nobody but this session changed is not told again by `refresh`."""
        self._writable()
        change = flagging.Change(mode, flags, keywords, unchanged_since, self.highestmodseq)
        done = await self._run(
            lambda _: flagging.store(self._box, uids, change),
            bulk=len(uids) > _BULK_MESSAGES,
        )
        self._own_modseqs |= done.given
        self._mixed |= done.mixed
        if keywords and mode != "remove":
            self.keywords = await self._run(lambda _: self._keywords())
        return Stored(done.rows, done.modified)

    def _keywords(self) -> list[str]:
        with self._box.home.index.read() as db:
            row = self._box.row(db)
            return letters.keyword_names(db, row) if row else self.keywords

    async def expunge(self, uids: Sequence[int] | None) -> list[int]:
        """Remove those that have \\Deleted, of `uids` or of all in the view. The view moves at the next `refresh`."""
        self._writable()

        def expunge(_: Account) -> list[int]:
            if uids is not None:
                return removing.expunge(self._box, uids, only_deleted=True)
            with self._box.home.index.read() as db:
                doomed = rows.deleted(db, self._low, self.uids)
            return removing.expunge(self._box, doomed, only_deleted=True) if doomed else []

        return await self._run(expunge, bulk=uids is None or len(uids) > _BULK_MESSAGES)

    async def remove(self, uids: Sequence[int]) -> list[int]:
        """Remove messages whatever their flags. The view moves at the next `refresh`."""
        self._writable()
        return await self._run(
            lambda _: removing.expunge(self._box, uids, only_deleted=False), bulk=len(uids) > _BULK_MESSAGES
        )

    async def copy(self, uids: Sequence[int], target: str) -> Copied:
        """COPY to another mailbox of this account."""

        def copy(account: Account) -> tuple[Copied, Change | None]:
            if self.owner.is_limited:
                with self._box.home.index.read() as db:
                    sizes = [row[4] for row in rows.select(db, self._low, uids)]
                self._store.check_room(account, self.owner, sum(sizes), len(sizes))
            uses = self._uses(account, target)
            copied = copying.copy(self._box, self._target(account, target), uids, account.with_guid)
            self._store.came_in(account, self.owner)
            return copied, self._change(copied, target, uses)

        copied, change = await self._run(copy, bulk=len(uids) > _BULK_MESSAGES)
        self._tell(change)
        return copied

    def _uses(self, account: Account, target: str) -> tuple[str, str]:
        """The special uses of source and target; looked up first, since what is done must not fail afterwards."""
        if self._store.changed is None:
            return "", ""
        return self._store.special_use(account, self.name), self._store.special_use(account, target)

    def _change(self, copied: Copied, target: str, uses: tuple[str, str]) -> Change | None:
        """What is told of a COPY or MOVE."""
        if not copied.target_uids:
            return None
        return Change(self.owner, self.name, target, *uses, copied.uidvalidity, tuple(copied.target_uids))

    def _tell(self, change: Change | None) -> None:
        if change is not None and self._store.changed is not None:
            self._store.changed(change)

    def _target(self, account: Account, target: str) -> Box:
        box = account.box(self._store.levels(target))
        box.refresh()
        return box

    async def move(self, uids: Sequence[int], target: str) -> Copied:
        """MOVE: copied and synced, then removed here (RFC 6851). A crash between leaves both, never neither."""
        self._writable()

        def move(account: Account) -> tuple[Copied, Change | None]:
            uses = self._uses(account, target)
            copied = copying.move(self._box, self._target(account, target), uids, account.with_guid)
            return copied, self._change(copied, target, uses)

        copied, change = await self._run(move, bulk=len(uids) > _BULK_MESSAGES)
        self._tell(change)
        return copied

    # Watching

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` in the loop when the mailbox may have changed; None ends it."""
        key = (self.owner.email, self._guid)
        if self._callback is not None:
            self._store.hints.unsubscribe(key, self._callback)
            self._store.watch.remove(self._box)
        self._callback = callback
        if callback is not None:
            self._store.hints.subscribe(key, callback)
            self._store.watch.add(self._box)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.watch(None)
        self._store.release(self._account)

    async def _run(self, function: Callable[[Account], T], *, bulk: bool = False) -> T:
        return await self._store.run(self.owner, self._checked(function), bulk=bulk)

    def _begin(self, function: Callable[[Account], T]) -> asyncio.Future[T]:
        return self._store.begin(self.owner, self._checked(function))

    def _checked(self, function: Callable[[Account], T]) -> Callable[[Account], T]:
        def run(account: Account) -> T:
            self._check_same()
            return function(account)

        return run

    def _check_same(self) -> None:
        """Raise NoSuchMailbox if the name is another mailbox's by now: its UIDs are those of other messages."""
        for again in (False, True):
            if again:
                self._box.refresh()  # the index is new
            with self._box.home.index.read() as db:
                row = self._box.row(db)
            if row is not None and row.dirty_since == FILLING:
                self._box.refresh()  # returns when all rows are there
            if row is not None:
                break
        if row is None or row.id != self._id or row.uidvalidity != self.uidvalidity:
            raise NoSuchMailbox("Mailbox was replaced by another one")


class _SearchView:
    """What SEARCH looks at, in a thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.uids: Sequence[int] = mailbox.uids
        self.first_recent = mailbox.first_recent
        self._box = mailbox._box
        self._low = mailbox._low
        self._stopped = mailbox._is_stopped
        self._keywords: dict[str, int] = {}

    def name_keywords(self, keywords: Sequence[str]) -> None:
        """What the bits are called now: others may have named more of them, or some anew, since the client was told."""
        self._keywords = {name.lower(): bit for bit, name in enumerate(keywords) if name}

    def rows(self, uids: Sequence[int]) -> Iterable[MessageRow]:
        for start in range(0, len(uids), rows.BATCH):
            if self._stopped():
                return
            yield from reading.rows(self._box, self._low, uids[start : start + rows.BATCH], False, None)

    def header(self, uid: int) -> bytes | None:
        return None if self._stopped() else reading.read_header(self._box, uid)

    def message(self, uid: int) -> bytes | None:
        return None if self._stopped() else reading.read_message(self._box, uid)

    def keyword_bit(self, name: str) -> int | None:
        return self._keywords.get(name.lower())
