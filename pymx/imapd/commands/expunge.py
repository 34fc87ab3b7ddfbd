"""EXPUNGE (RFC 3501 s. 6.4.3) and UID EXPUNGE (RFC 4315 s. 2.1); the responses come with the refresh that follows."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.expunge import Expunge
from pymx.proto.imap.errors import No


async def expunge(client: Client, arguments: Expunge) -> bytes:
    mailbox = client.selected
    if mailbox.read_only:
        raise No("Mailbox is open read-only", code="NOPERM")
    uids = None if arguments.messages is None else client.resolve(arguments.messages, by_uid=True)
    if uids is None or uids:
        removed = await mailbox.expunge(uids)
        if removed and client.qresync:
            await client.tell_changes(expunge=True)
            # RFC 7162 s. 3.2.7
            return b"OK [HIGHESTMODSEQ %d] Expunge completed." % mailbox.highestmodseq
    return b"OK Expunge completed."
