"""CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE (RFC 3501 s. 6.3.3–6.3.7)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.namespace import INBOX
from pymx.proto.imap.commands.folder import MailboxName, Rename
from pymx.proto.imap.errors import No


async def create(client: Client, arguments: MailboxName) -> bytes:
    # s. 6.3.3: a separator at the end says that children will come; the name is without it
    name = arguments.mailbox.removesuffix(client.namespace.separator)
    store = client.server.store
    there = client.namespace.to_store(name, create=True)
    await store.create(client.account, there)
    made = await store.status(client.account, there)
    return b"OK [MAILBOXID (%b)] Create completed." % made.mailbox_id.encode()  # RFC 8474 s. 4.1


async def delete(client: Client, arguments: MailboxName) -> bytes:
    name = client.namespace.to_store(arguments.mailbox)
    if name == INBOX:
        raise No("INBOX can't be deleted", code="CANNOT")
    if client.mailbox is not None and client.mailbox.name == name:
        client.unselect()
    await client.server.store.delete(client.account, name)
    return b"OK Delete completed."


async def rename(client: Client, arguments: Rename) -> bytes:
    old = client.namespace.to_store(arguments.old)
    new = client.namespace.to_store(arguments.new.removesuffix(client.namespace.separator), create=True)
    await client.server.store.rename(client.account, old, new)
    selected = client.mailbox
    separator = client.namespace.separator
    if selected is not None and old != INBOX and (selected.name + separator).startswith(old + separator):
        await client.reopen(new + selected.name[len(old) :])
    return b"OK Rename completed."


async def subscribe(client: Client, arguments: MailboxName) -> bytes:
    await client.server.store.subscribe(client.account, client.namespace.to_store(arguments.mailbox))
    return b"OK Subscribe completed."


async def unsubscribe(client: Client, arguments: MailboxName) -> bytes:
    await client.server.store.unsubscribe(client.account, client.namespace.to_store(arguments.mailbox))
    return b"OK Unsubscribe completed."
