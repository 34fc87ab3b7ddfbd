"""/metrics (Prometheus text format) and /healthz on the `[status] listen` listener: HTTP/1.1, GET and HEAD, no more.

Nothing is taken from the request but its path. There is no login, so it listens on loopback or private addresses only
(`config.check` sees to it).

/healthz is 200 `ok`, or 503 with a sentence a line about what is wrong.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymx.metrics.exposition import CONTENT_TYPE, text
from pymx.metrics.shared import Share, Snapshot, read_all, total
from pymx.net.listener import Caps
from pymx.web.http import HttpServer, Request, Response

_MAX_CLIENTS = 20


class StatusServer:
    """Serves what the processes share in `directory`; `share` is this process's own part, fresh at each request."""

    def __init__(self, sockets: Sequence[socket.socket], directory: Path, share: Share) -> None:
        self._directory = directory
        self._share = share
        self._http = HttpServer("status", sockets, self._answer, caps=Caps(_MAX_CLIENTS, _MAX_CLIENTS, ()))

    async def start(self) -> None:
        await self._http.start()

    async def close(self) -> None:
        await self._http.close()

    async def _answer(self, request: Request) -> Response:
        if request.method != "GET":
            return Response.text(405, "only GET and HEAD\n")
        if request.path == "/metrics":
            return Response(200, text(total(await self.snapshots(), time.time())).encode(), CONTENT_TYPE)
        if request.path == "/healthz":
            problems = list(ailments(await self.snapshots(), time.time()))
            return Response.text(503, "\n".join(problems) + "\n") if problems else Response.text(200, "ok\n")
        return Response.text(404, "there are /metrics and /healthz\n")

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
