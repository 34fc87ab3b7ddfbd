"""Time limits, caps, counters, shutdown (RFC 5321 s. 4.5.3.2, 3.8)."""

from __future__ import annotations

import select
import socket
import time

import pytest
from support.wait import wait_for

from pymx.config.model import Smtp
from pymx.net.listener import Caps
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError

SHORT = Smtp(command_timeout_s=1, data_timeout_s=1, session_timeout_s=1)


def quiet(client, pause_s: float) -> bool:
    """Whether nothing comes from the server for a moment."""
    return not select.select([client.sock], [], [], pause_s)[0]


def drip(client, text: str, pause_s: float, until_s: float) -> None:
    """Send `text` again and again until the server says something, at most `until_s`."""
    end = time.monotonic() + until_s
    while time.monotonic() < end:
        client.send(text)
        if not quiet(client, pause_s):
            return


def test_silence_ends_with_421(smtp_service):
    """[smtp] command_timeout_s; never closed without a word."""
    service = smtp_service(smtp=Smtp(command_timeout_s=1))
    with service.client() as client:
        assert client.line() == "421 4.4.2 Timeout, closing connection"
        assert client.line() == ""
    assert wait_for(lambda: service.events("smtp_session"))[0]["reason"] == "no command within command_timeout_s"


def test_command_that_drips_in_does_not_buy_time(smtp_service):
    """Octets are no progress, a command is."""
    service = smtp_service(smtp=Smtp(command_timeout_s=1))
    with service.client() as client:
        drip(client, "N", 0.1, 8)
        assert client.line() == "421 4.4.2 Timeout, closing connection"


def test_noops_do_not_live_for_ever(smtp_service):
    """[smtp] session_timeout_s."""
    service = smtp_service(smtp=Smtp(session_timeout_s=1))
    with service.client() as client:
        for _ in range(10_000):
            client.send("NOOP\r\n")
            answer = client.reply()
            if answer != "250 2.0.0 OK":
                break
            quiet(client, 0.01)
        assert answer == "421 4.4.2 Timeout, closing connection"


def test_message_in_steady_progress_outlives_every_limit(smtp_service):
    """Data that comes is progress: three times longer than all limits, and accepted."""
    service = smtp_service(smtp=SHORT)
    with service.client() as client:
        client.transaction()
        drip(client, "x" * 100 + "\r\n", 0.2, 3)
        client.send(".\r\n")
        assert client.reply() == "250 2.0.0 OK queued"


def test_message_that_stops_ends_with_421(smtp_service):
    """[smtp] data_timeout_s; nothing is delivered."""
    service = smtp_service(smtp=Smtp(data_timeout_s=1))
    with service.client() as client:
        client.transaction()
        client.send("half a mess")
        assert client.line() == "421 4.4.2 Timeout, closing connection"
    assert not service.policy.delivered


@pytest.mark.parametrize(("octets", "ends"), [(50, True), (100_000, False)])
def test_message_below_the_least_rate_ends(smtp_service, octets, ends):
    """[smtp] min_data_rate_octets, over a minute."""
    service = smtp_service()
    with service.client() as client:
        client.transaction()
        client.send(b"x" * octets)
        (session,) = service.live
        wait_for(lambda: session._received > octets)
        service.call(lambda: session.sweep(session._loop.time() + 61))
        if ends:
            assert client.line() == "421 4.4.2 Timeout, closing connection"
        else:
            client.send("\r\n.\r\n")
            assert client.reply() == "250 2.0.0 OK queued"


def test_peer_that_takes_no_replies_is_cut_off(smtp_service):
    """What it sends is not read either, so memory stays small."""
    service = smtp_service(smtp=Smtp(command_timeout_s=1, max_commands=10**9))
    with service.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sock.setblocking(False)
        (session,) = service.live
        largest = 0

        def cut_off() -> bool:
            nonlocal largest
            largest = max(largest, len(session._input))
            try:
                client.sock.send(b"HELP\r\n" * 10_000)
            except BlockingIOError:
                return False
            except OSError:
                return True
            return False

        wait_for(cut_off, timeout_s=15)
    assert largest < 1_000_000


def test_too_many_errors(smtp_service):
    """[smtp] max_errors: the last refusal is said, then 421."""
    service = smtp_service(smtp=Smtp(max_errors=3))
    with service.client() as client:
        assert client.ask("FOO").startswith("500 ")
        assert client.ask("FOO").startswith("500 ")
        assert client.ask("FOO").startswith("500 ")
        assert client.line() == "421 4.7.0 Too many errors, closing connection"
        assert client.line() == ""


def test_temporary_refusals_are_no_errors_and_a_message_forgives_them(smtp_service):
    """A mailing list with many recipients is not an attack."""
    service = smtp_service(smtp=Smtp(max_errors=3, max_recipients=1))
    service.policy.refused_recipients["nobody@example.test"] = SmtpError(reply.UNKNOWN_RECIPIENT)
    with service.client() as client:
        client.ask("EHLO c")
        for _ in range(3):
            client.ask("MAIL FROM:<a@example.com>")
            for _ in range(2):
                assert client.ask("RCPT TO:<nobody@example.test>").startswith("550 ")
            client.ask("RCPT TO:<bob@example.test>")
            for _ in range(5):
                assert client.ask("RCPT TO:<carol@example.test>") == "452 4.5.3 Too many recipients"
            client.ask("DATA")
            assert client.ask("\r\n.") == "250 2.0.0 OK queued"


def test_too_many_commands(smtp_service):
    """[smtp] max_commands."""
    service = smtp_service(smtp=Smtp(max_commands=5))
    with service.client() as client:
        for _ in range(5):
            assert client.ask("NOOP") == "250 2.0.0 OK"
        assert client.ask("NOOP") == "421 4.7.0 Too many commands, closing connection"
        assert client.line() == ""


@pytest.mark.parametrize("caps", [Caps(2, 10, []), Caps(10, 2, [])], ids=["in all", "per address"])
def test_caps_on_connections(smtp_service, caps):
    """421 4.7.0 for the one too many; a place is free again when a session has ended."""
    service = smtp_service(caps=caps)
    with service.client() as one, service.client():
        with service.client(greeted=False) as third:
            assert third.line() == "421 4.7.0 Too many connections, try again later"
            assert third.line() == ""
        assert one.ask("QUIT").startswith("221 ")
        assert one.line() == ""
        wait_for(lambda: caps.count == 1)
        with service.client() as fourth:
            assert fourth.ask("NOOP") == "250 2.0.0 OK"
    wait_for(lambda: caps.count == 0)


def test_shutdown_tells_the_idle_and_waits_for_transactions(smtp_service):
    """RFC 5321 s. 3.8: 421 between transactions; a transaction is let through to its end."""
    service = smtp_service()
    with service.client() as idle, service.client() as busy:
        busy.transaction()
        service.call(lambda: [s.shutdown() for s in service.live])
        assert idle.line() == "421 4.3.2 Service shutting down, try again later"
        assert idle.line() == ""
        assert busy.ask("\r\n.") == "250 2.0.0 OK queued"
        assert busy.line() == "421 4.3.2 Service shutting down, try again later"
        assert busy.line() == ""
