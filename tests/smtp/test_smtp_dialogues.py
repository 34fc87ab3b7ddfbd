"""Dialogues with the engine, word for word (RFC 5321 s. 3, 4.1 and 4.3)."""

from __future__ import annotations

import pytest
from aiosmtpd.smtp import SMTP
from smtp_service import GREETING, converse

from pymx.config.model import Smtp
from pymx.mail.address import Address
from pymx.mail.envelope import Listener
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError

DIALOGUES = {
    "a message": """
        S: 220 mx.example.test ESMTP pymx
        C: EHLO client.example
        S: 250-mx.example.test
        S: 250-PIPELINING
        S: 250-SIZE 1000000
        S: 250-8BITMIME
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250-DSN
        S: 250 CHUNKING
        C: MAIL FROM:<alice@example.com>
        S: 250 2.1.0 Sender OK
        C: RCPT TO:<bob@example.test>
        S: 250 2.1.5 Recipient OK
        C: DATA
        S: 354 End data with <CR><LF>.<CR><LF>
        C: Subject: x
        C:
        C: hello
        C: .
        S: 250 2.0.0 OK queued
        C: QUIT
        S: 221 2.0.0 Bye
        S: (closed)
        """,
    "commands need no capitals": """
        S: 220 *
        C: helo client.example
        S: 250 mx.example.test
        C: mail from:<alice@example.com>
        S: 250 2.1.0 *
        C: rcpt to:<bob@example.test>
        S: 250 2.1.5 *
        C: rset
        S: 250 2.0.0 OK
        C: quit
        S: 221 2.0.0 *
        """,
    "a space after the colon is forgiven": """
        S: 220 *
        C: HELO client.example
        S: 250 *
        C: MAIL FROM: <alice@example.com>
        S: 250 2.1.0 *
        C: RCPT TO: <bob@example.test>
        S: 250 2.1.5 *
        """,
    "order of commands": """
        S: 220 *
        C: MAIL FROM:<alice@example.com>
        S: 503 5.5.1 Say HELO first
        C: RCPT TO:<bob@example.test>
        S: 503 5.5.1 RCPT before MAIL
        C: DATA
        S: 503 5.5.1 *
        C: HELO client.example
        S: 250 mx.example.test
        C: RCPT TO:<bob@example.test>
        S: 503 5.5.1 RCPT before MAIL
        C: MAIL FROM:<>
        S: 250 2.1.0 *
        C: MAIL FROM:<>
        S: 503 5.5.1 Nested MAIL command
        C: DATA
        S: 554 5.5.1 No valid recipients
        C: EHLO again.example
        S: 250-*
        S: 250-*
        S: 250-*
        S: 250-*
        S: 250-*
        S: 250-*
        S: 250-*
        S: 250 *
        C: RCPT TO:<bob@example.test>
        S: 503 5.5.1 RCPT before MAIL
        """,
    "commands without effect": """
        S: 220 *
        C: NOOP
        S: 250 2.0.0 OK
        C: NOOP with words
        S: 250 2.0.0 OK
        C: VRFY bob
        S: 252 2.5.0 *
        C: VRFY
        S: 501 5.5.4 *
        C: EXPN list
        S: 502 5.5.1 *
        C: HELP
        S: 214 2.0.0 *
        C: ETRN example.com
        S: 502 5.5.1 *
        C: AUTH PLAIN
        S: 502 5.5.1 *
        C: STARTTLS
        S: 502 5.5.1 *
        C: XYZZY
        S: 500 5.5.1 *
        C:
        S: 500 5.5.1 *
        C: LHLO client.example
        S: 500 5.5.1 *
        C: DATA now
        S: 501 5.5.4 *
        """,
    "bad HELO": """
        S: 220 *
        C: HELO
        S: 501 5.5.4 *
        C: EHLO
        S: 501 5.5.4 *
        """,
    "bad arguments": """
        S: 220 *
        C: HELO client.example
        S: 250 *
        C: MAIL
        S: 501 5.5.4 *
        C: MAIL TO:<alice@example.com>
        S: 501 5.5.4 *
        C: MAIL FROM:alice@example.com
        S: 501 5.1.7 *
        C: MAIL FROM:<alice>
        S: 501 5.1.7 *
        C: MAIL FROM:<alice@example.com> FOO=BAR
        S: 555 5.5.4 *
        C: MAIL FROM:<alice@example.com> BODY=BINARYMIME
        S: 501 5.5.4 *
        C: MAIL FROM:<alice@example.com> SIZE=1000001
        S: 552 5.3.4 *
        C: MAIL FROM:<älice@example.com>
        S: 553 5.6.7 *
        C: MAIL FROM:<alice@example.com>
        S: 250 2.1.0 *
        C: RCPT TO:<>
        S: 501 5.1.3 *
        C: RCPT TO:<bob@exa mple.test>
        S: 501 5.1.3 *
        C: RCPT TO:<bøb@example.test>
        S: 553 5.6.7 *
        C: RCPT TO:<bob@example.test> NOTIFY=NEVER,DELAY
        S: 501 5.5.4 *
        C: RCPT TO:<postmaster>
        S: 250 2.1.5 *
        """,
    "a web browser": """
        S: 220 *
        C: GET / HTTP/1.1
        S: 500 5.5.1 *
        S: (closed)
        """,
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue_goes_as_written(smtp_service, name):
    """RFC 5321 s. 4.1.4 (order), 4.2 (codes), RFC 2034 (an enhanced code in every reply that may have one)."""
    service = smtp_service()
    with service.client(greeted=False) as client:
        converse(client, DIALOGUES[name])


def test_session_is_aiosmtpds_smtp(smtp_service):
    """The engine stays a subclass, so tools that look for aiosmtpd's class find it."""
    service = smtp_service()
    with service.client():
        assert isinstance(service.live[0], SMTP)


def test_parameters_reach_the_policy_with_their_case(smtp_service):
    """RFC 3461 s. 4: ENVID and ORCPT are case-sensitive and come in xtext."""
    service = smtp_service()
    with service.client() as client:
        client.ask("EHLO client.example")
        mail = "MAIL FROM:<Älice@example.com> SIZE=12 body=8bitmime SMTPUTF8 RET=hdrs ENVID=QQ+2B314 AUTH=a+3Db"
        assert client.ask(mail).startswith("250 ")
        assert client.ask("RCPT TO:<bøb@example.test> NOTIFY=success,FAILURE ORCPT=rfc822;Bob+2BX@Example.test") == (
            "250 2.1.5 Recipient OK"
        )
        client.ask("DATA")
        assert client.ask("\r\nx\r\n.") == "250 2.0.0 OK queued"
    message = service.policy.delivered[0]
    assert message.mail_from == Address("Älice", "example.com")
    assert message.parameters.size == 12
    assert (message.parameters.body, message.parameters.smtputf8) == ("8BITMIME", True)
    assert (message.parameters.ret, message.parameters.envid) == ("HDRS", "QQ+314")
    assert message.recipients[0].notify == {"SUCCESS", "FAILURE"}
    assert message.recipients[0].orcpt == "rfc822;Bob+X@Example.test"


def test_null_sender_is_none(smtp_service):
    """RFC 5321 s. 4.5.5."""
    service = smtp_service()
    with service.client() as client:
        client.ask("HELO client.example")
        client.ask("MAIL FROM:<>")
        client.ask("RCPT TO:<bob@example.test>")
        client.ask("DATA")
        client.ask("\r\n.")
    assert service.policy.delivered[0].mail_from is None


def test_everything_in_one_packet_is_answered_in_order(smtp_service):
    """RFC 2920: a client that does not wait gets every reply, and the second message is a message of its own."""
    service = smtp_service()
    service.policy.refused_recipients["nobody@example.test"] = SmtpError(reply.UNKNOWN_RECIPIENT)
    one = (
        "MAIL FROM:<a@example.com>\r\nRCPT TO:<nobody@example.test>\r\nRCPT TO:<bob@example.test>\r\n"
        "DATA\r\nSubject: {}\r\n\r\nx\r\n.\r\n"
    )
    with service.client() as client:
        client.send("EHLO client.example\r\n" + one.format("one") + one.format("two") + "QUIT\r\n")
        assert client.reply().startswith("250-mx.example.test")
        codes = [client.reply()[:9] for _ in range(11)]
    message = ["250 2.1.0", "550 5.1.1", "250 2.1.5", "354 End d", "250 2.0.0"]
    assert codes == [*message, *message, "221 2.0.0"]
    assert [m.data for m in service.policy.delivered] == [b"Subject: one\r\n\r\nx\r\n", b"Subject: two\r\n\r\nx\r\n"]


def test_octet_by_octet_gives_the_same(smtp_service):
    """How the stream is cut into packets does not matter."""
    service = smtp_service()
    script = "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\nA: b\r\n\r\n..x\r\n.\r\nQUIT\r\n"
    with service.client() as client:
        for octet in script.encode():
            client.send(bytes([octet]))
        replies = []
        while text := client.reply():
            replies.append(text[:3])
    assert replies == ["250", "250", "250", "354", "250", "221"]
    assert service.policy.delivered[0].data == b"A: b\r\n\r\n.x\r\n"


def test_refusals_are_said_and_logged_with_their_reason(smtp_service):
    """The peer hears the reply, the log also the reason."""
    service = smtp_service()
    service.policy.refused_recipients["nobody@example.test"] = SmtpError(reply.UNKNOWN_RECIPIENT, "not in the table")
    with service.client() as client:
        client.ask("HELO client.example")
        client.ask("MAIL FROM:<a@example.com>")
        assert client.ask("RCPT TO:<nobody@example.test>") == "550 5.1.1 No such user here"
        assert client.ask("DATA") == "554 5.5.1 No valid recipients"
        client.ask("QUIT")
        client.line()
    (refused,) = service.events("rcpt_refused")
    assert (refused["reply"], refused["reason"]) == ("550 5.1.1", "not in the table")
    assert str(refused["rcpt_to"]) == "nobody@example.test"
    (line,) = service.events("smtp_session")
    assert (line["commands"], line["errors"], line["messages"], line["reason"]) == (5, 2, 0, "quit")


def test_unexpected_exception_is_logged_once_and_temporary(smtp_service):
    """A fault of ours is 451 4.3.0, with one traceback; the session goes on."""
    service = smtp_service()
    service.policy.refused_recipients["bob@example.test"] = RuntimeError("broken")
    service.policy.refuse_data = RuntimeError("broken too")
    with service.client() as client:
        client.ask("HELO client.example")
        client.ask("MAIL FROM:<a@example.com>")
        assert client.ask("RCPT TO:<bob@example.test>") == "451 4.3.0 Temporary failure, try again later"
        assert client.ask("RCPT TO:<carol@example.test>").startswith("250 ")
        client.ask("DATA")
        assert client.ask("\r\n.") == "451 4.3.0 Temporary failure, try again later"
        assert client.ask("MAIL FROM:<a@example.com>").startswith("250 ")
    assert [e["traceback"] for e in service.events("smtp_error")] == ["broken", "broken too"]


def test_policy_may_turn_the_peer_away(smtp_service):
    """RFC 5321 s. 3.1: a 554 greeting; we close at once."""
    service = smtp_service()
    service.policy.refuse_connection = SmtpError(reply.REJECTED_BY_POLICY, "listed")
    with service.client(greeted=False) as client:
        assert client.line() == "550 5.7.1 Rejected by policy"
        assert client.line() == ""


def test_error_that_closes_ends_the_session(smtp_service):
    """SmtpError.close."""
    service = smtp_service()
    service.policy.refuse_mail = SmtpError(reply.REJECTED_BY_POLICY, close=True)
    with service.client() as client:
        client.ask("HELO client.example")
        assert client.ask("MAIL FROM:<a@example.com>") == "550 5.7.1 Rejected by policy"
        assert client.line() == ""


def test_submission_needs_a_login(smtp_service):
    """RFC 6409 s. 4.3: 530 5.7.0 without AUTH."""
    service = smtp_service(listener=Listener.SUBMISSION, auth=True)
    with service.client() as client:
        client.ask("EHLO client.example")
        assert client.ask("MAIL FROM:<alice@example.test>") == "530 5.7.0 Authentication required"


@pytest.mark.parametrize("line", [b"NOOP\n", b"NO\rOP\r\n", b"NOOP\r\r\n", b"\n"])
def test_command_line_must_end_in_crlf_and_hold_no_other(smtp_service, line):
    """RFC 5321 s. 2.3.8; the third such line ends the session."""
    service = smtp_service()
    with service.client() as client:
        for _ in range(3):
            client.send(line)
            assert client.reply() == "554 5.5.2 Bare CR or LF is not allowed"
        assert client.line() == ""


def test_nul_and_broken_utf8_in_commands_are_refused(smtp_service):
    """Nothing of the kind may reach a log, a header or another server."""
    service = smtp_service()
    with service.client() as client:
        assert client.ask(b"NOOP \0").startswith("500 5.5.2 ")
        assert client.ask(b"HELO \xff").startswith("500 5.5.2 ")
        assert client.ask("HELO client.example").startswith("250 ")


def test_long_lines(smtp_service):
    """RFC 5321 s. 4.5.3.1: 4,096 octets fit, more are 500 5.5.2, and the session stays in step."""
    service = smtp_service(smtp=Smtp(max_errors=100))
    with service.client() as client:
        assert client.ask("NOOP " + "x" * 4089).startswith("250 ")
        assert client.ask("NOOP " + "x" * 4092).startswith("500 5.5.2 Line too long")
        assert client.ask("NOOP " + "x" * 20_000).startswith("500 5.5.2 Line too long")
        assert client.ask("NOOP " + "x" * 200_000).startswith("500 5.5.2 Line too long")
        assert client.ask("NOOP") == "250 2.0.0 OK"


def test_endless_line_ends_the_session(smtp_service):
    """A line is dropped only for so long."""
    service = smtp_service()
    with service.client() as client:
        try:
            for _ in range(40):
                client.send(b"x" * 65536)
        except OSError:
            pass
        assert client.line() in ("500 5.5.2 Line too long", "")


def test_greeting_names_us(smtp_service):
    """RFC 5321 s. 4.3.1."""
    service = smtp_service()
    with service.client(greeted=False) as client:
        assert client.line() == GREETING
