"""Hearing of everything that happens in an account: messages, names, subscriptions, attributes.

`take` says what may have changed since the last time; `mailboxes`, `Store.folders` and `fingerprints` say what is. Our
own processes tell by hints; what other programs do is noticed in the mailboxes given to `watch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymx.ms import attributes
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.errors import StoreError
from pymx.ms.hints import ANY, ATTRIBUTES, FOLDERS
from pymx.ms.owner import Owner

if TYPE_CHECKING:
    from pymx.ms.store import Store


@dataclass(frozen=True, slots=True)
class Seen:
    """A mailbox as the index has it."""

    guid: str
    highestmodseq: int
    uidnext: int
    messages: int


@dataclass(slots=True)
class News:
    """What may have changed."""

    messages: bool = False
    folders: bool = False
    attributes: bool = False

    def __bool__(self) -> bool:
        return self.messages or self.folders or self.attributes


class Observer:
    """One session's ear; `close` it. All methods in the event loop."""

    def __init__(self, store: Store, owner: Owner, wake: Callable[[], None]) -> None:
        self._store = store
        self._owner = owner
        self._wake = wake
        self._account = store.retain(owner)
        self._news = News()
        self._boxes: dict[str, Box] = {}
        self._callbacks = ((ANY, self._messages), (FOLDERS, self._folders), (ATTRIBUTES, self._attributes))
        for what, callback in self._callbacks:
            store.hints.subscribe((owner.email, what), callback)
        self._closed = False

    def _messages(self) -> None:
        self._news.messages = True
        self._wake()

    def _folders(self) -> None:
        self._news.folders = True
        self._wake()

    def _attributes(self) -> None:
        self._news.attributes = True
        self._wake()

    @property
    def dirty(self) -> bool:
        return bool(self._news)

    def take(self) -> News:
        """What may have changed since the last call."""
        news, self._news = self._news, News()
        return news

    async def mailboxes(self) -> dict[str, Seen]:
        """All mailboxes that the index knows, by name; not told, so no UIDNEXT of it may be shown."""

        def read(account: Account) -> list[tuple[str, str, int, int, int]]:
            with account.home.index.read() as db:
                return db.execute("SELECT name, guid, highestmodseq, uidnext, messages FROM mailbox").fetchall()

        rows = await self._store.run(self._owner, read)
        return {self._store.name(tuple(row[0].split("/"))): Seen(*row[1:]) for row in rows}

    async def fingerprints(self) -> dict[bytes, int]:
        """A number for each attribute's value, by key."""

        def read(account: Account) -> dict[bytes, int]:
            return {key: hash(value) for key, value in attributes.read(account.home.place.account_files).items()}

        return await self._store.run(self._owner, read)

    async def watch(self, names: Sequence[str]) -> None:
        """Look at these mailboxes also for what other programs do; at no others any more."""
        missing = [name for name in names if name not in self._boxes]
        levels = {name: self._store.levels(name) for name in missing}

        def find(account: Account) -> dict[str, Box]:
            found = {}
            for name in missing:
                try:
                    found[name] = account.box(levels[name])
                except StoreError:
                    continue  # gone meanwhile
            return found

        found = await self._store.run(self._owner, find) if missing else {}
        if self._closed:
            return
        for name in self._boxes.keys() - set(names):
            self._store.watch.remove(self._boxes.pop(name))
        for name, box in found.items():
            self._store.watch.add(box)
            self._boxes[name] = box

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for what, callback in self._callbacks:
            self._store.hints.unsubscribe((self._owner.email, what), callback)
        for box in self._boxes.values():
            self._store.watch.remove(box)
        self._boxes.clear()
        self._store.release(self._account)
