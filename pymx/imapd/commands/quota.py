"""GETQUOTA and GETQUOTAROOT (RFC 9208): one quota root for all mailboxes of an account, if it has a limit at all."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.folder import MailboxName
from pymx.proto.imap.commands.quota import QuotaOf
from pymx.proto.imap.errors import No

ROOT = b""
_UNIT = 1024  # octets; s. 5.1


async def getquota(client: Client, arguments: QuotaOf) -> bytes:
    if arguments.root != ROOT or not client.account.quota_octets:
        raise No("No such quota root", code="NONEXISTENT")
    await _write_quota(client)
    return b"OK Getquota completed."


async def getquotaroot(client: Client, arguments: MailboxName) -> bytes:
    name = client.namespace.to_store(arguments.mailbox)
    await client.server.store.status(client.account, name)  # whether it exists
    limited = client.account.quota_octets > 0
    client.write(b"* QUOTAROOT %b%b\r\n" % (client.on_wire(name), b' ""' if limited else b""))
    if limited:
        await _write_quota(client)
    return b"OK Getquotaroot completed."


async def _write_quota(client: Client) -> None:
    usage = await client.server.store.usage(client.account)
    used = -(-usage.octets // _UNIT)
    client.write(b'* QUOTA "" (STORAGE %d %d)\r\n' % (used, client.account.quota_octets // _UNIT))
