"""SELECT, EXAMINE, CLOSE (RFC 3501 s. 6.3.1, 6.3.2, 6.4.2), UNSELECT (RFC 3691), CONDSTORE (RFC 7162 s. 3.1.2)."""

from __future__ import annotations

from bisect import bisect_left

from pymx.imapd.client import Client
from pymx.proto.imap.commands.plain import Nothing
from pymx.proto.imap.commands.select import Select


async def select(client: Client, arguments: Select) -> bytes:
    # s. 6.3.1: the old mailbox is left before the new one is tried, also if that fails
    if client.mailbox is not None:
        client.unselect()
        client.write(b"* OK [CLOSED] Previous mailbox closed.\r\n")  # RFC 7162 s. 3.2.11
    name = client.namespace.to_store(arguments.mailbox)
    client.condstore = client.condstore or arguments.condstore
    mailbox = await client.server.store.open(client.account, name, read_only=arguments.read_only)
    client.mailbox = mailbox
    client.write_flags()
    client.write_counts()
    view = mailbox.uids
    unseen = await mailbox.first_unseen()
    at = bisect_left(view, unseen) if unseen is not None else len(view)
    if at < len(view):
        client.write(b"* OK [UNSEEN %d] First unseen.\r\n" % (at + 1))
    client.write(
        b"* OK [UIDVALIDITY %d] UIDs valid.\r\n* OK [UIDNEXT %d] Predicted next UID.\r\n"
        b"* OK [HIGHESTMODSEQ %d] Highest.\r\n" % (mailbox.uidvalidity, mailbox.uidnext, mailbox.highestmodseq)
    )
    if arguments.read_only:
        return b"OK [READ-ONLY] Examine completed."
    return b"OK [READ-WRITE] Select completed."


async def close(client: Client, arguments: Nothing) -> bytes:
    mailbox = client.selected
    if not mailbox.read_only:
        await mailbox.expunge(None)  # s. 6.4.2: without a word
    client.unselect()
    return b"OK Close completed."


async def unselect(client: Client, arguments: Nothing) -> bytes:
    client.unselect()
    return b"OK Unselect completed."
