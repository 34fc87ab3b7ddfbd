"""The HTTP of /metrics and /healthz, with what clients and others send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pymx.config.check import check
from pymx.config.load import parse
from pymx.metrics.shared import LATE_S, Share
from pymx.web.status import StatusServer, ailments


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """A served page of one process."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = StatusServer([sock], tmp_path, Share(tmp_path, "all", "run"))
    await server.start()
    yield int(sock.getsockname()[1])
    await server.close()


async def ask(port: int, request: bytes) -> tuple[str, bytes]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0].decode(), body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", "200 OK"),
        ("GET /metrics?x=1 HTTP/1.0", "200 OK"),
        ("GET /healthz HTTP/1.1", "200 OK"),
        ("GET / HTTP/1.1", "404 Not Found"),
        ("GET /metrics/../etc/passwd HTTP/1.1", "404 Not Found"),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        ("GET /metrics", "400 Bad Request"),
        ("EHLO x", "400 Bad Request"),
    ],
)
async def test_request_is_answered(port: int, request_line: str, status: str) -> None:
    assert (await ask(port, f"{request_line}\r\nHost: x\r\n\r\n".encode()))[0] == f"HTTP/1.1 {status}"


async def test_head_has_no_body(port: int) -> None:
    """RFC 9110 s. 9.3.2."""
    assert await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", b"")


async def test_request_too_large_is_not_read(port: int) -> None:
    """8 KB are enough for any scraper; the connection is closed."""
    assert (await ask(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"))[0] == ""


async def test_silent_clients_keep_nobody_out(port: int) -> None:
    """Connections that say nothing are limited in number and time; the page stays there for others."""
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n"))[1] == b"ok\n"
    for _, writer in silent:
        writer.close()
        await writer.wait_closed()


def test_what_is_wrong_is_said_in_sentences(tmp_path: Path) -> None:
    now = Share(tmp_path, "session-1", "run").current()
    late = replace(now, process="runner", at_s=now.at_s - LATE_S - 1)
    assert list(ailments([now], now.at_s)) == []
    (said,) = ailments([now, late], now.at_s)
    assert said.startswith("runner (pid ")
    assert list(ailments([replace(now, process="runner")], now.at_s)) == ["no process takes connections"]


@pytest.mark.parametrize("spec", ["0.0.0.0:9825", "[::]:9825", "8.8.8.8:9825", "[2001:4860::1]:9825"])
def test_address_that_the_internet_reaches_is_refused(spec: str) -> None:
    """There is no login."""
    problems = check(parse(f'hostname = "mx.example.com"\n[status]\nlisten = ["{spec}"]\n'))
    assert any(p.startswith("[status] listen") and "needs no login" in p for p in problems)


@pytest.mark.parametrize("spec", ["127.0.0.1:9825", "[::1]:9825", "10.1.2.3:9825", "[fd00::1]:9825", "unix:/run/x/s"])
def test_address_inside_is_fine(spec: str) -> None:
    problems = check(parse(f'hostname = "mx.example.com"\n[status]\nlisten = ["{spec}"]\n'))
    assert not any("[status]" in p for p in problems)
