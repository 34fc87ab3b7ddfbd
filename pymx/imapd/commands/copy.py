"""COPY (RFC 3501 s. 6.4.7), MOVE (RFC 6851) and COPYUID (RFC 4315 s. 3)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.trouble import refusal
from pymx.ms.copying import Copied
from pymx.ms.errors import NoSuchMailbox
from pymx.proto.imap.commands.copy import CopyTo
from pymx.proto.imap.errors import No
from pymx.proto.imap.sequence import runs


def _code(copied: Copied) -> bytes:
    return b"[COPYUID %d %b %b] " % (copied.uidvalidity, runs(copied.source_uids), runs(copied.target_uids))


async def copy(client: Client, arguments: CopyTo) -> bytes:
    uids = client.resolve(arguments.messages, by_uid=arguments.by_uid)
    target = client.namespace.to_store(arguments.mailbox, create=True)
    if not uids:
        return b"OK No messages copied."
    try:
        copied = await client.selected.copy(uids, target)
    except NoSuchMailbox as error:
        raise refusal(error, creatable=True) from None
    return b"OK %bCopy completed." % (_code(copied) if copied.source_uids else b"")


async def move(client: Client, arguments: CopyTo) -> bytes:
    mailbox = client.selected
    uids = client.resolve(arguments.messages, by_uid=arguments.by_uid)
    target = client.namespace.to_store(arguments.mailbox, create=True)
    if mailbox.read_only:
        raise No("Mailbox is open read-only", code="NOPERM")
    if not uids:
        return b"OK No messages moved."
    try:
        moved = await mailbox.move(uids, target)
    except NoSuchMailbox as error:
        raise refusal(error, creatable=True) from None
    if moved.source_uids:
        # RFC 6851 s. 4.3: COPYUID in an untagged OK, before the EXPUNGEs
        client.write(b"* OK %bMoved UIDs.\r\n" % _code(moved))
        if client.qresync:
            await client.tell_changes(expunge=True)
            # RFC 7162 s. 3.2.9
            return b"OK [HIGHESTMODSEQ %d] Move completed." % mailbox.highestmodseq
    return b"OK Move completed."
