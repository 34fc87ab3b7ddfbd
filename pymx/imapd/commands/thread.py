"""THREAD (RFC 5256 s. 3)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.criteria import criterion
from pymx.proto.imap.commands.thread import Thread, thread_list


async def thread(client: Client, arguments: Thread) -> bytes:
    mailbox = client.selected
    view = mailbox.uids
    keys = await criterion(client, arguments.key)
    forest = await mailbox.threads(await mailbox.search(keys), arguments.algorithm)

    def written() -> bytes:
        if arguments.by_uid:
            return thread_list(forest, int)
        return thread_list(forest, dict(zip(view, range(1, len(view) + 1), strict=True)).__getitem__)

    text = await client.server.store.in_thread(written)  # many numbers take long to write
    client.write(b"* THREAD%b%b\r\n" % (b" " if text else b"", text))
    await client.drain()
    return b"OK Thread completed."
