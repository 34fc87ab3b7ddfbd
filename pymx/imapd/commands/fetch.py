"""FETCH (RFC 3501 s. 6.4.5), streamed: rows in batches, messages one at a time, the network in pieces of 64 KB.

What the store has as columns of text goes through `ListFormat`, what else needs only rows through `RowFormat`. Octets
of a message follow the row's items in the same response. A large message asked for as a whole is never in memory; one
that is fetched piece by piece (`BODY[]<o.n>`) is kept between the commands for a while.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from pymx.imapd.client import CHUNK, Client, Disconnected
from pymx.imapd.trouble import no_text
from pymx.mail.flags import SEEN
from pymx.mail.mime import Part, parse
from pymx.ms.message import StoredMessage
from pymx.proto.imap.binary import UnknownEncoding, extract_binary
from pymx.proto.imap.bodystructure import bodystructure
from pymx.proto.imap.commands.fetch import BodyItem, Fetch, FetchItem
from pymx.proto.imap.errors import Bad, No
from pymx.proto.imap.rows import LISTED, Row, RowFormat
from pymx.proto.imap.section import extract
from pymx.proto.imap.sequence import SequenceSet, ranges_of, run_text

LARGE = 262_144  # octets from which a whole message is streamed
_END_OF_HEADER = b"\r\n\r\n"

# The store's iterators are generators; they are closed where a loop may end early.
_Pieces = AsyncGenerator[bytes, None]
_Messages = AsyncGenerator[tuple[int, StoredMessage | None], None]


class _Plan:
    """The items of one command, sorted by what they need."""

    __slots__ = ("bodies", "header_only", "ids", "previews", "rendered", "row_items", "sets_seen", "structure")

    def __init__(self, client: Client, arguments: Fetch) -> None:
        items = arguments.items
        self.row_items = [item for item in items if isinstance(item, str) and item != "BODY"]
        if client.uidonly and not arguments.wants_uid and "UID" in self.row_items:
            self.row_items.remove("UID")  # RFC 9586 s. 3.3: it is in front
        self.bodies = [item for item in items if isinstance(item, BodyItem)]
        self.structure = "BODY" in items
        self.rendered = "ENVELOPE" in items or "BODYSTRUCTURE" in items
        self.ids = "EMAILID" in items
        self.previews = [item for item in ("PREVIEW", "PREVIEW (LAZY)") if item in items]
        self.sets_seen = not client.selected.read_only and any(not body.peek for body in self.bodies)
        self.header_only = not self.structure and all(
            not body.section.path and body.section.text.startswith("HEADER") for body in self.bodies
        )

    @property
    def needs_message(self) -> bool:
        return bool(self.bodies) or self.structure

    @property
    def is_listing(self) -> bool:
        """What clients ask for of whole mailboxes."""
        return not self.needs_message and all(item in LISTED for item in self.row_items)


async def fetch(client: Client, arguments: Fetch) -> bytes:
    if arguments.vanished and not client.qresync:
        raise Bad("QRESYNC is not enabled")
    mailbox = client.selected
    uids = client.resolve(arguments.messages, by_uid=arguments.by_uid)
    plan = _Plan(client, arguments)
    if "MODSEQ" in plan.row_items:
        client.enable_condstore()
    since = arguments.changed_since
    if arguments.vanished:
        await _write_vanished(client, arguments, since or 0)
    if since is not None:
        uids = await mailbox.modified_since(uids, since)
    if arguments.window is not None:
        uids = arguments.window.of(uids)
    if plan.is_listing:
        seen = await _write_listing(client, plan, uids)
    else:
        seen = await _write_rows(client, plan, uids)
    if seen < len(uids) and since is None and not arguments.by_uid:
        return b"OK [EXPUNGEISSUED] Some of the messages are gone."  # RFC 5530; what there is was sent
    return b"OK Fetch completed."


async def _write_listing(client: Client, plan: _Plan, uids: Sequence[int]) -> int:
    """How many messages there are."""
    seen = 0
    form = client.list_form(plan.row_items)
    async with aclosing(client.selected.listings(uids, form.columns)) as listings:
        async for listing in listings:
            seen += len(listing.uids)
            client.write(form.lines(client.numbers(listing.uids), listing.uids, listing.texts))
            await client.drain()
    return seen


async def _write_rows(client: Client, plan: _Plan, uids: Sequence[int]) -> int:
    seen = 0
    tail = b"" if plan.needs_message else b")\r\n"
    form = client.form(plan.row_items, tail=tail)
    async for rows in client.selected.rows(uids, rendered=plan.rendered, dated="INTERNALDATE" in plan.row_items):
        seen += len(rows)
        if plan.ids or plan.previews:
            rows = await _extended(client, plan, rows)
        if plan.needs_message:
            await _with_messages(client, plan, form, rows)
        else:
            client.write(b"".join(form.lines(client.row_numbers(rows), rows)))
            await client.drain()
    return seen


async def fetch_new(client: Client, uids: Sequence[int], items: Sequence[FetchItem]) -> None:
    """FETCH responses for messages that arrived just now, as NOTIFY asked for (RFC 5465 s. 5.1).

    A message that can't be shown so is told with an untagged NO, and the others are shown.
    """
    decoded = any(isinstance(item, BodyItem) and item.kind != "body" for item in items)
    for part in [[uid] for uid in uids] if decoded else [uids]:
        messages = SequenceSet(tuple(ranges_of(part)))
        try:
            await fetch(client, Fetch(messages, True, tuple(items), None, wants_uid="UID" in items))
        except No as refused:
            client.write(b"* %b\r\n" % no_text(refused))


async def _extended(client: Client, plan: _Plan, rows: Sequence[Row]) -> list[Row]:
    """Rows with EMAILID and PREVIEW behind them; without those whose message is gone since."""
    uids = [row[0] for row in rows]
    ids = await client.selected.email_ids(uids) if plan.ids else {}
    previews = await client.selected.previews(uids, lazy="PREVIEW" not in plan.previews) if plan.previews else {}
    return [
        (*row, *(None,) * (9 - len(row)), ids.get(row[0], "").encode(), previews.get(row[0]))
        for row in rows
        if not plan.ids or row[0] in ids
    ]


async def _write_vanished(client: Client, arguments: Fetch, since: int) -> None:
    """RFC 7162 s. 3.2.6: expunged UIDs of the set, before any FETCH response."""
    mailbox = client.selected
    gone = await mailbox.vanished(arguments.messages.spans(mailbox.uidnext - 1), since)
    if gone:
        client.write(b"* VANISHED (EARLIER) %b\r\n" % run_text(gone))


async def _with_messages(client: Client, plan: _Plan, form: RowFormat, rows: Sequence[Row]) -> None:
    """Responses that hold parts of the messages."""
    newly_seen: set[int] = set()
    if plan.sets_seen:
        rows, newly_seen = await _set_seen(client, rows)
    heads = form.lines(client.row_numbers(rows), rows)
    by_uid = {row[0]: (row, head) for row, head in zip(rows, heads, strict=True)}
    async with aclosing(cast(_Messages, client.selected.messages([row[0] for row in rows]))) as messages:
        async for uid, message in messages:
            if message is None:
                continue  # gone since; an EXPUNGE will tell
            row, head = by_uid[uid]
            if uid in newly_seen:
                # s. 6.4.5: if the flag changes, it is part of the response
                if "FLAGS" not in plan.row_items:
                    head = _joined(head, form.flags(row))
                if client.condstore and "MODSEQ" not in plan.row_items:
                    head = _joined(head, b"MODSEQ (%d)" % row[1])
            await _write_message(client, plan, head, uid, message)
            await client.drain()


async def _set_seen(client: Client, rows: Sequence[Row]) -> tuple[Sequence[Row], set[int]]:
    """Set \\Seen where it is not; the rows as they are then, and the UIDs that changed."""
    unseen = [row[0] for row in rows if not row[2] & SEEN]
    if not unseen:
        return rows, set()
    stored = await client.selected.store_flags(unseen, "add", SEEN, ())
    changed = {row[0]: row for row in stored.rows}
    # The new row has no ENVELOPE behind it, the old one may.
    return [(*changed[row[0]][:7], *row[7:]) if row[0] in changed else row for row in rows], set(changed)


def _joined(head: bytes, item: bytes) -> bytes:
    """Another item behind those that are there (none: `head` ends with the parenthesis)."""
    return head + item if head.endswith(b"(") else b"%b %b" % (head, item)


async def _write_message(client: Client, plan: _Plan, head: bytes, uid: int, message: StoredMessage) -> None:
    single = plan.bodies[0] if len(plan.bodies) == 1 and not plan.structure else None
    if single is not None and single.whole and single.partial is None and message.octets > LARGE:
        await _stream(client, _joined(head, single.label), message)
        return
    octets = await _octets(client, plan, uid, message)
    part: Part | None = None
    if len(octets) > LARGE and not plan.header_only:
        # One made to be slow must not stop everybody else.
        part = await client.server.store.in_thread(lambda: parse(octets))
    elif plan.structure or sum(1 for body in plan.bodies if body.section.path or body.kind != "body") > 1:
        part = parse(octets)
    # Before anything is written: one that can't be decoded is answered NO.
    decoded = {body: _decoded(octets, body, part) for body in plan.bodies if body.kind != "body"}
    if part is not None and plan.structure:
        head = _joined(head, b"BODY " + bodystructure(part, extended=False))
    for body in plan.bodies:
        found = decoded[body] if body in decoded else _value(octets, body, part)
        if isinstance(found, int):
            client.write(_joined(head, b"%b %d" % (body.label, found)))
        else:
            await _write_value(client, _joined(head, body.label), found, binary=body.kind == "binary")
        head = b""
    client.write(b"%b)\r\n" % head)


async def _write_value(client: Client, head: bytes, value: bytes | None, *, binary: bool) -> None:
    """A body item as a literal, or NIL; in pieces, so that many large items of a response are not one large write."""
    if value is None:
        client.write(head + b" NIL")
        return
    # RFC 3516 s. 4.2: NUL takes a literal8, which only BINARY may be
    announcement = b"%b %b{%d}\r\n" % (head, b"~" if binary and b"\x00" in value else b"", len(value))
    if len(value) <= CHUNK:
        client.write(announcement + value)
        return
    client.write(announcement)
    for start in range(0, len(value), CHUNK):
        client.write(value[start : start + CHUNK])
        await client.drain()


def _value(octets: bytes, body: BodyItem, part: Part | None) -> bytes | None:
    found = octets if body.whole else extract(octets, body.section, part)
    if found is not None and body.partial is not None:
        offset, length = body.partial
        return found[offset : offset + length]
    return found


def _decoded(octets: bytes, body: BodyItem, part: Part | None) -> bytes | int | None:
    """BINARY and BINARY.SIZE (RFC 3516)."""
    try:
        found = extract_binary(octets, body.section.path, part)
    except UnknownEncoding:
        raise No("The part's encoding is not known", code="UNKNOWN-CTE") from None
    if body.kind == "size":
        return len(found or b"")
    if found is not None and body.partial is not None:
        offset, length = body.partial
        return found[offset : offset + length]
    return found


async def _octets(client: Client, plan: _Plan, uid: int, message: StoredMessage) -> bytes:
    """The message, or its beginning up to the end of the header if nothing else is wanted."""
    if plan.header_only and message.octets > CHUNK:
        head = bytearray()
        async with aclosing(cast(_Pieces, message.chunks())) as pieces:
            async for piece in pieces:
                looked_at = max(0, len(head) - len(_END_OF_HEADER))
                head += piece
                if head.find(_END_OF_HEADER, looked_at) >= 0 or head.startswith(b"\r\n"):
                    break
        return bytes(head)
    if not any(body.partial for body in plan.bodies) or message.octets <= CHUNK:
        return await message.read()
    if client.kept is not None and client.kept[0] == uid:
        return client.kept[1]
    octets = await message.read()
    client.keep_message(uid, octets)
    return octets


async def _stream(client: Client, head: bytes, message: StoredMessage) -> None:
    """A whole large message, piece by piece as the client takes it."""
    client.write(b"%b {%d}\r\n" % (head, message.octets))
    left = message.octets
    async with aclosing(cast(_Pieces, message.chunks())) as pieces:
        async for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            client.write(piece)
            await client.drain()
    if left:
        # The literal's length is told already and does not hold: nothing that follows could be read right.
        client.server.log.error("message_size_wrong", account=client.login, mailbox=client.selected.name)
        client.wire.abort()
        raise Disconnected
    client.write(b")\r\n")
