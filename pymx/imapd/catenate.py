"""A message put together from parts (CATENATE, RFC 4469): texts that came along, and parts of messages that are here.

URLs may name messages of the same account only. What can't be found is answered NO [BADURL …], a message that gets too
large NO [TOOBIG]; nothing is stored then. The flags of the messages stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from pymx.ms.errors import InvalidName, NoSuchMailbox
from pymx.ms.mailbox import Mailbox
from pymx.proto.imap.commands.append import CatenatePart, TextPart
from pymx.proto.imap.errors import No
from pymx.proto.imap.section import extract
from pymx.proto.imap.url import BadUrl, MessageUrl, parse_url
from pymx.spool import Content

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from pymx.imapd.client import Client
    from pymx.imapd.sink import AppendSink
    from pymx.ms.message import StoredMessage

_PIECE = 65_536


async def catenated(client: Client, parts: Sequence[CatenatePart]) -> Content:
    """The whole message. Raises No."""
    limit = client.server.mail.max_message_octets
    sink = client.server.sink()
    octets = 0
    for part in parts:
        if isinstance(part, TextPart):
            if isinstance(part.content, No):
                raise part.content
            assert isinstance(part.content, Content)
            octets += part.content.size_octets
            pieces = part.content.chunks()
        else:
            found = await _of_url(client, part.url)
            octets += len(found)
            pieces = _pieces(found)
        if octets > limit:
            raise No("Message is too large", code="TOOBIG")
        await client.server.store.in_thread(partial(_feed, sink, pieces))
    content = sink.finish()
    if isinstance(content, No):
        raise content
    return content


def _feed(sink: AppendSink, pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        sink.feed(piece)


def _pieces(octets: bytes) -> Iterator[bytes]:
    for start in range(0, len(octets), _PIECE):
        yield octets[start : start + _PIECE]


async def _of_url(client: Client, text: str) -> bytes:
    """What a URL stands for. Raises No [BADURL]."""
    bad = No("A part of the message can't be found", code=f'BADURL "{text}"')
    try:
        url = parse_url(text)
    except BadUrl:
        raise No("Not a URL of a message", code=f'BADURL "{_harmless(text)}"') from None
    if not _ours(client, url):
        raise bad
    try:
        async with _opened(client, url) as mailbox:
            if url.uidvalidity not in (None, mailbox.uidvalidity):
                raise bad
            found = await _read(client, mailbox, url)
    except (NoSuchMailbox, InvalidName):
        raise bad from None
    if found is None:
        raise bad
    if url.partial is None:
        return found
    offset, length = url.partial
    return found[offset:] if length is None else found[offset : offset + length]


def _harmless(text: str) -> str:
    """A text that can stand between quotes."""
    return "".join(char for char in text[:1000] if char.isprintable() and char.isascii() and char not in '"\\]')


def _ours(client: Client, url: MessageUrl) -> bool:
    """Whether it names this server and this account (as it logged in, or without the domain)."""
    if url.host is None:
        return True
    host = url.host.rpartition(":")[0] if url.host[-1:].isdigit() and ":" in url.host else url.host
    names = (client.account.email, client.account.local_part)
    return host == client.server.hostname.lower() and (url.user is None or url.user.lower() in names)


@asynccontextmanager
async def _opened(client: Client, url: MessageUrl) -> AsyncIterator[Mailbox]:
    """The mailbox of a URL: the selected one, or another, opened just for this. Raises NoSuchMailbox, InvalidName."""
    if url.mailbox is None:
        if client.mailbox is None:
            raise NoSuchMailbox("No mailbox is selected")
        yield client.mailbox
        return
    try:
        name = client.namespace.to_store(url.mailbox)
    except No as outside:
        raise NoSuchMailbox(outside.text) from None
    mailbox = await client.server.store.open(client.account, name, read_only=True)
    try:
        yield mailbox
    finally:
        mailbox.close()


async def _read(client: Client, mailbox: Mailbox, url: MessageUrl) -> bytes | None:
    messages = cast("AsyncGenerator[tuple[int, StoredMessage | None], None]", mailbox.messages([url.uid]))
    async with aclosing(messages):
        async for _, message in messages:
            if message is None:
                return None
            octets = await message.read()
            if not url.section.path and not url.section.text:
                return octets
            return await client.server.store.in_thread(partial(extract, octets, url.section))
    return None
