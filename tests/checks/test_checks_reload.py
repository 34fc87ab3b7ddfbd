"""Checks that a reload replaces: gone with the last session that began with them, and what they held with them."""

from __future__ import annotations

import gc
import os
import smtplib
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from checks_rig import ALICE, OTHER_IP, letter, zones
from support.dns_server import DnsServer
from support.flow import HOSTNAME, MailIn, mail_in
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.app.checks import CurrentChecks
from pymx.checks.pipeline import Pipeline
from pymx.config.model import Checks, Config, Dns
from pymx.resolver.resolver import Resolver

RELOADS = 50
GREY = Checks(greylist=True, greylist_delay_s=1000)


def opened() -> int:
    """Files and sockets of this process, and threads of greylisting."""
    return len(os.listdir("/proc/self/fd")) + sum(t.name.startswith("greylist") for t in threading.enumerate())


@dataclass
class Server:
    flow: MailIn
    checks: CurrentChecks
    config: Config

    def reload(self, number: int) -> weakref.ref[Pipeline]:
        """Other settings each time; the pipeline that is in use then."""
        changed = msgspec.structs.replace(self.config.checks, junk_score=10 + number)
        self.checks.go_by(msgspec.structs.replace(self.config, checks=changed))
        self.flow.inbound.checks = self.checks.pipeline
        assert self.checks.pipeline is not None
        return weakref.ref(self.checks.pipeline)

    def connect(self, peer: str = OTHER_IP) -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", self.flow.ports["smtp"], "plain.test", source_address=(peer, 0))
        client.ehlo()
        return client

    def be_told_to_wait(self, number: int) -> None:
        with self.connect() as client:
            client.mail(f"x{number}@plain.test")
            assert client.rcpt(ALICE)[0] == 451


@pytest.fixture
async def server(tmp_path: Path, dns_server: DnsServer, tls_files: TlsFiles) -> AsyncIterator[Server]:
    zones(dns_server)
    config = Config(hostname=HOSTNAME, data_dir=str(tmp_path), checks=GREY)
    checks = CurrentChecks(Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2)))
    checks.go_by(config)
    try:
        async with mail_in(tmp_path, tls=tls_files.server_context(), checks=checks.pipeline) as flow:
            yield Server(flow, checks, config)
    finally:
        await checks.close()


def alive(pipelines: list[weakref.ref[Pipeline]]) -> int:
    gc.collect()
    return sum(pipeline() is not None for pipeline in pipelines)


async def test_fifty_reloads_leave_nothing_open(server: Server) -> None:
    """Each had its database open and its thread, and a session that has ended since."""
    made = []
    before = 0
    for number in range(RELOADS):
        made.append(server.reload(number))
        await server.flow.blocking(server.be_told_to_wait, number)
        if not number:
            await wait_until(lambda: alive(made) == 1)
            before = opened()
    await wait_until(lambda: alive(made) == 1, what="only the pipeline in use is left")
    assert made[-1]() is server.checks.pipeline
    # the test run itself opens something now and then; each reload had left two
    await wait_until(lambda: opened() < before + 10, what=f"hardly more open than after the first ({before})")


async def test_the_same_settings_change_nothing(server: Server) -> None:
    """SIGHUP for a certificate does not end what was learned and kept open."""
    before = server.checks.pipeline
    server.checks.go_by(msgspec.structs.replace(server.config))
    assert server.checks.pipeline is before


@pytest.mark.parametrize("ends", ["message", "next transaction", "quit", "cut"])
async def test_a_message_under_way_keeps_its_checks(server: Server, ends: str) -> None:
    """Until it is judged, given up for another one, or its session is over."""
    server.config = msgspec.structs.replace(server.config, checks=Checks())
    old = server.reload(0)
    client = await server.flow.blocking(server.connect, "127.0.0.2")

    def begin() -> None:
        client.mail("x@good.test")
        assert client.rcpt(ALICE)[0] == 250

    await server.flow.blocking(begin)
    new = server.reload(1)
    await server.flow.blocking(lambda: client.noop())
    assert alive([old]) == 1
    if ends == "message":
        assert (await server.flow.blocking(client.data, letter().encode()))[0] == 250
        await wait_until(lambda: not server.checks._retiring, what="the old pipeline is closed")
        await server.flow.blocking(client.quit)
    elif ends == "next transaction":
        await server.flow.blocking(client.rset)
        await server.flow.blocking(begin)
    elif ends == "quit":
        await server.flow.blocking(client.quit)
    else:
        client.close()
    await wait_until(lambda: alive([old]) == 0, what="the old pipeline is gone")
    assert new() is server.checks.pipeline
    await server.flow.blocking(client.close)


async def test_the_end_of_the_server_waits_for_no_message(server: Server) -> None:
    """Closed are those that are still in use too."""
    server.reload(0)
    pipeline = server.checks.pipeline
    assert pipeline is not None
    client = await server.flow.blocking(server.connect)
    await server.flow.blocking(lambda: (client.mail("x@plain.test"), client.rcpt(ALICE)))
    server.reload(1)
    await server.checks.close()
    greylisting = next(check for check in pipeline.checks if check.name == "greylist")
    with pytest.raises(RuntimeError, match="shutdown"):
        greylisting._thread.submit(lambda: None)
    await server.flow.blocking(client.close)
