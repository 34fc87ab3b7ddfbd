"""What a command sees of its session: who is logged in, the selected mailbox, and the way out.

`write` collects; what is collected goes to the network in pieces of 64 KB and when there is nothing more to do.
`drain` waits while the client does not read; it raises `Disconnected` when there is nobody left to write to.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pymx.imapd.namespace import Namespace
from pymx.ms.mailbox import Changes, Mailbox
from pymx.ms.owner import Owner
from pymx.proto.imap.rows import NO_RECENT, ListFormat, Row, RowFormat, numbers
from pymx.proto.imap.sequence import SequenceSet, runs, select

if TYPE_CHECKING:
    from pymx.imapd.notify import Notifications
    from pymx.imapd.server import ImapServer

CHUNK = 65_536
_SYSTEM_FLAGS = b"\\Answered \\Flagged \\Deleted \\Seen \\Draft"


class State(enum.Flag):
    """RFC 3501 s. 3."""

    NOT_AUTHENTICATED = enum.auto()
    AUTHENTICATED = enum.auto()
    SELECTED = enum.auto()


class Disconnected(Exception):
    """The client is gone."""


class MailboxGone(Exception):
    """The selected mailbox was deleted or renamed by somebody else: the session can only end."""


class Wire(Protocol):
    """The connection under a client."""

    def send(self, data: bytes) -> None: ...

    async def drained(self) -> None: ...

    async def read_line(self) -> bytes: ...

    async def start_tls(self) -> None: ...

    def begin_idle(self) -> None: ...

    @property
    def compressed(self) -> bool: ...

    def begin_compression(self) -> None: ...

    def wake(self) -> None: ...

    def abort(self) -> None: ...


class Client:
    """One session's state."""

    __slots__ = (
        "_behind",
        "_pieces",
        "_size",
        "arrived",
        "client_id",
        "condstore",
        "errors",
        "kept",
        "leaving",
        "login",
        "mailbox",
        "notify",
        "octets_out",
        "owner",
        "peer_ip",
        "qresync",
        "rev2",
        "saved",
        "secure",
        "server",
        "synchronized",
        "tag",
        "uidonly",
        "utf8",
        "wire",
    )

    def __init__(self, server: ImapServer, wire: Wire, peer_ip: str, *, secure: bool) -> None:
        self.server = server
        self.wire = wire
        self.peer_ip = peer_ip
        self.secure = secure  # in TLS
        self.tag = b""
        self.login = ""
        self.client_id = ""
        self.owner: Owner | None = None
        self.mailbox: Mailbox | None = None
        self.condstore = False
        self.qresync = False
        self.synchronized = 0  # the modseq up to which the client has been told everything
        self._behind = False  # it was told less than that of what it saw
        self.utf8 = False  # UTF8=ACCEPT (RFC 9755) or IMAP4rev2 is enabled
        self.rev2 = False  # IMAP4rev2 (RFC 9051) is enabled
        self.uidonly = False  # UIDONLY (RFC 9586) is enabled: sequence numbers are never spoken of
        self.saved: Sequence[int] = ()  # UIDs of the last search with SAVE (RFC 5182)
        self.notify: Notifications | None = None  # what the client asked to be told of (RFC 5465)
        self.arrived: list[int] = []  # UIDs of messages told since, for NOTIFY
        self.errors = 0  # bad commands in a row, or any refused before login
        self.leaving = ""  # why the session ends after this command
        self.kept: tuple[int, bytes] | None = None  # a large message that is being fetched piece by piece
        self.octets_out = 0
        self._pieces: list[bytes] = []
        self._size = 0

    # --- state

    @property
    def state(self) -> State:
        if self.mailbox is not None:
            return State.SELECTED
        return State.NOT_AUTHENTICATED if self.owner is None else State.AUTHENTICATED

    @property
    def namespace(self) -> Namespace:
        return self.server.namespace

    @property
    def account(self) -> Owner:
        assert self.owner is not None, "the table lets no command through before login"
        return self.owner

    @property
    def selected(self) -> Mailbox:
        assert self.mailbox is not None, "the table lets no command through without a mailbox"
        return self.mailbox

    def stop_notifying(self) -> None:
        notify, self.notify = self.notify, None
        if notify is not None:
            notify.close()

    def unselect(self) -> None:
        mailbox, self.mailbox = self.mailbox, None
        self.arrived = []
        self.saved = ()
        self._behind = False
        self.forget_message()
        if mailbox is not None:
            mailbox.close()

    def enable_condstore(self) -> None:
        """RFC 7162 s. 3.1: from now on every FETCH response that tells flags has the MODSEQ."""
        if self.condstore:
            return
        self.condstore = True
        if self.mailbox is not None:
            self.write(b"* OK [HIGHESTMODSEQ %d] Highest.\r\n" % self.mailbox.highestmodseq)

    def keep_message(self, uid: int, octets: bytes) -> None:
        """Hold a large message for the next piece of it, as long as all sessions together hold little enough."""
        self.forget_message()
        if self.server.kept_octets + len(octets) <= self.server.imap.max_kept_octets:
            self.kept = (uid, octets)
            self.server.kept_octets += len(octets)

    def forget_message(self) -> None:
        if self.kept is not None:
            self.server.kept_octets -= len(self.kept[1])
            self.kept = None

    async def reopen(self, name: str) -> None:
        """The selected mailbox has a new name: go on with it, and tell what changed on the way."""
        old = self.selected
        mailbox = await self.server.store.open(self.account, name, read_only=old.read_only)
        old.close()
        self.mailbox = mailbox
        there = set(mailbox.uids)
        gone = [number for number, uid in enumerate(old.uids, 1) if uid not in there]
        self._write_expunged(old.uids, gone[::-1])
        if mailbox.keywords != old.keywords:
            self.write_flags()
        if len(mailbox.uids) != len(old.uids) - len(gone):
            self.write_counts()
        if self.notify is None or self.notify.tells_flags:
            kept = [uid for uid in old.uids if uid in there]
            changed = await mailbox.modified_since(kept, old.highestmodseq)
            async for rows in mailbox.rows(changed):
                self.write_rows(rows, with_uid=self.condstore or self.rev2)

    def resolve(self, messages: SequenceSet, *, by_uid: bool) -> Sequence[int]:
        """UIDs of a message set, ascending. Raises Bad for sequence numbers that don't exist."""
        view = self.selected.uids
        if messages.saved:
            return self.saved_uids()
        return select(view, messages.uids(view) if by_uid else messages.numbers(view))

    def saved_uids(self) -> Sequence[int]:
        """What `$` is: messages expunged since drop out of it (RFC 5182 s. 2.1)."""
        if not self.saved:
            return ()
        there = set(self.selected.uids)
        return [uid for uid in self.saved if uid in there]

    def on_wire(self, name: str) -> bytes:
        """A name of the store as it stands in a response."""
        return self.namespace.on_wire(name, utf8=self.utf8)

    # --- output

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        if self._pieces:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._size = 0
            self.octets_out += len(data)
            self.wire.send(data)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent."""
        await self.wire.drained()

    def write_flags(self) -> None:
        """The flags in use and those that may be set (RFC 3501 s. 7.2.6, 7.1)."""
        mailbox = self.selected
        keywords = " ".join(name for name in mailbox.keywords if name).encode("ascii", "replace")
        flags = _SYSTEM_FLAGS + b" " + keywords if keywords else _SYSTEM_FLAGS
        self.write(b"* FLAGS (%b)\r\n" % flags)
        if mailbox.read_only:
            self.write(b"* OK [PERMANENTFLAGS ()] Read-only mailbox.\r\n")
        else:
            self.write(b"* OK [PERMANENTFLAGS (%b \\*)] Flags permitted.\r\n" % flags)

    def write_counts(self) -> None:
        mailbox = self.selected
        view = mailbox.uids
        self.write(b"* %d EXISTS\r\n" % len(view))
        if not self.rev2:
            self.write(b"* %d RECENT\r\n" % (len(view) - bisect_left(view, mailbox.first_recent)))

    def form(self, items: Sequence[str], *, tail: bytes = b")\r\n") -> RowFormat:
        """FETCH responses of the selected mailbox with these items, as this client knows them."""
        return RowFormat(items, self.selected.keywords, self._first_recent, tail=tail, response=self._response)

    def list_form(self, items: Sequence[str]) -> ListFormat:
        """As `form`, for items of which the store makes a listing."""
        return ListFormat(items, self.selected.keywords, self._first_recent, response=self._response)

    @property
    def _first_recent(self) -> int:
        return NO_RECENT if self.rev2 else self.selected.first_recent

    @property
    def _response(self) -> bytes:
        return b"UIDFETCH" if self.uidonly else b"FETCH"

    def numbers(self, uids: Sequence[int]) -> Sequence[int]:
        """What messages are called in responses: their sequence numbers, or with UIDONLY their UIDs."""
        return uids if self.uidonly else numbers(self.selected.uids, uids)

    def row_numbers(self, rows: Sequence[Row]) -> Sequence[int]:
        return self.numbers([row[0] for row in rows])

    def write_rows(self, rows: Sequence[Row], *, with_uid: bool, with_flags: bool = True) -> None:
        """FETCH responses with the flags of rows."""
        if not rows or not (with_flags or self.condstore):
            return
        items = ["UID"] if with_uid and not self.uidonly else []
        if self.condstore:
            items.append("MODSEQ")
        if with_flags:
            items.append("FLAGS")
        self.write(b"".join(self.form(items).lines(self.row_numbers(rows), rows)))

    async def tell_changes(self, *, expunge: bool) -> None:
        """Move the view to what the mailbox is now and say so (RFC 3501 s. 5.2, 7.4.1).

        `expunge` False: during FETCH, STORE and SEARCH sequence numbers must stay what they are.
        """
        mailbox = self.selected
        before = mailbox.uids
        changes = await mailbox.refresh(expunge=expunge)
        self._write_changes(changes, before)
        if self.qresync:
            self._write_safe_modseq(mailbox)

    def _write_safe_modseq(self, mailbox: Mailbox) -> None:
        """Keep the client from believing in a modseq that is higher than one of an expunge it has not been told.

        RFC 7162 s. 6: a client uses HIGHESTMODSEQ "even if it has seen higher mod-sequences".
        """
        if mailbox.held_back:
            self._behind = True
            self.write(b"* OK [HIGHESTMODSEQ %d] Expunged messages are not told yet.\r\n" % self.synchronized)
            return
        self.synchronized = mailbox.highestmodseq
        if self._behind:
            self._behind = False
            self.write(b"* OK [HIGHESTMODSEQ %d] Highest.\r\n" % self.synchronized)

    def _write_expunged(self, before: Sequence[int], numbers: Sequence[int]) -> None:
        """Sequence numbers in the view `before`, descending."""
        if not numbers:
            return
        if self.qresync or self.uidonly:
            # RFC 7162 s. 3.2.10, RFC 9586 s. 3.4: VANISHED takes the place of EXPUNGE
            self.write(b"* VANISHED %b\r\n" % runs(before[number - 1] for number in reversed(numbers)))
        else:
            self.write(b"".join([b"* %d EXPUNGE\r\n" % number for number in numbers]))
        self.forget_message()

    def _write_changes(self, changes: Changes, before: Sequence[int]) -> None:
        self._write_expunged(before, changes.expunged)
        if changes.keywords_changed:
            self.write_flags()
        if changes.arrived:
            self.write_counts()
            if self.notify is not None and self.notify.items:
                self.arrived += self.selected.uids[-changes.arrived :]
        if self.notify is not None and not self.notify.tells_flags:
            return
        # RFC 7162 s. 3.2.4: with CONDSTORE the UID helps a client to find the message; RFC 9051 s. 7.5.2
        self.write_rows(changes.flagged, with_uid=self.condstore or self.rev2)
