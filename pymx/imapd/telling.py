"""Telling a client what changed in its selected mailbox: as much as it wants to hear, which NOTIFY (RFC 5465) says."""

from __future__ import annotations

from pymx.imapd.client import Client, MailboxGone
from pymx.imapd.commands.fetch import fetch_new
from pymx.ms.errors import NoSuchMailbox


async def tell(client: Client, *, expunge: bool, removed: bool = False) -> None:
    """Move the view to now and say so; nothing if the client wants no events of the selected mailbox.

    `removed`: the command removed messages itself, so numbers change whatever the client wants. Raises MailboxGone.
    """
    notify = client.notify
    if client.mailbox is None or (notify is not None and not notify.tells_messages and not removed):
        return
    try:
        await client.tell_changes(expunge=expunge)
        arrived, client.arrived = client.arrived, []
        if notify is not None and notify.items and arrived:
            items = notify.items
            if client.condstore and "MODSEQ" not in items:
                items = (*items, "MODSEQ")  # RFC 7162 s. 3.1: in all FETCH responses caused by others
            await fetch_new(client, arrived, items)
    except NoSuchMailbox:
        raise MailboxGone from None
