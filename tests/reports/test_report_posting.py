"""TLS reports by HTTPS (RFC 8460 s. 5.4): to a real server, to public addresses only, without following it anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from support.dns_server import DnsServer, Failure
from support.tls import TlsFiles

from pymx.config.model import Dns
from pymx.reports.error import NotTaken
from pymx.reports.post import post
from pymx.resolver.resolver import Resolver


class Server:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.status = 201
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((request.headers["Content-Type"], await request.read()))
        return web.Response(status=self.status, headers={"Location": "/other"}, body=b"x" * 100_000)


@pytest.fixture
async def server(tls_files: TlsFiles) -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/report", made.handle)
    app.router.add_get("/other", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_files.server_context())
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
def resolver(dns_server: DnsServer) -> Resolver:
    dns_server.add("mx.example.test", "A", "127.0.0.1")
    dns_server.add("other.test", "A", "127.0.0.1")
    return Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2))


async def test_report_is_posted(server: Server, resolver: Resolver, tls_files: TlsFiles) -> None:
    """The payload as it is, under its media type."""
    url = f"https://mx.example.test:{server.port}/report"
    context = tls_files.client_context()
    await post(resolver, url, b"data", "application/tlsrpt+gzip", allow_private=True, context=context)
    assert server.got == [("application/tlsrpt+gzip", b"data")]


@pytest.mark.parametrize(
    ("status", "temporary"),
    [(301, False), (302, False), (307, False), (400, False), (404, False), (429, True), (503, True)],
)
async def test_other_answers_are_refusals(
    server: Server, resolver: Resolver, tls_files: TlsFiles, status: int, temporary: bool
) -> None:
    """Redirects too: they are not followed."""
    server.status = status
    url = f"https://mx.example.test:{server.port}/report"
    with pytest.raises(NotTaken, match=str(status)) as refused:
        await post(resolver, url, b"data", "x/y", allow_private=True, context=tls_files.client_context())
    assert refused.value.temporary is temporary
    assert len(server.got) == 1


@pytest.mark.parametrize(
    "host",
    ["mx.example.test", "127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]", "224.0.0.1",
     "[2002:7f00:1::1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]"],
)  # fmt: skip
async def test_own_network_is_not_reached(server: Server, resolver: Resolver, tls_files: TlsFiles, host: str) -> None:
    """Where a stranger's record leads: by name and by address."""
    with pytest.raises(NotTaken, match="public address") as refused:
        await post(resolver, f"https://{host}:{server.port}/report", b"", "x/y", context=tls_files.client_context())
    assert not refused.value.temporary
    assert not server.got


@pytest.mark.parametrize("host", ["127.1", "2130706433", "127.0.0.1.", "0x7f.1", "0177.0.0.1", "%31%32%37.0.0.1"])
async def test_other_ways_to_write_an_address_lead_nowhere(
    server: Server, resolver: Resolver, tls_files: TlsFiles, host: str
) -> None:
    """The system's resolver would take them for 127.0.0.1."""
    with pytest.raises(NotTaken):
        await post(resolver, f"https://{host}:{server.port}/report", b"", "x/y", context=tls_files.client_context())
    assert not server.got


async def test_certificate_must_fit(server: Server, resolver: Resolver, tls_files: TlsFiles) -> None:
    """It is HTTPS: for another name nothing is sent."""
    context = tls_files.client_context()
    with pytest.raises(NotTaken) as refused:
        await post(
            resolver, f"https://other.test:{server.port}/report", b"", "x/y", allow_private=True, context=context
        )
    assert refused.value.temporary
    assert not server.got


async def test_names_that_cannot_be_looked_up_now_are_tried_again(
    resolver: Resolver, dns_server: DnsServer, tls_files: TlsFiles
) -> None:
    """A failing name server is temporary, an unknown name is not."""
    dns_server.fail("flaky.test", Failure.SERVFAIL)
    for name, temporary in (("flaky.test", True), ("unknown.test", False)):
        with pytest.raises(NotTaken) as refused:
            await post(resolver, f"https://{name}/", b"", "x/y", allow_private=True, context=tls_files.client_context())
        assert refused.value.temporary is temporary
