"""What pymx would answer against what the running server answers, message by message.

pymx works on a shadow of the account (`pymx.ms.shadow`) in a temporary directory: the tree itself is not touched. The
other server is asked for each mailbox first, so that it has given UIDs to all that is new; what arrives, goes or is
changed while both are read is looked at once more before it counts as a difference.

Compared: the mailboxes, UIDVALIDITY, UIDNEXT, and of each message UID, flags, keywords, size, INTERNALDATE, ENVELOPE,
BODYSTRUCTURE; the last two as values, not as octets (a literal is as good as a quoted string), names of types,
parameters and encodings in any case.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from pymx.admin.imap_client import Client
from pymx.config import model
from pymx.mail import mutf7
from pymx.mail.date import parse_internaldate
from pymx.mail.flags import system_flag
from pymx.ms import shadow
from pymx.ms.dovecotplace import Place
from pymx.ms.errors import StoreError
from pymx.ms.layout import Layout
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.rows import MessageRow
from pymx.ms.store import Store
from pymx.proto.imap import answers
from pymx.proto.imap.answers import Value
from pymx.proto.imap.render import render

_WINDOW = 200  # messages asked for at once
_EXAMPLES = 5  # of each kind of difference


@dataclass(frozen=True, slots=True)
class Example:
    """One difference; `uid` 0 when it is the mailbox's."""

    mailbox: str
    uid: int
    item: str
    pymx: str
    other: str


@dataclass(slots=True)
class Comparison:
    """Counts by item, and the first few of each."""

    mailboxes: int = 0
    messages: int = 0
    prefix: str = ""
    separator: str = ""
    differences: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def add(self, mailbox: str, uid: int, item: str, pymx: object, other: object) -> None:
        self.differences[item] += 1
        if self.differences[item] <= _EXAMPLES:
            self.examples.append(Example(mailbox, uid, item, _shown(pymx), _shown(other)))


def compare(client: Client, mail: model.Mail, owner: Owner, place: Place, hostname: str) -> Comparison:
    """Compare one account. Raises CtlError, OSError."""
    with TemporaryDirectory(prefix="pymx-adopt-") as directory:
        base = os.path.realpath(os.fsencode(directory))
        return asyncio.run(_Comparing(client, mail, owner, place, hostname, base).run())


@dataclass(slots=True)
class _Theirs:
    """One mailbox of the other server."""

    wire_name: bytes
    uidvalidity: int
    uidnext: int


class _Comparing:
    def __init__(
        self, client: Client, mail: model.Mail, owner: Owner, place: Place, hostname: str, directory: bytes
    ) -> None:
        self._client = client
        self._mail = mail
        self._owner = owner
        self._place = place
        self._hostname = hostname
        self._directory = directory
        self._out = Comparison()

    async def run(self) -> Comparison:
        theirs = await asyncio.to_thread(self._their_mailboxes)
        root = os.path.join(self._directory, b"mail")
        layout = Layout(self._mail.layout, self._mail.separator)
        ours = await asyncio.to_thread(shadow.make, self._place, layout, self._owner.path(root))
        store = Store(
            model.Mail(root=os.fsdecode(root), layout=self._mail.layout, separator=self._mail.separator, folders={}),
            render=render,
            runtime_dir=None,
            hostname=self._hostname,
            disk=shadow.GuardedDisk(self._directory),
        )
        await store.start()
        try:
            await self._mailboxes(store, theirs, set(ours))
        finally:
            await store.close()
        return self._out

    def _their_mailboxes(self) -> dict[str, _Theirs]:
        self._out.prefix, self._out.separator = self._client.namespace()
        found = {}
        for wire_name in self._client.mailboxes():
            name = self._our_name(wire_name)
            if name is not None:
                _, uidvalidity, uidnext = self._client.examine(wire_name)
                found[name] = _Theirs(wire_name, uidvalidity, uidnext)
        return found

    def _our_name(self, wire_name: bytes) -> str | None:
        """What clients of pymx would call it; None for what is of another namespace."""
        text = wire_name.decode("ascii", "replace")
        prefix, separator = self._out.prefix, self._out.separator or "."
        if text.upper() == "INBOX":
            return "INBOX"
        if prefix and not text.startswith(prefix):
            return None
        try:
            levels = [mutf7.decode(level) for level in text.removeprefix(prefix).split(separator)]
        except ValueError:
            levels = text.removeprefix(prefix).split(separator)
        return self._mail.separator.join(levels)

    async def _mailboxes(self, store: Store, theirs: dict[str, _Theirs], ours: set[str]) -> None:
        for name in sorted(theirs.keys() - ours):
            self._out.add(name, 0, "mailbox", "not there", "there")
        for name in sorted(ours - theirs.keys()):
            self._out.add(name, 0, "mailbox", "there", "not there")
        for name in sorted(theirs.keys() & ours):
            self._out.mailboxes += 1
            try:
                mailbox = await store.open(self._owner, name, read_only=True)
            except StoreError as error:
                self._out.add(name, 0, "mailbox", f"can't be opened: {error.reason}", "there")
                continue
            try:
                await self._mailbox(mailbox, theirs[name])
            finally:
                mailbox.close()

    async def _mailbox(self, mailbox: Mailbox, before: _Theirs) -> None:
        _, uidvalidity, uidnext = await asyncio.to_thread(self._client.examine, before.wire_name)
        if mailbox.uidvalidity != uidvalidity:
            self._out.add(mailbox.name, 0, "uidvalidity", mailbox.uidvalidity, uidvalidity)
        if not before.uidnext <= mailbox.uidnext <= uidnext:
            self._out.add(mailbox.name, 0, "uidnext", mailbox.uidnext, uidnext)
        uids = list(mailbox.uids)
        first = 1
        for start in range(0, max(1, len(uids)), _WINDOW):
            window = uids[start : start + _WINDOW]
            last = window[-1] if window and start + _WINDOW < len(uids) else max(uidnext - 1, first)
            suspects = await self._window(mailbox, first, last, window, count=False)
            if suspects:
                await mailbox.refresh()
                there = set(mailbox.uids)
                again = [uid for uid in window if uid in there]
                await self._window(mailbox, first, last, again, count=True, suspects=suspects)
            self._out.messages += len(window)
            first = last + 1

    async def _window(
        self,
        mailbox: Mailbox,
        first: int,
        last: int,
        uids: list[int],
        *,
        count: bool,
        suspects: Set[int] = frozenset(),
    ) -> set[int]:
        """Compare the UIDs of a window; those that differ. With `count` they are written down, `suspects` only."""
        ours: dict[int, MessageRow] = {}
        async for batch in mailbox.rows(uids, rendered=True):
            ours |= {row[0]: row for row in batch}
        theirs = {_number(items.get(b"UID")): items for items in await asyncio.to_thread(self._fetch, first, last)}
        found: set[int] = set()
        for uid in sorted(ours.keys() | theirs.keys()):
            if count and uid not in suspects:
                continue
            if uid not in ours or uid not in theirs:
                if uid not in ours and uid >= mailbox.uidnext:
                    continue  # arrived meanwhile
                found.add(uid)
                if count:
                    here, there = ("there", "not there") if uid in ours else ("not there", "there")
                    self._out.add(mailbox.name, uid, "uid", here, there)
                continue
            for item, mine, yours in _differences(ours[uid], theirs[uid], mailbox.keywords):
                found.add(uid)
                if count:
                    self._out.add(mailbox.name, uid, item, mine, yours)
        return found

    def _fetch(self, first: int, last: int) -> list[dict[bytes, Value]]:
        return list(self._client.fetch(first, last))


def _differences(row: MessageRow, items: dict[bytes, Value], keywords: list[str]) -> list[tuple[str, object, object]]:
    """Items that differ, ours and theirs."""
    _, _, flags, bits, octets, internaldate, _, envelope, bodystructure = row[:9]
    out: list[tuple[str, object, object]] = []
    their_flags, their_keywords = 0, set()
    for word in _words(items.get(b"FLAGS")):
        bit = system_flag(word)
        if bit is not None:
            their_flags |= bit
        elif not word.startswith("\\"):
            their_keywords.add(word.lower())
    our_keywords = {name.lower() for n, name in enumerate(keywords) if name and bits >> n & 1}
    if flags & 31 != their_flags:
        out.append(("flags", flags & 31, their_flags))
    if our_keywords != their_keywords:
        out.append(("keywords", sorted(our_keywords), sorted(their_keywords)))
    if octets != _number(items.get(b"RFC822.SIZE")):
        out.append(("size", octets, _number(items.get(b"RFC822.SIZE"))))
    date = items.get(b"INTERNALDATE")
    if not isinstance(date, bytes) or parse_internaldate(date.decode("ascii", "replace")) != internaldate:
        out.append(("internaldate", internaldate, date))
    their_envelope, their_structure = items.get(b"ENVELOPE"), items.get(b"BODYSTRUCTURE")
    if answers.parse(envelope) != [their_envelope]:
        out.append(("envelope", envelope, their_envelope))
    if _folded(answers.parse(bodystructure)) != _folded([their_structure]):
        out.append(("bodystructure", bodystructure, their_structure))
    return out


def _folded(value: Value) -> Value:
    if isinstance(value, list):
        return [_folded(inner) for inner in value]
    return None if value is None else bytes(value).lower()


def _words(value: Value) -> list[str]:
    return [v.decode("utf-8", "replace") for v in value if isinstance(v, bytes)] if isinstance(value, list) else []


def _number(value: Value) -> int:
    return int(value) if isinstance(value, bytes) and value.isdigit() else 0


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return "(" + " ".join("NIL" if v is None else _shown(v) for v in value) + ")"
    return str(value)
