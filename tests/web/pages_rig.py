"""Public pages on loopback sockets, and a client that says exactly what a test wants."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pymx.accounts.account import DirectoryUnavailable
from pymx.config.load import parse
from pymx.config.model import Config
from pymx.net.listener import Caps
from pymx.web.http import HttpServer
from pymx.web.public import MAX_BODY_OCTETS, PublicPages

DOMAINS = {"example.test", "other.test", "xn--bcher-kva.test"}
CONFIG = """
hostname = "mx.example.test"
[submission]
listen_tls = ["0.0.0.0:465", "[::]:465"]
listen_starttls = ["0.0.0.0:587", "[::]:587"]
[imap]
listen_tls = ["0.0.0.0:993", "[::]:993"]
listen_starttls = ["0.0.0.0:143"]
"""


def config(more: str = "") -> Config:
    return parse(CONFIG + more)


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes


@dataclass
class Pages:
    port: int
    challenges: Path
    domains: set[str]
    client: ssl.SSLContext | None = None
    down: bool = False

    async def is_local(self, domain: str) -> bool:
        if self.down:
            raise DirectoryUnavailable("database is down")
        return domain in self.domains or domain == "mx.example.test"

    async def raw(self, octets: bytes) -> bytes:
        """All that comes back until the server closes."""
        name = "mx.example.test" if self.client else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client, server_hostname=name)
        try:
            writer.write(octets)
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            writer.close()
            await asyncio.wait({asyncio.ensure_future(_closed(writer))}, timeout=20)

    async def ask(self, url: str, *, method: str = "GET", body: bytes = b"", fields: str = "") -> Answer:
        """`url` is HOST/PATH."""
        host, _, path = url.partition("/")
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        answer = await self.raw(f"{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{length}{fields}\r\n".encode() + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:])
        return Answer(int(lines[0].split(" ")[1]), {n.lower(): v for n, _, v in pairs}, content)


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except OSError:
        pass  # closed by the other end first


@asynccontextmanager
async def pages(
    tmp_path: Path,
    settings: Config,
    key_pair: tuple[Path, Path],
    *,
    tls: ssl.SSLContext | None = None,
    client: ssl.SSLContext | None = None,
) -> AsyncIterator[Pages]:
    sock = socket.create_server(("127.0.0.1", 0))
    made = Pages(sock.getsockname()[1], tmp_path / "challenges", set(DOMAINS), client)
    public = PublicPages(settings, made.is_local, challenges=made.challenges, key_pair=lambda: key_pair)
    server = HttpServer(
        "http", [sock], public.respond, caps=Caps(20, 10, ()), max_body_octets=MAX_BODY_OCTETS, tls=tls
    )  # fmt: skip
    await server.start()
    try:
        yield made
    finally:
        await server.close()
