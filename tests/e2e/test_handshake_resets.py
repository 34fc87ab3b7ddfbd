"""The whole server, and clients that reset their connections in every phase of a TLS handshake."""

from __future__ import annotations

import re
import signal
import socket
import ssl
from collections.abc import Iterator

import pytest
from support.appliance import Appliance
from support.resets import PHASES, UNDER_WAY, reset, reset_at
from support.wait import wait_for

PORTS = {"smtp": "smtp", "submission": "smtp", "imap": "imap", "submissions": "", "imaps": ""}


@pytest.fixture(params=["uvloop", "asyncio"])
def appliance(request: pytest.FixtureRequest) -> Iterator[Appliance]:
    server = Appliance(top=f'event_loop = "{request.param}"')
    with server.serving(("alice",)):
        yield server


def test_each_reset_is_one_line_and_no_error(appliance: Appliance) -> None:
    """On 25, 587 and 143 with STARTTLS, on 465 and 993 with TLS from the first octet (RFC 3207, 9051 s. 6.2.1)."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # with 1.2 the server is the last to speak
    for phase in PHASES:
        for port, starttls in PORTS.items():
            reset_at(phase, appliance.ports[port], context, starttls=starttls)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, appliance.log(), re.MULTILINE))

    early, late = len(("nothing", *UNDER_WAY)), len(PHASES) - len(("nothing", *UNDER_WAY))
    wait_for(
        lambda: count("event=(smtp_session|imap_session|handshake_failed)") >= len(PHASES) * len(PORTS),
        what="a line for each connection",
    )
    assert count('event=handshake_failed .*listener=imaps .*reason="Connection reset by peer"') == early
    assert count('event=handshake_failed .*listener=submissions .*reason="Connection reset by peer"') == early
    assert count('event=smtp_session .*reason="TLS handshake failed: Connection reset by peer"') == 2 * early
    assert count('event=imap_session .*reason="TLS handshake failed: Connection reset by peer"') == early
    assert count('event=smtp_session .*reason="connection lost') == 3 * late
    log = appliance.log()
    assert "Traceback" not in log
    assert "level=error" not in log
    assert "never retrieved" not in log


def test_who_was_gone_before_he_was_seen_gets_no_session(appliance: Appliance) -> None:
    """Without an address he would pass for a program on this machine, which no limit concerns. (The loop of asyncio
    still knows the address; then he is one who hung up.)"""
    assert appliance.process is not None
    ports = ("smtp", "submission", "imap")
    appliance.process.send_signal(signal.SIGSTOP)
    try:
        for port in ports:
            sock = socket.create_connection(("127.0.0.1", appliance.ports[port]), timeout=20)
            sock.sendall(b"a NOOP\r\nEHLO x\r\n")
            reset(sock)
    finally:
        appliance.process.send_signal(signal.SIGCONT)

    def lines() -> list[str]:
        names = ("event=smtp_session ", "event=imap_session ", "event=connection_refused ")
        return [line for line in appliance.log().splitlines() if any(name in line for name in names)]

    wait_for(lambda: len(lines()) >= len(ports), what="a line for each connection")
    assert len(lines()) == len(ports)
    nobody = [line for line in appliance.log().splitlines() if "listener=" in line and "peer_ip=127.0.0.1" not in line]
    assert all('reason="connection lost before the greeting"' in line for line in nobody)
    assert "Traceback" not in appliance.log()
