"""STATUS (RFC 3501 s. 6.3.10), also for LIST … RETURN (STATUS …) (RFC 5819)."""

from __future__ import annotations

from collections.abc import Sequence

from pymx.imapd.client import Client
from pymx.proto.imap.commands.status import StatusOf


async def status(client: Client, arguments: StatusOf) -> bytes:
    await write_status(client, client.namespace.to_store(arguments.mailbox), arguments.items)
    return b"OK Status completed."


async def write_status(client: Client, name: str, items: Sequence[str]) -> None:
    """One STATUS response that a client asked for; `name` is the store's."""
    if "HIGHESTMODSEQ" in items:
        client.enable_condstore()
    client.write(await status_response(client, name, items))


async def status_response(client: Client, name: str, items: Sequence[str]) -> bytes:
    """One STATUS response; `name` is the store's."""
    found = await client.server.store.status(client.account, name)
    values = {
        "MESSAGES": found.messages,
        "RECENT": found.recent,
        "UIDNEXT": found.uidnext,
        "UIDVALIDITY": found.uidvalidity,
        "UNSEEN": found.unseen,
        "HIGHESTMODSEQ": found.highestmodseq,
        "SIZE": found.octets,
        "DELETED": found.deleted,
        "DELETED-STORAGE": found.deleted_octets,
        "MAILBOXID": f"({found.mailbox_id})",
        "APPENDLIMIT": client.server.mail.max_message_octets,
    }
    text = " ".join(f"{item} {values[item]}" for item in items)
    return b"* STATUS %b (%b)\r\n" % (client.on_wire(name), text.encode())
