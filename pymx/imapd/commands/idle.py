"""IDLE (RFC 2177). The session does the waiting; DONE brings the tagged reply."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.plain import Nothing


async def idle(client: Client, arguments: Nothing) -> bytes:
    client.write(b"+ idling\r\n")
    client.flush()
    client.wire.begin_idle()
    return b""
