"""Rights of a user in the own mailboxes (RFC 4314): the same everywhere, and nobody can change them.

There is no right to administer ("a"), so GETACL, SETACL, DELETEACL and LISTRIGHTS are refused as s. 4 says.
"""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.namespace import INBOX
from pymx.proto.imap.commands.folder import MailboxName
from pymx.proto.imap.errors import No

# "c" and "d" stand for what RFC 2086 called so (s. 2.1.1). INBOX can't be deleted.
_RIGHTS, _RIGHTS_INBOX = b"lrswipkxtecd", b"lrswipktecd"


def write_rights(client: Client, name: str) -> None:
    """A MYRIGHTS response; `name` is the store's."""
    client.write(b"* MYRIGHTS %b %b\r\n" % (client.on_wire(name), _RIGHTS_INBOX if name == INBOX else _RIGHTS))


async def myrights(client: Client, arguments: MailboxName) -> bytes:
    name = client.namespace.to_store(arguments.mailbox)
    await client.server.store.status(client.account, name)  # whether it exists
    write_rights(client, name)
    return b"OK Myrights completed."


async def refuse(client: Client, arguments: MailboxName) -> bytes:
    name = client.namespace.to_store(arguments.mailbox)
    await client.server.store.status(client.account, name)
    raise No("Rights can't be administered", code="NOPERM")
