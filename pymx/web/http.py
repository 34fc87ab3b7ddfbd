"""HTTP/1.1 for a handful of small pages: one request a connection, everything in it bounded.

Ours instead of a web server's because little is needed: no files, no sessions, no compression. With aiohttp's the
runner would be 9 MB larger. `HttpServer` reads a request within a time and a size, hands it to `respond` and writes the
answer; the number of connections, and those of one address, are capped. What is no HTTP/1 is answered with 400, and a
connection over the caps is closed without a word. Bodies have a Content-Length (RFC 9112 s. 6.2); chunked ones are
refused with 411, for no client of these pages sends one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from pymx.net.listener import Caps, Server

_MAX_HEAD_OCTETS = 8192
_REQUEST_S = 10.0
_REASONS = {
    200: "OK",
    302: "Found",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    503: "Service Unavailable",
}
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """`path` as it was sent, without the query; `host` in lower case without a port, "" when there was none."""

    method: str
    path: str
    query: str
    host: str
    body: bytes
    peer_ip: str
    secure: bool  # came over TLS


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent; `fields` are further header fields, written by us and never by a peer."""

    status: int
    body: bytes
    content_type: str = TEXT
    fields: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def text(status: int, body: str) -> Response:
        return Response(status, body.encode())

    def to_bytes(self, *, head_only: bool) -> bytes:
        fields = (
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            *(self.fields or (("Cache-Control", "no-store"),)),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        )
        head = f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields)
        return head.encode() + b"\r\n" + (b"" if head_only else self.body)


Respond = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """The request is answered without asking anybody."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = Response.text(status, text + "\n")


class HttpServer:
    """Serves what `respond` gives on some listening sockets; with TLS when there is a context."""

    def __init__(
        self,
        name: str,
        sockets: Sequence[socket.socket],
        respond: Respond,
        *,
        caps: Caps,
        max_body_octets: int = 0,
        tls: ssl.SSLContext | None = None,
        handshakes: Caps | None = None,
    ) -> None:
        self._respond = respond
        self._caps = caps
        self._max_body_octets = max_body_octets
        self._secure = tls is not None
        self._servers = [Server(name, sock, self._protocol, ssl=tls, handshakes=handshakes) for sock in sockets]
        self._tasks: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        for server in self._servers:
            server.sock.setblocking(False)
            await server.start()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _protocol(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=_MAX_HEAD_OCTETS), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        peer = writer.get_extra_info("peername")
        ip = str(peer[0]) if isinstance(peer, tuple) else ""
        entered = self._caps.enter(ip)
        try:
            if entered:
                async with asyncio.timeout(_REQUEST_S):
                    await self._exchange(reader, writer, ip)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it has gone, was too slow, or sent something else
        finally:
            if entered:
                self._caps.leave(ip)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ip: str) -> None:
        head_only = False
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target = _request_line(lines[0])
            head_only = method == "HEAD"
            fields = _fields(lines[1:])
            body = await self._body(reader, writer, fields)
            request = Request(
                "GET" if head_only else method, target.path, target.query, _host(target, fields), body, ip, self._secure
            )
            response = await self._respond(request)
        except _Refused as e:
            response = e.response
        writer.write(response.to_bytes(head_only=head_only))
        await writer.drain()

    async def _body(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: dict[str, str]) -> bytes:
        if "transfer-encoding" in fields:
            raise _Refused(411, "send a Content-Length")
        length = fields.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(400, "malformed Content-Length")
        if len(length) > 9 or int(length) > self._max_body_octets:
            raise _Refused(413, f"at most {self._max_body_octets} octets")
        if int(length) and fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await reader.readexactly(int(length))


def _request_line(line: str) -> tuple[str, SplitResult]:
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].isascii():
        raise _Refused(400, "not an HTTP/1 request")
    try:
        # an absolute URL is a request's target too (RFC 9112 s. 3.2.2); without a scheme // would be taken for a host
        absolute = words[1].lower().startswith(("http://", "https://"))
        target = urlsplit(words[1] if absolute else "http://x" + words[1])
    except ValueError:
        raise _Refused(400, "malformed target") from None
    if not absolute:
        if not words[1].startswith("/"):
            raise _Refused(400, "malformed target")
        target = target._replace(netloc="")
    return words[0], target


def _fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or any(c in line for c in "\r\n\0"):
            raise _Refused(400, "malformed field")
        name = name.lower()
        if name in fields and name in ("host", "content-length"):
            # "A server MUST respond with a 400 … to any request that contains more than one Host" (RFC 9112 s. 3.2)
            raise _Refused(400, f"more than one {name}")
        fields[name] = value.strip(" \t")
    return fields


def _host(target: SplitResult, fields: dict[str, str]) -> str:
    authority = (target.netloc or fields.get("host", "")).lower()
    name, colon, port = authority.rpartition(":")
    host = name if colon and port.isdigit() else authority
    return host.rstrip(".")
