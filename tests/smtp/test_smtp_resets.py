"""Clients that reset the connection (RST) in a TLS handshake, or before the server has seen them."""

from __future__ import annotations

import logging
import socket
import ssl
import threading

import pytest
from smtp_service import Service
from support.resets import PHASES, UNDER_WAY, reset, reset_at
from support.wait import wait_for

from pymx.config.model import Tls
from pymx.mail.envelope import Listener
from pymx.net.tls import Certificates

AT_ONCE = 5


@pytest.fixture(params=["STARTTLS", "implicit TLS"])
def service(request, tmp_path, tls_files, loop_name):
    """Its `stop` fails for whatever the event loop had to report."""
    implicit = request.param == "implicit TLS"
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))
    service = Service(
        tmp_path, loop=loop_name, listener=Listener.SUBMISSION, tls=Certificates(tls).context(), implicit_tls=implicit
    )
    service.start()
    yield service
    service.stop()


@pytest.mark.parametrize("phase", PHASES)
def test_a_reset_in_the_handshake_is_one_line_in_the_log(service, tls_files, caplog, phase):
    """RFC 3207, RFC 8314: whoever hangs up is no error of ours, and nothing of him stays."""
    caplog.set_level(logging.INFO)
    context = tls_files.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # with 1.2 the server is the last to speak
    starttls = not service.engine.implicit_tls
    for _ in range(AT_ONCE):
        reset_at(phase, service.port, context, starttls="smtp" if starttls else "")
    if phase not in UNDER_WAY and phase != "nothing":
        allowed = {("smtp_session", "connection lost"), ("smtp_session", "connection lost before the greeting")}
    elif starttls:
        allowed = {("smtp_session", "TLS handshake failed: Connection reset by peer")}
    else:
        allowed = {("handshake_failed", "Connection reset by peer")}

    def lines() -> list[tuple[str, object]]:
        """What is said about connections; commands that came in time are refused, each with a line."""
        found = [(r.getMessage(), r.__dict__.get("fields", {}).get("reason")) for r in caplog.records]
        return [line for line in found if line[0] in ("smtp_session", "handshake_failed")]

    wait_for(lambda: len(lines()) >= AT_ONCE)
    wait_for(lambda: len(service.sessions) == 0)
    assert len(lines()) == AT_ONCE
    assert set(lines()) <= allowed
    assert [r for r in caplog.records if r.exc_info or r.levelno > logging.INFO] == []


def test_who_was_gone_before_he_was_seen_is_nobody(tmp_path, loop_name):
    """The system does not know his address any more, and what he sent could be read: without an address it would come
    from a host of ours, that may send what it likes."""
    service = Service(tmp_path, loop=loop_name)
    service.start()
    busy, seen = threading.Event(), threading.Event()

    def wait() -> None:
        seen.set()
        busy.wait(20)

    service.call(wait)
    assert seen.wait(20)
    sock = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    sock.sendall(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\n")
    reset(sock)
    busy.set()
    (line,) = wait_for(lambda: service.events("smtp_session"))
    assert (line["commands"], line["errors"], line["size_octets"]) == (0, 0, 0)
    assert line["reason"] in ("connection lost", "connection lost before the greeting")
    assert service.events("command_refused") == []
    wait_for(lambda: len(service.sessions) == 0)
    service.stop()
