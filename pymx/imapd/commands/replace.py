"""REPLACE and UID REPLACE (RFC 8508).

The new message is stored, durably, before the old one goes: a crash between leaves both, never neither.
"""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.commands.append import to_store
from pymx.imapd.trouble import refusal
from pymx.ms.errors import NoSuchMailbox
from pymx.proto.imap.commands.replace import Replace
from pymx.proto.imap.errors import No


async def replace(client: Client, arguments: Replace) -> bytes:
    mailbox = client.selected
    uids = client.resolve(arguments.messages, by_uid=arguments.by_uid)
    name = client.namespace.to_store(arguments.mailbox, create=True)
    if mailbox.read_only:
        raise No("Mailbox is open read-only", code="NOPERM")
    if not uids:
        raise No("No such message", code="NONEXISTENT")
    item = await to_store(client, arguments.message)
    freed = 0
    async for rows in mailbox.rows(uids):
        freed += sum(row[4] for row in rows)
    try:
        appended = await client.server.store.append(client.account, name, [item], freed=freed)
    except NoSuchMailbox as error:
        raise refusal(error, creatable=True) from None
    # s. 3.4: APPENDUID in an untagged OK, before the EXPUNGE
    client.write(b"* OK [APPENDUID %d %d] Replacement is stored.\r\n" % (appended.uidvalidity, appended.uids[0]))
    await mailbox.remove(uids)
    if client.qresync:
        await client.tell_changes(expunge=True)
        return b"OK [HIGHESTMODSEQ %d] Replace completed." % mailbox.highestmodseq
    return b"OK Replace completed."
