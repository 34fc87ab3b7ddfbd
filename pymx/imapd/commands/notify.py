"""NOTIFY (RFC 5465 s. 3)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.notify import Notifications
from pymx.proto.imap.commands.notify import Notify


async def notify(client: Client, arguments: Notify) -> bytes:
    wanted = Notifications(client, arguments.groups)
    try:
        await wanted.begin(status=arguments.status)
    except BaseException:
        wanted.close()
        raise
    client.stop_notifying()
    client.notify = wanted
    return b"OK Notify completed."
