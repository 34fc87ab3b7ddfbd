"""CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE (RFC 3501 s. 6.3.3–6.3.7), special uses (RFC 6154 s. 3)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.namespace import INBOX
from pymx.proto.imap.commands.folder import Create, MailboxName, Rename
from pymx.proto.imap.errors import No

# \All and \Flagged are views of other mailboxes' messages, which we don't have.
_USES = {use.lower(): use for use in ("\\Archive", "\\Drafts", "\\Junk", "\\Sent", "\\Trash")}


async def create(client: Client, arguments: Create) -> bytes:
    # s. 6.3.3: a separator at the end says that children will come; the name is without it
    name = arguments.mailbox.removesuffix(client.namespace.separator)
    store = client.server.store
    there = client.namespace.to_store(name, create=True)
    await store.create(client.account, there, await _special_use(client, arguments))
    made = await store.status(client.account, there)
    return b"OK [MAILBOXID (%b)] Create completed." % made.mailbox_id.encode()  # RFC 8474 s. 4.1


async def _special_use(client: Client, arguments: Create) -> str:
    """Raises No for a use we don't have, and for one that is another mailbox's: clients look for one of each."""
    if not arguments.uses:
        return ""
    uses = []
    for wanted in arguments.uses:
        use = _USES.get(wanted.lower())
        if use is None:
            raise No(f"{wanted} is not supported", code="USEATTR")
        uses.append(use)
    for folder in await client.server.store.folders(client.account):
        for use in uses:
            if folder.exists and use in folder.special_use.split():
                raise No(f"{use} is another mailbox", code="USEATTR")
    return " ".join(dict.fromkeys(uses))


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
