"""STORE (RFC 3501 s. 6.4.6) and conditional STORE (RFC 7162 s. 3.1.3)."""

from __future__ import annotations

from bisect import bisect_left

from pymx.imapd.client import Client
from pymx.proto.imap.commands.store import StoreFlags
from pymx.proto.imap.errors import No
from pymx.proto.imap.sequence import runs


async def store(client: Client, arguments: StoreFlags) -> bytes:
    mailbox = client.selected
    uids = client.resolve(arguments.messages, by_uid=arguments.by_uid)
    if mailbox.read_only:
        raise No("Mailbox is open read-only", code="NOPERM")
    if arguments.unchanged_since is not None:
        client.enable_condstore()
    before = [name for name in mailbox.keywords if name]
    stored = await mailbox.store_flags(
        uids, arguments.mode, arguments.flags, arguments.keywords, unchanged_since=arguments.unchanged_since
    )
    if [name for name in mailbox.keywords if name] != before:
        client.write_flags()
    # RFC 7162 s. 3.1.3: with CONDSTORE the new modseq is told, even if the flags are not
    client.write_rows(stored.rows, with_uid=arguments.by_uid or client.qresync, with_flags=not arguments.silent)
    if stored.modified:
        view = mailbox.uids
        shown = stored.modified if arguments.by_uid else [bisect_left(view, uid) + 1 for uid in stored.modified]
        return b"OK [MODIFIED %b] Conditional STORE failed." % runs(shown)
    if not arguments.by_uid and len(stored.rows) < len(uids):
        return b"OK [EXPUNGEISSUED] Some of the messages are gone."
    return b"OK Store completed."
