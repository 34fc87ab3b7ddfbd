"""Peers that are no mail servers: talk before the greeting, header bombs, drips, control characters."""

from __future__ import annotations

import logging
import socket

import pytest
from support.wait import wait_for

from pymx import log
from pymx.config.model import Smtp
from pymx.proto.smtp.reply import Reply, SmtpError

EARLY = "503 5.5.1 Wait for the greeting before you send commands"


def test_who_talks_before_the_greeting_is_answered_and_marked(smtp_service):
    """RFC 5321 s. 4.3.1. Each of the early commands gets a reply, none is done; what comes after is."""
    service = smtp_service()
    service.policy.hold_greeting = True
    with service.client(greeted=False) as client:
        client.send("EHLO bot.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<bob@example.test>\r\nDA")
        (session,) = wait_for(lambda: service.live)
        wait_for(lambda: session._received >= 70)
        service.call(service.policy.greet.set)
        assert client.line().startswith("220 ")
        assert [client.reply() for _ in range(3)] == [EARLY] * 3
        client.send("TA\r\n")
        assert client.reply() == EARLY
        client.transaction()
        client.send("Subject: later\r\n\r\n.\r\n")
        assert client.reply() == "250 2.0.0 OK queued"
        assert session.facts.early_talker
        assert session.facts.origin().early_talker
        assert session.errors == 0
    assert len(service.policy.delivered) == 1


def test_who_waits_is_not_marked(smtp_service):
    service = smtp_service()
    with service.client() as client:
        assert client.ask("NOOP") == "250 2.0.0 OK"
        assert not service.live[0].facts.early_talker


def test_a_flood_before_the_greeting_ends_the_session(smtp_service):
    service = smtp_service(smtp=Smtp(max_errors=3))
    service.policy.hold_greeting = True
    with service.client(greeted=False) as client:
        client.send("NOOP\r\n" * 100)
        (session,) = wait_for(lambda: service.live)
        wait_for(lambda: session._received == 600)
        service.call(service.policy.greet.set)
        assert client.line().startswith("220 ")
        assert [client.reply() for _ in range(4)] == [EARLY] * 3 + ["421 4.7.0 Too many errors, closing connection"]
        assert client.line() == ""


@pytest.mark.parametrize("bdat", [False, True])
def test_a_message_that_takes_for_ever_ends(smtp_service, bdat):
    """[smtp] message_timeout_s, however fast it comes; the chunks of BDAT are one message."""
    service = smtp_service(smtp=Smtp(message_timeout_s=100, session_timeout_s=10_000))
    with service.client() as client:
        if bdat:
            client.ask("EHLO client.example")
            client.ask("MAIL FROM:<alice@example.com>")
            client.ask("RCPT TO:<bob@example.test>")
            client.send("BDAT 4\r\nxx\r\n")
            assert client.reply().startswith("250 ")
            (session,) = service.live
            began = session._data_since
            client.send("BDAT 1000\r\nhalf")
            wait_for(lambda: not session.in_sync)
            assert session._data_since == began
        else:
            client.transaction()
            (session,) = service.live
        client.send(b"x" * 200_000 if not bdat else b"x" * 100)
        service.call(lambda: session.sweep(session._loop.time() + 50))
        assert session._ending is None
        service.call(lambda: session.sweep(session._loop.time() + 101))
        assert client.line() == "421 4.4.2 Timeout, closing connection"
    ended = wait_for(lambda: service.events("smtp_session"))[0]
    assert ended["reason"] == "message longer under way than message_timeout_s"


def test_the_next_message_has_its_own_time(smtp_service):
    service = smtp_service()
    with service.client() as client:
        client.transaction()
        client.send("Subject: one\r\n\r\n.\r\n")
        assert client.reply().startswith("250 ")
        assert service.live[0]._data_since == 0.0


FIELDS = Smtp(max_header_fields=50)


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        ("X: y\r\n" * 50, "250 2.0.0 OK queued"),
        ("X: y\r\n" * 51, "552 5.3.4 Message header has too many fields"),
        ("X:\r\n y\r\n\tz\r\n" * 50, "250 2.0.0 OK queued"),
        ("a\r\n" * 100_000, "552 5.3.4 Message header has too many fields"),
        ("X: " + "y" * 2_000_000 + "\r\n", "552 5.3.4 Message header too big"),
    ],
    ids=["as many as may be", "one more", "folded", "lines that are none", "one huge"],
)
def test_header_bombs(smtp_service, head, answer):
    """[smtp] max_header_fields and max_header_octets."""
    service = smtp_service(smtp=FIELDS, max_message_octets=5_000_000)
    with service.client() as client:
        client.transaction()
        client.send(head + "\r\nbody\r\n.\r\n")
        assert client.reply() == answer
        assert client.ask("NOOP") == "250 2.0.0 OK"


CONTROLS = "\x1b[31m\x07\x08evil\x9b\u202e\u2028"


def test_control_characters_reach_neither_log_nor_reply(smtp_service):
    """A terminal that shows the log must not obey a peer; a reply is one line of ASCII."""
    service = smtp_service()
    refused = Reply(550, "5.1.1", f"No {CONTROLS}")
    service.policy.refused_recipients["x@example.test"] = SmtpError(refused, f"because {CONTROLS}")
    with service.client() as client:
        client.ask("EHLO client.example")
        client.ask("MAIL FROM:<alice@example.com>")
        answer = client.ask("RCPT TO:<x@example.test>")
        assert answer.isascii()
        assert answer.isprintable()
        client.ask(f"HELO {CONTROLS}".encode())
        client.ask(f"MAIL FROM:<{CONTROLS}@example.com> X={CONTROLS}".encode())
        client.ask(CONTROLS.encode())
    wait_for(lambda: service.events("smtp_session"))
    for form in (log.LogfmtFormatter(timestamps=True), log.JsonFormatter()):
        for event, fields in service.log:
            record = logging.makeLogRecord({"name": "pymx.smtpd", "msg": event, "fields": dict(fields)})
            line = form.format(record)
            assert line.isascii()
            assert line.isprintable()


def test_what_followed_starttls_in_plain_text_is_forgotten(smtp_service, tls_files):
    """RFC 3207 s. 4.2: commands put in by somebody in between are not run inside TLS."""
    service = smtp_service(tls=tls_files.server_context())
    with service.client() as client:
        client.ask("EHLO client.example")
        client.send("STARTTLS\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<bob@example.test>\r\n")
        assert client.reply() == "220 2.0.0 Ready to start TLS"
        client.start_tls(tls_files.client_context())
        assert client.ask("RSET") == "250 2.0.0 OK"
        assert client.ask("EHLO client.example").startswith("250-")
        assert service.live[0].transaction is None


@pytest.mark.parametrize("until", ["EHLO", "MAIL", "DATA"])
def test_who_loses_his_account_sends_no_more(smtp_service, until):
    """A message on its way is not taken either: the password may have been changed because somebody else has it."""
    service = smtp_service()
    with service.client() as client:
        client.ask("EHLO client.example")
        if until == "MAIL":
            client.ask("MAIL FROM:<alice@example.com>")
            client.ask("RCPT TO:<bob@example.test>")
        elif until == "DATA":
            client.transaction()
            client.send("Subject: half\r\n")
            wait_for(lambda: service.live[0]._received > 80)
        service.call(service.live[0].dismiss)
        assert client.line() == "421 4.7.0 Your account was changed, log in again"
        assert client.line() == ""
    assert not service.policy.delivered


def test_a_peer_that_shuts_its_side_before_the_greeting(smtp_service):
    service = smtp_service()
    with service.client(greeted=False) as client:
        client.sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: service.events("smtp_session"))
