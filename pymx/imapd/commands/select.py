"""SELECT, EXAMINE, CLOSE (RFC 3501 s. 6.3.1, 6.3.2, 6.4.2), UNSELECT (RFC 3691), CONDSTORE, QRESYNC (RFC 7162)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from pymx.imapd.client import Client
from pymx.ms.mailbox import Mailbox
from pymx.proto.imap.commands.plain import Nothing
from pymx.proto.imap.commands.select import Qresync, Select
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.response import string
from pymx.proto.imap.sequence import SequenceSet, run_text
from pymx.proto.imap.sequence import select as select_uids


async def select(client: Client, arguments: Select) -> bytes:
    if arguments.qresync is not None and not client.qresync:
        raise Bad("QRESYNC is not enabled")  # RFC 7162 s. 3.2.5
    if arguments.qresync is not None and arguments.qresync.match is not None and client.uidonly:
        raise Bad("Sequence numbers are not known here", code="UIDREQUIRED")  # RFC 9586 s. 3.2
    # s. 6.3.1: the old mailbox is left before the new one is tried, also if that fails
    if client.mailbox is not None:
        client.unselect()
        client.write(b"* OK [CLOSED] Previous mailbox closed.\r\n")  # RFC 7162 s. 3.2.11
    name = client.namespace.to_store(arguments.mailbox)
    client.condstore = client.condstore or arguments.condstore
    mailbox = await client.server.store.open(client.account, name, read_only=arguments.read_only)
    client.mailbox = mailbox
    client.synchronized = mailbox.highestmodseq
    client.write_flags()
    client.write_counts()
    view = mailbox.uids
    unseen = await mailbox.first_unseen()
    at = bisect_left(view, unseen) if unseen is not None else len(view)
    if client.rev2:  # RFC 9051 s. 6.3.2
        client.write(b"* LIST () %b %b\r\n" % (string(client.namespace.separator.encode()), client.on_wire(name)))
    elif at < len(view) and not client.uidonly:
        client.write(b"* OK [UNSEEN %d] First unseen.\r\n" % (at + 1))
    client.write(
        b"* OK [UIDVALIDITY %d] UIDs valid.\r\n* OK [UIDNEXT %d] Predicted next UID.\r\n"
        b"* OK [HIGHESTMODSEQ %d] Highest.\r\n* OK [MAILBOXID (%b)] Mailbox id.\r\n"
        % (mailbox.uidvalidity, mailbox.uidnext, mailbox.highestmodseq, mailbox.mailbox_id.encode())
    )
    if arguments.qresync is not None and arguments.qresync.uidvalidity == mailbox.uidvalidity:
        await _resynchronize(client, mailbox, arguments.qresync)
    if arguments.read_only:
        return b"OK [READ-ONLY] Examine completed."
    return b"OK [READ-WRITE] Select completed."


async def _resynchronize(client: Client, mailbox: Mailbox, qresync: Qresync) -> None:
    """What happened since the client was last here (RFC 7162 s. 3.2.5.1): VANISHED (EARLIER), then flags."""
    view, last = mailbox.uids, mailbox.uidnext - 1
    known = [(1, last)] if qresync.known is None else qresync.known.spans(last)
    same = _same_up_to(view, qresync)
    gone = await mailbox.vanished(
        [(max(first, same + 1), stop) for first, stop in known if stop > same], qresync.modseq
    )
    if gone:
        client.write(b"* VANISHED (EARLIER) %b\r\n" % run_text(gone))
    uids = select_uids(view, SequenceSet(tuple(known)).uids(view)) if known else ()
    changed = await mailbox.modified_since(uids, qresync.modseq)
    form = client.form(("FLAGS", "MODSEQ") if client.uidonly else ("UID", "FLAGS", "MODSEQ"))
    async for rows in mailbox.rows(changed):
        client.write(b"".join(form.lines(client.row_numbers(rows), rows)))
        await client.drain()


def _same_up_to(view: Sequence[int], qresync: Qresync) -> int:
    """The highest UID below which the client misses no expunge: its number and ours are the same there (s. 3.2.5.2)."""
    if qresync.match is None:
        return 0
    their_numbers, their_uids = qresync.match
    same = 0
    for number, uid in zip(_each(their_numbers), _each(their_uids), strict=False):
        if number > len(view) or view[number - 1] != uid:
            break
        same = uid
    return same


def _each(numbers_or_uids: SequenceSet) -> Iterator[int]:
    for first, last in numbers_or_uids.ranges:
        yield from range(first, last + 1)


async def close(client: Client, arguments: Nothing) -> bytes:
    mailbox = client.selected
    if not mailbox.read_only:
        await mailbox.expunge(None)  # s. 6.4.2: without a word
    client.unselect()
    return b"OK Close completed."


async def unselect(client: Client, arguments: Nothing) -> bytes:
    client.unselect()
    return b"OK Unselect completed."
