"""What a session with NOTIFY (RFC 5465) is told, and when.

The selected mailbox is the business of `pymx.imapd.telling`, which asks here what the client wants to hear. Of the
others a picture is kept, as small as it can be: for each watched mailbox four numbers, for each name two bits. When the
store says that something may have changed, the picture is compared with what is, and the difference is told: many
changes in a short time are one response. More mailboxes than `max_notify_mailboxes`, or a store that fails, end it with
NOTIFICATIONOVERFLOW (s. 5.8), after which nothing is told until the client asks anew.

INBOXES means all of the user's mailboxes, since filters may deliver into any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymx.imapd.commands.list import list_response
from pymx.imapd.commands.status import status_response
from pymx.ms.attributes import address
from pymx.ms.errors import NoSuchMailbox, StoreError
from pymx.ms.folders import Folder
from pymx.ms.observer import Seen
from pymx.proto.imap.commands.fetch import FetchItem
from pymx.proto.imap.commands.metadata import metadata_names
from pymx.proto.imap.commands.notify import (
    FLAG_CHANGE,
    MAILBOX_METADATA,
    MAILBOX_NAME,
    MESSAGE_NEW,
    SELECTED,
    SELECTED_DELAYED,
    SERVER_METADATA,
    SUBSCRIPTION_CHANGE,
    EventGroup,
)
from pymx.proto.imap.errors import No

if TYPE_CHECKING:
    from pymx.imapd.client import Client


@dataclass(frozen=True, slots=True)
class _Name:
    """A name as it was told: whether there is a mailbox, and a subscription."""

    exists: bool
    subscribed: bool


_NAMES = {(exists, subscribed): _Name(exists, subscribed) for exists in (False, True) for subscribed in (False, True)}


def _names(client: Client, folders: Sequence[Folder]) -> dict[str, _Name]:
    """By the name that clients see."""
    found = {client.namespace.to_client(each.name): _NAMES[each.exists, each.subscribed] for each in folders}
    return {name: each for name, each in found.items() if each.exists or each.subscribed}


class Notifications:
    """One client's wishes; without `groups` it wants to hear of nothing. `close` it."""

    def __init__(self, client: Client, groups: Sequence[EventGroup]) -> None:
        self._client = client
        of_selected = [group for group in groups if group.scope in (SELECTED, SELECTED_DELAYED)]
        others = [group for group in groups if group.scope not in (SELECTED, SELECTED_DELAYED)]
        self._groups = [(each, frozenset(map(client.namespace.folded, each.mailboxes))) for each in others]
        events = of_selected[0].events if of_selected else frozenset()
        self.tells_messages = MESSAGE_NEW in events
        self.tells_flags = FLAG_CHANGE in events
        self.immediate = any(group.scope == SELECTED for group in of_selected)  # EXPUNGE at any time
        self.items: tuple[FetchItem, ...] = of_selected[0].items if of_selected else ()
        self._wanted = frozenset[str]().union(*(group.events for group in others))
        self._observer = client.server.store.observe(client.account, client.wire.wake) if self._wanted else None
        self._known: dict[str, _Name] = {}
        self._guids: dict[str, str] = {}
        self._seen: dict[str, Seen] = {}
        self._watched: dict[str, frozenset[str]] = {}  # mailboxes whose messages are of interest, with the events
        self._prints: dict[bytes, int] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}  # few different ones, for many names

    @property
    def dirty(self) -> bool:
        """There may be something to tell."""
        return self._observer is not None and self._observer.dirty

    def close(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.close()

    # --- what is wanted

    def _events(self, name: str, *, subscribed: bool) -> frozenset[str]:
        """What is to be told of a name: of all groups it is in, up to one that says NONE (s. 6)."""
        found: frozenset[str] = frozenset()
        for group, mailboxes in self._groups:
            if self._is_in(group.scope, mailboxes, name, subscribed=subscribed):
                if not group.events:
                    break
                found |= group.events
        return self._sets.setdefault(found, found)

    def _is_in(self, scope: str, mailboxes: frozenset[str], name: str, *, subscribed: bool) -> bool:
        if scope == "SUBSCRIBED":
            return subscribed
        if scope not in ("SUBTREE", "MAILBOXES"):
            return True  # PERSONAL, INBOXES: there are no mailboxes of others
        if scope == "MAILBOXES":
            return name in mailboxes
        return any(top in mailboxes for top in self._tops(name))

    def _tops(self, name: str) -> Iterator[str]:
        """The roots of all trees that a name is in: itself, each level above it, and the whole ("")."""
        separator = self._client.namespace.separator
        yield name
        at = name.rfind(separator)
        while at > 0:
            yield name[:at]
            at = name.rfind(separator, 0, at)
        yield ""

    async def _look_at_names(self) -> dict[str, _Name]:
        """The names there are; what is watched follows them. Raises No if that is too much."""
        client = self._client
        assert self._observer is not None
        names = _names(client, await client.server.store.folders(client.account))
        watched = {}
        for name, each in names.items():
            events = self._events(name, subscribed=each.subscribed)
            if each.exists and MESSAGE_NEW in events:
                watched[name] = events
        if len(watched) > client.server.imap.max_notify_mailboxes:
            raise No("There are too many mailboxes", code="NOTIFICATIONOVERFLOW")
        self._watched = watched
        await self._observer.watch([client.namespace.to_store(name) for name in watched])
        return names

    # --- telling

    async def begin(self, *, status: bool) -> None:
        """Take the first picture; with `status` tell how the watched mailboxes are (s. 3.1)."""
        if self._observer is None:
            return
        self._observer.take()
        self._known = await self._look_at_names()
        if status:
            for name in self._watched:
                await self._write_state(name)
        now = await self._identified(self._known)
        self._seen = {name: now[name] for name in self._watched if name in now}
        if self._wanted & {MAILBOX_METADATA, SERVER_METADATA}:
            self._prints = await self._observer.fingerprints()

    async def tell(self) -> None:
        """What changed since the last time."""
        if self._observer is None:
            return
        news = self._observer.take()
        try:
            if news.folders:
                await self._tell_names()
            if news.messages:
                await self._tell_messages()
            if news.attributes and self._observer is not None:
                await self._tell_attributes()
        except StoreError as error:
            self._client.server.log.warning("imap_push_failed", account=self._client.login, reason=error.reason)
            self._overflow()
        except No:
            self._overflow()

    def _overflow(self) -> None:
        """As if the client had said NOTIFY NONE."""
        self.close()
        self.tells_messages = self.tells_flags = False
        self.items = ()
        self._client.write(b"* OK [NOTIFICATIONOVERFLOW] Too much happens; ask anew.\r\n")

    async def _mailboxes(self) -> dict[str, Seen]:
        assert self._observer is not None
        return {
            self._client.namespace.to_client(name): seen for name, seen in (await self._observer.mailboxes()).items()
        }

    async def _identified(self, names: dict[str, _Name]) -> dict[str, Seen]:
        """All mailboxes that the index knows; those that matter are made known to it."""
        found = await self._mailboxes()
        unknown = [
            name
            for name, each in names.items()
            if each.exists
            and not (name in found and found[name].guid)
            and (name in self._watched or MAILBOX_NAME in self._wanted)
        ]
        for name in unknown:
            try:
                await self._client.server.store.status(self._client.account, self._client.namespace.to_store(name))
            except NoSuchMailbox:
                continue  # deleted since
        if unknown:
            found = await self._mailboxes()
        self._guids = {name: seen.guid for name, seen in found.items() if seen.guid}
        return found

    def _is_selected(self, name: str) -> bool:
        selected = self._client.mailbox
        return selected is not None and self._client.namespace.to_client(selected.name) == name

    async def _write_state(self, name: str) -> None:
        """How a mailbox is, for a client that has not heard of it."""
        if self._is_selected(name):
            return
        items = ["MESSAGES", "UIDNEXT", "UIDVALIDITY"]
        if self._client.condstore or FLAG_CHANGE in self._watched[name]:
            items.append("HIGHESTMODSEQ")
        await self._write_status(name, items)

    async def _write_status(self, name: str, items: Sequence[str]) -> None:
        try:
            self._client.write(await status_response(self._client, self._client.namespace.to_store(name), items))
        except NoSuchMailbox:
            return  # deleted since
        await self._client.drain()

    async def _tell_messages(self) -> None:
        now = await self._mailboxes()
        for name, events in self._watched.items():
            seen, before = now.get(name), self._seen.get(name)
            if seen is None or seen == before:
                continue
            self._seen[name] = seen
            if self._is_selected(name):
                continue
            if before is None or (seen.guid, seen.uidnext, seen.messages) != (
                before.guid,
                before.uidnext,
                before.messages,
            ):
                # s. 5.1, 5.2; UIDVALIDITY says that it is another mailbox of the same name
                items = ["MESSAGES", "UIDNEXT"]
                if before is None or seen.guid != before.guid:
                    items.append("UIDVALIDITY")
                if self._client.condstore:
                    items.append("HIGHESTMODSEQ")
            elif FLAG_CHANGE in events:
                items = ["UIDVALIDITY", "HIGHESTMODSEQ", "UNSEEN"]  # s. 5.3
            else:
                continue
            await self._write_status(name, items)

    async def _tell_names(self) -> None:
        """MailboxName and SubscriptionChange (s. 5.4, 5.5), as LIST responses."""
        before, guids = self._known, self._guids
        now = await self._look_at_names()
        self._known = now
        found = await self._identified(now)
        gone = {guids[name]: name for name in before if name in guids and self._guids.get(name) != guids[name]}
        nothing = _Name(exists=False, subscribed=False)
        renamed = {name: was for name in now if (was := gone.get(self._guids.get(name, "-"))) and was != name}
        # Who hears of the new name hears of the old one by it.
        told = {was for name, was in renamed.items() if MAILBOX_NAME in self._events_of(name, nothing, now[name])}
        for name in sorted(before.keys() | now.keys()):
            old, new = before.get(name, nothing), now.get(name, nothing)
            events = self._events_of(name, old, new)
            named = MAILBOX_NAME in events and (old.exists != new.exists or name in renamed)
            if named and name in told and not new.exists:
                named = False
            if named or (SUBSCRIPTION_CHANGE in events and old.subscribed != new.subscribed):
                self._write_name(name, new, renamed.get(name) if named else None)
            if new.exists and not old.exists and name in self._watched:
                if name in found:
                    self._seen[name] = found[name]
                await self._write_state(name)
        self._seen = {name: seen for name, seen in self._seen.items() if name in self._watched}

    def _events_of(self, name: str, old: _Name, new: _Name) -> frozenset[str]:
        """What is to be told of a name that changes."""
        return self._events(name, subscribed=old.subscribed or new.subscribed)

    def _write_name(self, name: str, new: _Name, old_name: str | None) -> None:
        self._client.write(
            list_response(self._client, name, exists=new.exists, subscribed=new.subscribed, old=old_name)
        )

    async def _tell_attributes(self) -> None:
        """MailboxMetadataChange and ServerMetadataChange (s. 5.6, 5.7): the names of the entries."""
        assert self._observer is not None
        before, self._prints = self._prints, await self._observer.fingerprints()
        names = {guid: name for name, guid in self._guids.items()}
        changed: dict[str, list[str]] = {}
        for key in sorted(before.keys() | self._prints.keys()):
            if before.get(key) == self._prints.get(key):
                continue
            where = address(key)
            if where is None:
                continue
            guid, entry, server = where
            name = "" if server else names.get(guid)
            if name is not None and self._wants_entries(name):
                changed.setdefault(name, []).append(entry)
        for name, entries in changed.items():
            on_wire = self._client.on_wire(self._client.namespace.to_store(name)) if name else b'""'
            self._client.write(metadata_names(on_wire, entries))

    def _wants_entries(self, name: str) -> bool:
        if not name:
            return SERVER_METADATA in self._wanted
        known = self._known.get(name)
        return MAILBOX_METADATA in self._events(name, subscribed=known is not None and known.subscribed)
