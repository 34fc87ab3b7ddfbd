"""Connections to an implicit-TLS port that never finish their handshake."""

from __future__ import annotations

import socket

import pytest
from smtp_service import Service
from support.wait import wait_for

from pymx.config.model import Tls
from pymx.mail.envelope import Listener
from pymx.net.tls import Certificates


@pytest.fixture
def service(tmp_path, tls_files, loop_name):
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))
    service = Service(
        tmp_path, loop=loop_name, listener=Listener.SUBMISSION, tls=Certificates(tls).context(), implicit_tls=True
    )
    service.start()
    yield service
    service.stop()


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=10)


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed."""
    sock.settimeout(0.05)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_handshakes_in_progress_are_capped_per_address(service, tls_files):
    """One too many is closed at once; when the others have gone, TLS works again."""
    silent = [connect(service) for _ in range(Tls().max_handshakes_per_ip)]
    extra = connect(service)
    wait_for(lambda: closed(extra))
    assert not closed(silent[0])
    extra.close()
    for sock in silent:
        sock.close()

    def greeted() -> bool:
        try:
            with (
                connect(service) as sock,
                tls_files.client_context().wrap_socket(sock, server_hostname="localhost") as connection,
            ):
                return connection.recv(3) == b"220"
        except OSError:
            return False

    wait_for(greeted)


def test_session_begins_only_after_the_handshake(service):
    """Garbage costs no session."""
    with connect(service) as sock:
        sock.sendall(b"EHLO not.tls.example\r\n" * 10)
        wait_for(lambda: closed(sock))
    assert len(service.sessions) == 0
    assert service.events("smtp_session") == []


def test_pending_handshakes_end_with_the_server(tmp_path, tls_files, loop_name):
    """Stopping waits for nobody who has not even said hello."""
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))
    service = Service(
        tmp_path, loop=loop_name, listener=Listener.SUBMISSION, tls=Certificates(tls).context(), implicit_tls=True
    )
    service.start()
    with connect(service) as sock:
        assert not closed(sock)
        service.stop()
        wait_for(lambda: closed(sock))
