"""GETQUOTA and GETQUOTAROOT (RFC 9208): one quota root for all mailboxes of an account, if it has a limit at all.

SETQUOTA is refused: limits are the administrator's, who sets them by `pymxctl user quota`; QUOTASET is not advertised.
"""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.folder import MailboxName
from pymx.proto.imap.commands.quota import QuotaOf
from pymx.proto.imap.errors import No

ROOT = b""
_UNIT = 1024  # octets; s. 5.1


async def getquota(client: Client, arguments: QuotaOf) -> bytes:
    if arguments.root != ROOT or not client.account.is_limited:
        raise No("No such quota root", code="NONEXISTENT")
    await _write_quota(client)
    return b"OK Getquota completed."


async def getquotaroot(client: Client, arguments: MailboxName) -> bytes:
    name = client.namespace.to_store(arguments.mailbox)
    await client.server.store.status(client.account, name)  # whether it exists
    limited = client.account.is_limited
    client.write(b"* QUOTAROOT %b%b\r\n" % (client.on_wire(name), b' ""' if limited else b""))
    if limited:
        await _write_quota(client)
    return b"OK Getquotaroot completed."


async def setquota(client: Client, arguments: QuotaOf) -> bytes:
    raise No("Limits are set by the administrator", code="NOPERM")


async def _write_quota(client: Client) -> None:
    usage, account = await client.server.store.usage(client.account), client.account
    resources = []
    if account.quota_octets:
        resources.append(b"STORAGE %d %d" % (-(-usage.octets // _UNIT), account.quota_octets // _UNIT))
    if account.quota_messages:
        resources.append(b"MESSAGE %d %d" % (usage.messages, account.quota_messages))
    client.write(b'* QUOTA "" (%b)\r\n' % b" ".join(resources))
