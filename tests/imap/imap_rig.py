"""A real IMAP server on a real store with real TLS, and a client that speaks lines.

The accounts are a dict: the accounts room has tests of its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.tls import TlsFiles

from pymx.accounts.account import Account, AuthenticationFailed, AuthenticationUnavailable
from pymx.config.model import Imap, Mail
from pymx.imapd.server import ImapServer
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.owner import Owner
from pymx.ms.store import Store
from pymx.net.listener import Caps, Server
from pymx.net.sessions import Sessions
from pymx.proto.imap.render import render
from pymx.spool import Content

ALICE = Owner("example.test", "alice")


@dataclass
class Accounts:
    """Logins by address; `down` is a database that does not answer."""

    passwords: dict[str, str] = field(
        default_factory=lambda: {"alice@example.test": "secret", "bob@example.test": "hidden"}
    )
    down: bool = False
    quota_octets: int = 0
    quota_messages: int = 0

    async def login(self, login: str, password: str, *, peer_ip: str) -> Account:
        if self.down:
            raise AuthenticationUnavailable("the database is away")
        if self.passwords.get(login) != password:
            raise AuthenticationFailed("wrong")
        local, _, domain = login.partition("@")
        return Account(1, login, domain, local, self.quota_octets, self.quota_messages)


@dataclass
class Rig:
    """One server with a TLS and a STARTTLS listener."""

    store: Store
    accounts: Accounts
    sessions: Sessions
    tls: ssl.SSLContext
    port: int
    starttls_port: int
    imap: ImapServer
    ca: Path  # of the servers' certificate

    async def deliver(self, message: bytes, mailbox: str = "INBOX", owner: Owner = ALICE) -> int:
        """Deliver as the MDA does; the UID."""
        delivered = (await self.store.deliver([Delivery(owner, mailbox, Content.from_bytes(message))]))[0]
        assert isinstance(delivered, Delivered), delivered
        return delivered.uid

    async def connect(self, *, starttls: bool = False) -> Client:
        port = self.starttls_port if starttls else self.port
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=None if starttls else self.tls, server_hostname=None if starttls else "localhost"
        )
        client = Client(reader, writer, self.tls)
        client.greeting = await client.line()
        return client

    async def login(self, user: str = "alice", password: str = "secret") -> Client:
        client = await self.connect()
        assert (await client.ask(f"LOGIN {user}@example.test {password}"))[-1].startswith(b"OK")
        return client

    async def select(self, mailbox: str = "INBOX", user: str = "alice", password: str = "secret") -> Client:
        client = await self.login(user, password)
        assert (await client.ask(f"SELECT {mailbox}"))[-1].startswith(b"OK")
        return client


class Client:
    """Sends commands and collects responses; literals are part of their line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLContext) -> None:
        self.reader = reader
        self.writer = writer
        self.greeting = b""
        self._tls = tls
        self._number = 0

    async def line(self) -> bytes:
        """A response line without its CRLF, literals included; b"" at the end."""
        async with asyncio.timeout(10):
            data = await self.reader.readline()
            while found := re.search(rb"\{(\d+)\}\r\n\Z", data):
                data += await self.reader.readexactly(int(found[1]))
                data += await self.reader.readline()
            return data.removesuffix(b"\r\n")

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, tag: str) -> list[bytes]:
        """Untagged lines and the tagged one, without its tag."""
        lines = []
        while True:
            line = await self.line()
            assert line, f"connection closed; so far {lines}"
            if line.startswith(tag.encode() + b" "):
                return [*lines, line[len(tag) + 1 :]]
            lines.append(line)

    async def ask(self, command: str | bytes) -> list[bytes]:
        """A command and its answer; literals must be of the unasked kind."""
        self._number += 1
        tag = f"t{self._number}"
        self.send(tag.encode() + b" " + (command.encode() if isinstance(command, str) else command) + b"\r\n")
        return await self.answer(tag)

    async def ok(self, command: str | bytes) -> list[bytes]:
        lines = await self.ask(command)
        assert lines[-1].startswith(b"OK"), lines
        return lines

    async def append(self, message: bytes, mailbox: str = "INBOX", flags: str = "") -> list[bytes]:
        extra = f" ({flags})" if flags else ""
        return await self.ok(f"APPEND {mailbox}{extra} {{{len(message)}+}}\r\n".encode() + message)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


def _listen() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def running(
    directory: Path,
    tls_files: TlsFiles,
    *,
    mail: Mail | None = None,
    imap: Imap | None = None,
    without_tls: bool = False,
    runtime_dir: Path | None = None,
) -> AsyncIterator[Rig]:
    """A server on `directory`."""
    root = directory / "mail"
    root.mkdir(exist_ok=True)
    values = {name: getattr(mail, name) for name in mail.__struct_fields__} if mail else {}
    mail = Mail(**{**values, "root": str(root)})
    imap = imap or Imap()
    store = Store(mail, render=render, runtime_dir=runtime_dir, hostname="mx.example.test")
    await store.start()
    sessions = Sessions()
    sessions.start()
    accounts = Accounts()
    context = tls_files.server_context()
    servers, ports, made = [], [], []
    for implicit in (True, False):
        made.append(
            ImapServer(
                store,
                accounts,  # type: ignore[arg-type]  # a double with the same method
                imap=imap,
                mail=mail,
                hostname="mx.example.test",
                tls=None if without_tls and not implicit else context,
                implicit_tls=implicit,
                caps=Caps(imap.max_connections, imap.max_connections_per_ip, []),
                sessions=sessions,
            )
        )
        sock = _listen()
        ports.append(sock.getsockname()[1])
        server = Server("imap", sock, made[-1].factory, ssl=context if implicit else None)
        await server.start()
        servers.append(server)
    try:
        yield Rig(
            store, accounts, sessions, tls_files.client_context(verify=False), ports[0], ports[1], made[0], tls_files.ca
        )
    finally:
        for server in servers:
            server.close()
        await sessions.drain(5)
        sessions.stop()
        await store.close()
