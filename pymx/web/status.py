"""/metrics (Prometheus text format) and /healthz on the `[status] listen` listener: HTTP/1.1, GET and HEAD, no more.

A few lines of our own instead of a web server: nothing is taken from the request but its path, one request a
connection, a limit for its size and time. There is no login, so it listens on loopback or private addresses only
(`config.check` sees to it).

/healthz is 200 `ok`, or 503 with a sentence a line about what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymx.metrics.exposition import CONTENT_TYPE, text
from pymx.metrics.shared import Share, Snapshot, read_all, total

_MAX_REQUEST_OCTETS = 8192
_REQUEST_S = 10.0
_MAX_CLIENTS = 20
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class StatusServer:
    """Serves what the processes share in `directory`; `share` is this process's own part, fresh at each request."""

    def __init__(self, sockets: Sequence[socket.socket], directory: Path, share: Share) -> None:
        self._sockets = sockets
        self._directory = directory
        self._share = share
        self._servers: list[asyncio.Server] = []
        self._clients = 0

    async def start(self) -> None:
        for sock in self._sockets:
            sock.setblocking(False)
            start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
            self._servers.append(await start(self._serve, sock=sock, limit=_MAX_REQUEST_OCTETS))

    async def close(self) -> None:
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= _MAX_CLIENTS:
                async with asyncio.timeout(_REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head.partition(b"\r\n")[0]))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it has gone, was too slow, or sent something else
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, request_line: bytes) -> bytes:
        words = request_line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, "not an HTTP/1 request\n")
        method, target = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(405, "only GET and HEAD\n")
        status, body, kind = 404, "there are /metrics and /healthz\n", "text/plain; charset=utf-8"
        if target == b"/metrics":
            status, body, kind = 200, text(total(await self.snapshots(), time.time())), CONTENT_TYPE
        elif target == b"/healthz":
            problems = list(ailments(await self.snapshots(), time.time()))
            status, body = (503, "\n".join(problems) + "\n") if problems else (200, "ok\n")
        return _response(status, body, kind, head_only=method == b"HEAD")

    async def snapshots(self) -> list[Snapshot]:
        """Of all processes; this one's as it is now."""
        own = self._share.current()
        others = await asyncio.to_thread(read_all, self._directory)
        return [own, *(s for s in others if s.process != own.process and s.server == own.server)]


def ailments(snapshots: Sequence[Snapshot], now: float) -> Iterator[str]:
    """What is wrong with the server, in sentences."""
    for snapshot in snapshots:
        if snapshot.is_late(now):
            yield f"{snapshot.process} (pid {snapshot.pid}) has not been heard of for {now - snapshot.at_s:.0f} s"
    if not any(s.process.startswith(("session", "all")) for s in snapshots):
        yield "no process takes connections"


def _response(status: int, body: str, kind: str = "text/plain; charset=utf-8", *, head_only: bool = False) -> bytes:
    content = body.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else content)
