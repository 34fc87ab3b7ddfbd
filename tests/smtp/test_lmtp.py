"""LMTP on the same engine (RFC 2033)."""

from __future__ import annotations

import smtplib

import pytest
from smtp_service import QUEUED, converse
from support.wait import wait_for

from pymx.mail.envelope import Listener
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError


@pytest.fixture
def service(smtp_service, tmp_path):
    return smtp_service(listener=Listener.LMTP, address=f"unix:{tmp_path}/lmtp")


def test_one_reply_per_accepted_recipient(service):
    """RFC 2033 s. 4.2, in the order of the RCPTs."""
    service.policy.refused_recipients["nobody@example.test"] = SmtpError(reply.UNKNOWN_RECIPIENT)
    service.policy.per_recipient = lambda r: reply.OVER_QUOTA if r.address.local_part == "full" else QUEUED
    with service.client(greeted=False) as client:
        converse(
            client,
            """
            S: 220 mx.example.test LMTP pymx
            C: EHLO client.example
            S: 500 5.5.1 *
            C: HELO client.example
            S: 500 5.5.1 *
            C: LHLO client.example
            S: 250-mx.example.test
            S: 250-PIPELINING
            S: 250-SIZE 1000000
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250 CHUNKING
            C: MAIL FROM:<alice@example.com>
            S: 250 2.1.0 *
            C: DATA
            S: 503 5.5.1 No valid recipients
            C: RCPT TO:<bob@example.test>
            S: 250 2.1.5 *
            C: RCPT TO:<nobody@example.test>
            S: 550 5.1.1 *
            C: RCPT TO:<full@example.test>
            S: 250 2.1.5 *
            C: DATA
            S: 354 *
            C: Subject: x
            C:
            C: .
            S: 250 2.0.0 OK queued
            S: 452 4.2.2 *
            C: NOOP
            S: 250 2.0.0 OK
            C: QUIT
            S: 221 2.0.0 Bye
            """,
        )
    assert wait_for(lambda: service.policy.closed_sessions)[0][0].origin().protocol == "LMTP"


@pytest.mark.parametrize(
    ("failure", "answer"),
    [(SmtpError(reply.STORAGE_FULL), "452 4.3.1"), (RuntimeError("broken"), "451 4.3.0")],
)
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
def test_failure_is_said_once_per_recipient(service, failure, answer, command):
    """Also when the whole message fails, or we do."""
    service.policy.refuse_data = failure
    with service.client() as client:
        client.ask("LHLO c")
        client.ask("MAIL FROM:<a@example.com>")
        client.ask("RCPT TO:<bob@example.test>")
        client.ask("RCPT TO:<carol@example.test>")
        if command == "DATA":
            client.ask("DATA")
            client.send("\r\n.\r\n")
        else:
            client.send("BDAT 2 LAST\r\n\r\n")
        assert [client.reply()[:9], client.reply()[:9]] == [answer, answer]
        assert client.ask("NOOP") == "250 2.0.0 OK"


def test_bdat_last_replies_per_recipient(service):
    """RFC 2033 s. 4.2 and RFC 3030: one reply for a chunk, one per recipient for the last."""
    with service.client() as client:
        client.ask("LHLO c")
        client.ask("MAIL FROM:<a@example.com>")
        client.ask("RCPT TO:<bob@example.test>")
        client.ask("RCPT TO:<carol@example.test>")
        assert client.ask("BDAT 2\r\n") == "250 2.0.0 2 octets received"
        client.send("BDAT 3 LAST\r\nx\r\n")
        assert [client.reply(), client.reply()] == ["250 2.0.0 OK queued"] * 2
        assert client.ask("NOOP") == "250 2.0.0 OK"


def test_smtplib_speaks_lmtp_to_us(service):
    """A client that we did not write."""
    with smtplib.LMTP(service.sock.getsockname()) as client:
        client.sendmail("alice@example.com", ["bob@example.test"], b"Subject: x\r\n\r\nx\r\n")
    assert service.policy.delivered[0].data == b"Subject: x\r\n\r\nx\r\n"
