"""APPEND (RFC 3501 s. 6.3.11), MULTIAPPEND (RFC 3502), APPENDUID (RFC 4315 s. 3)."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.imapd.trouble import refusal
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.store import Append
from pymx.proto.imap.commands.append import AppendMessage, AppendTo
from pymx.proto.imap.errors import No
from pymx.proto.imap.sequence import runs
from pymx.spool import Content


async def append(client: Client, arguments: AppendTo) -> bytes:
    items = [_item(message) for message in arguments.messages]
    name = client.namespace.to_store(arguments.mailbox, create=True)
    try:
        appended = await client.server.store.append(client.account, name, items)
    except NoSuchMailbox as error:
        raise refusal(error, creatable=True) from None
    return b"OK [APPENDUID %d %b] Append completed." % (appended.uidvalidity, runs(appended.uids))


def _item(message: AppendMessage) -> Append:
    content = message.content
    if isinstance(content, No):
        raise content
    assert isinstance(content, Content)
    if content.size_octets == 0:
        raise No("An empty message can't be stored", code="CANNOT")  # RFC 3502 s. 6.3.11: it also means giving up
    return Append(content, message.flags, message.keywords, message.internaldate)
