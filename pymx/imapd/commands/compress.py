"""COMPRESS=DEFLATE (RFC 4978). The session does the work; the tagged reply is the last thing sent as it is."""

from __future__ import annotations

from pymx.imapd.client import Client
from pymx.proto.imap.commands.compress import Compress
from pymx.proto.imap.errors import Bad, No


async def compress(client: Client, arguments: Compress) -> bytes:
    if arguments.mechanism != "DEFLATE":
        raise Bad("Unknown compression mechanism")
    if client.wire.compressed:
        raise No("DEFLATE active via COMPRESS", code="COMPRESSIONACTIVE")  # s. 3
    client.write(client.tag + b" OK DEFLATE active\r\n")
    client.wire.begin_compression()
    return b""
