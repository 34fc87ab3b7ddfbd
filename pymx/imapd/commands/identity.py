"""ID (RFC 2971) and ENABLE (RFC 5161)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.identity import Enable, Id
from pymx.proto.imap.errors import No

MAX_CLIENT_ID = 100  # characters of it in the log


async def identify(client: Client, arguments: Id) -> bytes:
    fields = dict(arguments.fields)
    name, version = fields.get("name", ""), fields.get("version", "")
    client.client_id = f"{name} {version}".strip()[:MAX_CLIENT_ID]
    server = client.server
    if "event" in fields and server.running_commands - 1 > server.imap.background_commands:
        # Apple TN3189: a phone that wakes up by itself comes again later
        raise No("Too busy for background fetches, come later", code="UNAVAILABLE")
    client.write(b'* ID ("name" "pymx")\r\n')
    return b"OK ID completed."


async def enable(client: Client, arguments: Enable) -> bytes:
    enabled = b""
    condstore = client.condstore
    if "CONDSTORE" in arguments.capabilities and not condstore:
        enabled += b" CONDSTORE"
    if "QRESYNC" in arguments.capabilities and not client.qresync:
        enabled += b" QRESYNC"
        client.qresync = True
    if "UTF8=ACCEPT" in arguments.capabilities and not client.utf8:
        enabled += b" UTF8=ACCEPT"
        client.utf8 = True
    if "IMAP4REV2" in arguments.capabilities and not client.rev2:
        enabled += b" IMAP4rev2"
        client.rev2 = client.utf8 = True
    if "UIDONLY" in arguments.capabilities and not client.uidonly:
        enabled += b" UIDONLY"
        client.uidonly = True
    client.write(b"* ENABLED%b\r\n" % enabled)
    if not condstore and (b"CONDSTORE" in enabled or client.qresync):
        client.enable_condstore()  # RFC 7162 s. 3.2.3: QRESYNC brings CONDSTORE along
    return b"OK Enabled."
