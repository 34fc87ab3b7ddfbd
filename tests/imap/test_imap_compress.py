"""COMPRESS=DEFLATE (RFC 4978): the stream by itself, and sessions that speak it."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imap_rig import Client, Rig

from pymx.imapd.compression import PIECE, BrokenStream, Compression

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\n" + b"The same line again and again.\r\n" * 20


class _Packed:
    """A client's connection once it is compressed: the same calls as `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._in = zlib.decompressobj(-15)
        self._out = zlib.compressobj(9, zlib.DEFLATED, -15)
        self._text = b""
        self.received = 0
        self._number = 0

    def send(self, data: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> None:
        self._client.send(self._out.compress(data) + self._out.flush(flush))

    async def until(self, tag: bytes) -> bytes:
        """Everything up to the line that begins with `tag`."""
        async with asyncio.timeout(10):
            while True:
                at = 0 if self._text.startswith(tag) else self._text.find(b"\r\n" + tag)
                end = self._text.find(b"\r\n", at + 2) if at >= 0 else -1
                if end >= 0:
                    text, self._text = self._text[: end + 2], self._text[end + 2 :]
                    return text
                data = await self._client.reader.read(65536)
                assert data, "connection closed"
                self.received += len(data)
                self._text += self._in.decompress(data)

    async def ask(self, command: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
        self._number += 1
        tag = b"p%d " % self._number
        self.send(tag + command + b"\r\n", flush)
        return await self.until(tag)


@asynccontextmanager
async def _compressed(rig: Rig) -> AsyncIterator[_Packed]:
    client = await rig.login()
    assert (await client.ask("COMPRESS DEFLATE")) == [b"OK DEFLATE active"]
    try:
        yield _Packed(client)
    finally:
        await client.close()


async def test_compressed_session_does_what_a_plain_one_does(rig: Rig) -> None:
    """RFC 4978 s. 3, 4: each response can be read as soon as it is sent."""
    for _ in range(50):
        await rig.deliver(MESSAGE)
    async with _compressed(rig) as packed:
        plain = await rig.select()
        assert b"50 EXISTS" in await packed.ask(b"SELECT INBOX")
        command = b"FETCH 1:* (UID RFC822.SIZE INTERNALDATE ENVELOPE BODY.PEEK[])"
        text = await packed.ask(command)
        lines = await plain.ok(command)
        assert text.count(b" FETCH (") == len(lines) - 1 == 50
        assert text.startswith(b"\r\n".join(lines[:-1]))
        assert packed.received < len(text) // 5
        await plain.close()


async def test_second_compress_is_refused_with_its_code(rig: Rig) -> None:
    """RFC 4978 s. 3: NO [COMPRESSIONACTIVE]; an unknown mechanism is BAD."""
    async with _compressed(rig) as packed:
        assert b"NO [COMPRESSIONACTIVE]" in await packed.ask(b"COMPRESS DEFLATE")
        assert b"BAD" in await packed.ask(b"COMPRESS LZW")


async def test_compress_needs_a_login(rig: Rig) -> None:
    """It is not offered before, and not taken."""
    client = await rig.connect()
    assert (await client.ask("COMPRESS DEFLATE"))[-1].startswith(b"BAD")
    await client.close()


async def test_idle_pushes_and_ends_in_a_compressed_session(rig: Rig) -> None:
    """The compressor is dropped at IDLE; the stream goes on for both sides."""
    async with _compressed(rig) as packed:
        await packed.ask(b"SELECT INBOX")
        for number in range(1, 4):
            packed.send(b"i%d IDLE\r\n" % number)
            await packed.until(b"+ idling")
            await rig.deliver(MESSAGE)
            await packed.until(b"* %d EXISTS" % number)
            packed.send(b"DONE\r\n")
            assert b"OK Idle completed" in await packed.until(b"i%d " % number)
            assert b"SUBJECT" not in await packed.ask(b"FETCH %d ENVELOPE" % number)
        assert b"OK" in await packed.ask(b"NOOP", zlib.Z_PARTIAL_FLUSH)
        packed.send(b"i9 IDLE\r\n", zlib.Z_PARTIAL_FLUSH)
        await packed.until(b"+ idling")
        packed.send(b"DONE\r\n", zlib.Z_PARTIAL_FLUSH)
        await packed.until(b"i9 ")


async def test_append_arrives_through_compression(rig: Rig) -> None:
    """A message larger than all buffers, unpacked piece by piece."""
    async with _compressed(rig) as packed:
        line = b"0123456789" * 7 + b"\r\n"
        message = b"Subject: large\r\n\r\n" + line * 30_000
        packed.send(b"a APPEND INBOX {%d}\r\n" % len(message))
        await packed.until(b"+ OK")
        packed.send(message + b"\r\n")
        assert b"OK [APPENDUID" in await packed.until(b"a ")
        await packed.ask(b"SELECT INBOX")
        assert b"{%d}\r\n%b)" % (len(message), message) in await packed.ask(b"FETCH 1 BODY.PEEK[]")


async def test_garbage_ends_the_session_with_bye(rig: Rig) -> None:
    """What is not DEFLATE can't be followed."""
    client = await rig.login()
    await client.ask("COMPRESS DEFLATE")
    client.send(b"\xff\xff\xff a NOOP\r\n")
    async with asyncio.timeout(10):
        assert b"* BYE Compressed data is broken." in zlib.decompressobj(-15).decompress(await client.reader.read())
    await client.close()


async def test_line_that_unpacks_to_megabytes_is_refused_as_too_long(rig: Rig) -> None:
    """The limits hold for what is unpacked."""
    async with _compressed(rig) as packed:
        packed.send(b"a " + b"x" * 20_000_000 + b"\r\n")
        assert b"[TOOBIG]" in await packed.until(b"a BAD")
        assert b"OK" in await packed.ask(b"NOOP")


def test_pieces_are_bounded_and_nothing_is_lost() -> None:
    """A thousandfold expansion comes out in pieces."""
    data = b"\x00" * 5_000_000
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = Compression()
    stream.put(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))
    pieces = list(iter(stream.take, b""))
    assert max(map(len, pieces)) <= PIECE
    assert b"".join(pieces) == data


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.booleans()), max_size=30), st.randoms())
def test_resting_changes_nothing(said: list[tuple[bytes, bool, bool]], chance: random.Random) -> None:
    """Both directions go on after `rest`, however the peer flushes and wherever the network cuts."""
    peer_out, peer_in = zlib.compressobj(6, zlib.DEFLATED, -15), zlib.decompressobj(-15)
    stream = Compression()
    for text, rests, partial in said:
        data = peer_out.compress(text) + peer_out.flush(zlib.Z_PARTIAL_FLUSH if partial else zlib.Z_SYNC_FLUSH)
        cut = chance.randint(0, len(data))
        got = b""
        for part in (data[:cut], data[cut:]):
            stream.put(part)
            got += b"".join(iter(stream.take, b""))
        assert got == text
        assert peer_in.decompress(stream.pack(text)) == text
        if rests:
            stream.rest()


def test_stream_at_rest_keeps_little_and_still_knows_what_the_peer_refers_to() -> None:
    """RFC 1951 s. 2: a peer may refer to the last 32 KB, so they stay, but not as they came."""
    words = random.Random(2).choices([b"FETCH", b"UID", b"STORE", b"1:*", b"(FLAGS)", b"SEARCH", b"UNSEEN"], k=9000)
    said = b" ".join(words)
    peer = zlib.compressobj(9, zlib.DEFLATED, -15)
    sent = peer.compress(said) + peer.flush(zlib.Z_SYNC_FLUSH)
    tracemalloc.start()
    try:
        stream = Compression()
        stream.put(sent)
        assert b"".join(iter(stream.take, b"")) == said
        stream.rest()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 16_384
    again = peer.compress(said[-20_000:]) + peer.flush(zlib.Z_SYNC_FLUSH)
    assert len(again) < 600  # it does refer to it
    for _ in range(2):
        stream.rest()
    stream.put(again)
    assert b"".join(iter(stream.take, b"")) == said[-20_000:]


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\x03\x00", b"\x07"])
def test_broken_streams_raise_our_error(data: bytes) -> None:
    """Never anything but BrokenStream; an ended stream is broken too."""
    stream = Compression()
    stream.put(data)
    with pytest.raises(BrokenStream):
        stream.take()
