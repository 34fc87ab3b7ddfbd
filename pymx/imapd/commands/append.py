"""APPEND (RFC 3501 s. 6.3.11), MULTIAPPEND (RFC 3502), APPENDUID (RFC 4315 s. 3), literal8 (RFC 3516 s. 4.4).

CATENATE (RFC 4469): a message that comes in parts is put together first. Parts of a literal8 that are binary are stored
as base64, as Dovecot does.

Deviation: RFC 9755 s. 4 has raw octets in the header refused from clients without UTF8=ACCEPT; old messages have them.
"""

from __future__ import annotations

from functools import partial

from pymx.imapd.catenate import catenated
from pymx.imapd.client import Client
from pymx.imapd.trouble import refusal
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.store import Append
from pymx.proto.imap.binary import in_lines
from pymx.proto.imap.commands.append import AppendMessage, AppendTo
from pymx.proto.imap.errors import No
from pymx.proto.imap.sequence import runs
from pymx.spool import Content


async def append(client: Client, arguments: AppendTo) -> bytes:
    name = client.namespace.to_store(arguments.mailbox, create=True)
    try:
        if any(isinstance(message.content, tuple) for message in arguments.messages):
            await client.server.store.status(client.account, name)  # a client is told to create it before of bad URLs
        items = [await to_store(client, message) for message in arguments.messages]
        appended = await client.server.store.append(client.account, name, items)
    except NoSuchMailbox as error:
        raise refusal(error, creatable=True) from None
    return b"OK [APPENDUID %d %b] Append completed." % (appended.uidvalidity, runs(appended.uids))


async def to_store(client: Client, message: AppendMessage) -> Append:
    """A message as the store takes it. Raises No for what can't be stored."""
    content = message.content
    if isinstance(content, tuple):
        content = await catenated(client, content)
    if isinstance(content, No):
        raise content
    assert isinstance(content, Content)
    if content.size_octets == 0:
        raise No("An empty message can't be stored", code="CANNOT")  # RFC 3502 s. 6.3.11: it also means giving up
    if message.binary and not await client.server.store.in_thread(partial(_is_text, content)):
        content = await _in_lines(client, content)
    return Append(content, message.flags, message.keywords, message.internaldate)


async def _in_lines(client: Client, content: Content) -> Content:
    """The same with binary parts in base64, since a Maildir keeps lines. Raises No if other parts are not lines."""
    sink = client.server.sink()

    def encode() -> tuple[Content | No, bool]:
        for piece in in_lines(content.read()):
            sink.feed(piece)
        made = sink.finish()
        return made, isinstance(made, Content) and _is_text(made)

    encoded, is_text = await client.server.store.in_thread(encode)
    if isinstance(encoded, No):
        raise encoded
    if not is_text:
        # RFC 3516 s. 4.4; what is not said to be binary would come back changed
        raise No("Binary content can't be stored", code="UNKNOWN-CTE")
    if encoded.size_octets > client.server.mail.max_message_octets:
        raise No("Message is too large", code="TOOBIG")
    return encoded


def _is_text(content: Content) -> bool:
    """Nothing but lines that end in CRLF, without NUL."""
    last = b""
    for piece in content.chunks():
        octets = last + piece
        if b"\x00" in octets or octets.count(b"\n") != octets.count(b"\r\n"):
            return False
        last = piece[-1:] if piece.endswith(b"\r") else b""
    return True
