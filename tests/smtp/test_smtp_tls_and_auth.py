"""STARTTLS, implicit TLS and AUTH on both event loops (RFC 3207, 8314, 4954)."""

from __future__ import annotations

import base64
import ssl

import pytest
from support.wait import wait_for

from pymx.config.model import Smtp, Tls
from pymx.mail.envelope import Listener
from pymx.net.tls import Certificates


@pytest.fixture
def context(tls_files) -> ssl.SSLContext:
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))
    return Certificates(tls).context()


@pytest.fixture
def submission(smtp_service, context, loop_name):
    """A submission service: `submission(implicit)`."""

    def start(*, implicit: bool = False, **options: object):
        return smtp_service(
            loop=loop_name, listener=Listener.SUBMISSION, tls=context, implicit_tls=implicit, auth=True, **options
        )

    return start


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


PLAIN = encode("\0alice@example.test\0geheim")


def deliver(client) -> None:
    assert client.ask("MAIL FROM:<alice@example.test>").startswith("250 ")
    assert client.ask("RCPT TO:<bob@example.test>").startswith("250 ")
    assert client.ask("DATA").startswith("354 ")
    assert client.ask("Subject: x\r\n\r\nx\r\n.") == "250 2.0.0 OK queued"


def test_starttls_then_login(submission, tls_files):
    """EHLO offers STARTTLS before and AUTH after it; what was said before is forgotten."""
    service = submission()
    with service.client() as client:
        before = client.ask("EHLO client.example")
        assert "250 STARTTLS" in before
        assert "AUTH" not in before
        assert client.ask("AUTH PLAIN " + PLAIN).startswith("538 5.7.11 ")
        assert client.ask("MAIL FROM:<alice@example.test>") == "530 5.7.0 Must issue a STARTTLS command first"
        assert client.ask("STARTTLS now").startswith("501 ")
        assert client.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        client.start_tls(tls_files.client_context())
        assert client.ask("AUTH PLAIN " + PLAIN) == "503 5.5.1 Say EHLO first"
        after = client.ask("EHLO client.example")
        assert "STARTTLS" not in after
        assert "250 AUTH PLAIN LOGIN" in after
        assert client.ask("STARTTLS").startswith("503 ")
        assert client.ask("AUTH PLAIN " + PLAIN) == "235 2.7.0 Authentication succeeded"
        assert client.ask("AUTH PLAIN " + PLAIN).startswith("503 ")
        deliver(client)
        client.ask("QUIT")
        assert client.line() == ""
    facts, counts = wait_for(lambda: service.policy.closed_sessions)[0]
    assert facts.account == "alice@example.test"
    assert facts.tls.startswith("TLSv1.3 TLS_")
    assert facts.origin().protocol == "ESMTPSA"
    assert counts["messages"] == 1
    assert service.policy.logins == [("alice@example.test", "geheim")]


def test_implicit_tls_knows_that_it_is_in_tls(submission, tls_files):
    """RFC 8314 s. 3.3: no STARTTLS, AUTH at once."""
    service = submission(implicit=True)
    with service.client(tls=tls_files.client_context()) as client:
        offered = client.ask("EHLO client.example")
        assert "STARTTLS" not in offered
        assert "AUTH PLAIN LOGIN" in offered
        assert client.ask("STARTTLS").startswith("503 ")
        assert client.ask("AUTH PLAIN " + PLAIN).startswith("235 ")
        deliver(client)
    assert service.live[0].facts.tls.startswith("TLSv1.3 ")


def test_plain_text_behind_starttls_is_dropped(submission, tls_files):
    """RFC 3207 s. 4.2, CVE-2011-0411: injected commands are not run inside TLS."""
    service = submission()
    with service.client() as client:
        client.ask("EHLO client.example")
        client.send("STARTTLS\r\nEHLO injected.example\r\nNOOP injected\r\n")
        assert client.reply() == "220 2.0.0 Ready to start TLS"
        client.start_tls(tls_files.client_context())
        assert client.ask("RCPT TO:<bob@example.test>") == "503 5.5.1 RCPT before MAIL"
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)  # no reply to what was injected
    assert service.live[0].facts.helo == ""


def test_talk_right_behind_the_handshake_is_not_lost(submission, tls_files):
    """Decrypted octets may come before the upgrade has returned: they count, and the replies go out encrypted."""
    service = submission()
    for _ in range(20):
        with service.client() as client:
            client.ask("EHLO client.example")
            assert client.ask("STARTTLS").startswith("220 ")
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = tls_files.client_context().wrap_bio(incoming, outgoing, server_hostname="mx.example.test")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            client.sock.sendall(outgoing.read())
            while True:
                incoming.write(client.sock.recv(65536))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    continue
            tls.write(b"EHLO client.example\r\nNOOP\r\nQUIT\r\n")
            client.sock.sendall(outgoing.read())  # Finished and the commands in one packet
            text = b""
            while b"221 " not in text:
                incoming.write(client.sock.recv(65536))
                try:
                    text += tls.read(65536)
                except ssl.SSLWantReadError:
                    continue
            assert text.startswith(b"250-mx.example.test\r\n")
            assert text.endswith(b"250 2.0.0 OK\r\n221 2.0.0 Bye\r\n")


def test_failed_handshake_ends_the_session(submission):
    """Garbage instead of a ClientHello."""
    service = submission()
    with service.client() as client:
        client.ask("EHLO client.example")
        assert client.ask("STARTTLS").startswith("220 ")
        client.send(b"EHLO this is not TLS\r\n" * 5)
        while True:
            try:
                if not client.sock.recv(1000):
                    break
            except ConnectionResetError:
                break
    (line,) = wait_for(lambda: service.events("smtp_session"))
    assert "TLS handshake failed" in str(line["reason"])
    wait_for(lambda: len(service.sessions) == 0)


def test_hang_up_during_the_handshake_ends_the_session(submission):
    service = submission()
    with service.client() as client:
        client.ask("EHLO client.example")
        assert client.ask("STARTTLS").startswith("220 ")
    wait_for(lambda: service.events("smtp_session"))
    wait_for(lambda: len(service.sessions) == 0)


@pytest.fixture
def client(submission, tls_files):
    """A client in TLS that has said EHLO."""
    service = submission(implicit=True, smtp=Smtp(max_errors=100))
    with service.client(tls=tls_files.client_context()) as client:
        client.ask("EHLO client.example")
        yield client


def test_plain_without_initial_response(client):
    """RFC 4954 s. 4: an empty challenge, "334 " and no text."""
    assert client.ask("auth plain") == "334 "
    assert client.ask(PLAIN) == "235 2.7.0 Authentication succeeded"


def test_login_mechanism(client):
    assert client.ask("AUTH LOGIN") == "334 " + encode("Username:")
    assert client.ask(encode("alice@example.test")) == "334 " + encode("Password:")
    assert client.ask(encode("geheim")) == "235 2.7.0 Authentication succeeded"


def test_login_mechanism_with_user_name_at_once(client):
    assert client.ask("AUTH LOGIN " + encode("alice@example.test")) == "334 " + encode("Password:")
    assert client.ask(encode("geheim")) == "235 2.7.0 Authentication succeeded"


def test_wrong_password(client):
    """535 5.7.8, as often as the limit on errors allows."""
    for _ in range(3):
        assert client.ask("AUTH PLAIN " + encode("\0alice@example.test\0falsch")) == (
            "535 5.7.8 Authentication credentials invalid"
        )
    assert client.ask("MAIL FROM:<alice@example.test>").startswith("530 5.7.0 ")


def test_exchange_can_be_cancelled(client):
    """RFC 4954 s. 4: "*" is 501."""
    assert client.ask("AUTH LOGIN") == "334 " + encode("Username:")
    assert client.ask("*") == "501 5.7.0 Authentication cancelled"
    assert client.ask("AUTH PLAIN " + PLAIN).startswith("235 ")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("AUTH", "504 5.5.4"),
        ("AUTH CRAM-MD5", "504 5.5.4"),
        ("AUTH PLAIN !", "501 5.5.2"),
        ("AUTH PLAIN =", "535 5.7.8"),
        ("AUTH PLAIN abc", "501 5.5.2"),
        ("AUTH PLAIN " + encode("\0bob\0"), "535 5.7.8"),
        ("AUTH PLAIN " + encode("bob\0alice@example.test\0geheim"), "535 5.7.8"),
    ],
)
def test_bad_auth(client, command, code):
    assert client.ask(command)[:9] == code
    assert client.ask("NOOP") == "250 2.0.0 OK"


def test_long_response_is_taken_and_longer_is_refused(client):
    """RFC 4954 s. 4: 12,288 octets."""
    password = "x" * 9100
    assert client.ask("AUTH PLAIN " + encode("\0alice@example.test\0" + password)).startswith("535 5.7.8 ")
    assert client.ask("AUTH PLAIN") == "334 "
    assert client.ask("x" * 13_000) == "500 5.5.6 Authentication exchange line is too long"
    assert client.ask("NOOP") == "250 2.0.0 OK"


def test_no_auth_inside_a_transaction(client):
    """RFC 4954 s. 4."""
    client.ask("AUTH PLAIN " + PLAIN)
    client.ask("MAIL FROM:<alice@example.test>")
    assert client.ask("AUTH PLAIN " + PLAIN).startswith("503 ")


def test_password_is_in_no_log_line(submission, tls_files):
    """Neither the right nor the wrong one."""
    service = submission(implicit=True)
    with service.client(tls=tls_files.client_context()) as client:
        client.ask("EHLO client.example")
        client.ask("AUTH PLAIN " + encode("\0alice@example.test\0falsch"))
        client.ask("AUTH LOGIN")
        client.ask("AUTH PLAIN " + PLAIN)
        client.ask("AUTH PLAIN " + PLAIN)
    text = repr(service.log)
    assert "login_refused" in text
    for secret in ("geheim", "falsch", PLAIN, encode("geheim")):
        assert secret not in text


def test_requiretls_is_offered_inside_tls_only(submission, tls_files):
    """RFC 8689 s. 2: the promise needs TLS on this hop to begin with."""
    service = submission()
    with service.client() as client:
        assert "REQUIRETLS" not in client.ask("EHLO client.example")
        assert client.ask("STARTTLS").startswith("220 ")
        client.start_tls(tls_files.client_context())
        assert "250-REQUIRETLS" in client.ask("EHLO client.example")
        assert client.ask("AUTH PLAIN " + PLAIN).startswith("235 ")
        assert client.ask("MAIL FROM:<alice@example.test> REQUIRETLS").startswith("250 ")


def test_requiretls_in_plain_text_is_an_unknown_parameter(smtp_service, loop_name, context):
    """It was not offered."""
    with smtp_service(loop=loop_name, tls=context).client() as client:
        client.ask("EHLO client.example")
        assert client.ask("MAIL FROM:<a@far.test> REQUIRETLS").startswith("555 ")
