"""CAPABILITY, NOOP, LOGOUT, CHECK (RFC 3501 s. 6.1, 6.4.1) and NAMESPACE (RFC 2342)."""

from __future__ import annotations

from pymx.imapd.capability import offered_to
from pymx.imapd.client import Client
from pymx.proto.imap.commands.plain import Nothing


async def capability(client: Client, arguments: Nothing) -> bytes:
    server = client.server
    if client.owner is None:
        words = server.greeting_capabilities(client.peer_ip, secure=client.secure)
    else:
        words = offered_to(client.client_id, server.capabilities)
    client.write(b"* CAPABILITY %b\r\n" % words)
    return b"OK Capability completed."


async def noop(client: Client, arguments: Nothing) -> bytes:
    return b"OK NOOP completed."


async def logout(client: Client, arguments: Nothing) -> bytes:
    client.write(b"* BYE Logging out\r\n")
    client.leaving = "logout"
    client.unselect()
    return b"OK Logout completed."


async def check(client: Client, arguments: Nothing) -> bytes:
    return b"OK Check completed."


async def namespace(client: Client, arguments: Nothing) -> bytes:
    client.write(client.namespace.response(utf8=client.utf8))
    return b"OK Namespace completed."
