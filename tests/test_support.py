"""The servers that other tests stand on do what they promise."""

from __future__ import annotations

import imaplib
import smtplib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.resolver
import pymysql
import pytest
from support.dns_server import DnsServer, Failure
from support.dovecot import Dovecot
from support.mariadb import Database
from support.sinks import DROP, ScriptedRemote, SmtpSink
from support.tls import TlsFiles
from support.wait import wait_for

MESSAGE = b"From: a@example.test\r\nSubject: hi\r\n\r\n.dot\r\n\xc3\xa9\r\n\r\n"


@pytest.mark.mariadb
def test_each_test_gets_an_empty_database_over_socket_and_tcp(mariadb_database: Database) -> None:
    """Nothing of another test is seen."""
    assert mariadb_database.execute("SHOW TABLES") == []
    mariadb_database.execute("CREATE TABLE t (i INT)")
    connection = pymysql.connect(
        host="127.0.0.1",
        port=mariadb_database.server.port,
        user="pymx",
        password="geheim",
        database=mariadb_database.name,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == (("t",),)


def _ask(server: DnsServer, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
    ask = dns.query.tcp if tcp else dns.query.udp
    return ask(query, "127.0.0.1", port=server.port, timeout=2)


def test_name_server_answers_over_udp_and_tcp(dns_server: DnsServer) -> None:
    """Records, no data, no such name, empty non-terminal, CNAME and wildcard (RFC 1034 s. 4.3.2, RFC 4592)."""
    dns_server.zone(
        "example.com",
        """
        @        MX     10 mx
        mx       A      127.0.0.2
        alias    CNAME  mx
        *.wild   TXT    "yes"
        """,
    )
    for tcp in (False, True):
        assert [r.to_text() for r in _ask(dns_server, "example.com", "MX", tcp=tcp).answer[0]] == ["10 mx.example.com."]
        assert len(_ask(dns_server, "alias.example.com", "A", tcp=tcp).answer) == 2
        assert _ask(dns_server, "x.wild.example.com", "TXT", tcp=tcp).answer
        no_data = _ask(dns_server, "example.com", "AAAA", tcp=tcp)
        assert (no_data.rcode(), no_data.answer, len(no_data.authority)) == (dns.rcode.NOERROR, [], 1)
        assert _ask(dns_server, "wild.example.com", "A", tcp=tcp).rcode() == dns.rcode.NOERROR
        assert _ask(dns_server, "none.example.com", "A", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
    assert dns_server.asked("example.com", "MX") == 2


def test_name_server_fails_on_demand(dns_server: DnsServer) -> None:
    """SERVFAIL, silence, truncation and the AD bit, per name."""
    dns_server.load({name: {"A": "127.0.0.2"} for name in ("fail.test", "slow.test", "big.test", "safe.test")})
    dns_server.fail("fail.test", Failure.SERVFAIL)
    dns_server.fail("slow.test", Failure.TIMEOUT)
    dns_server.fail("big.test", Failure.TRUNCATED)
    dns_server.secure("safe.test")
    assert _ask(dns_server, "fail.test", "A").rcode() == dns.rcode.SERVFAIL
    with pytest.raises(dns.exception.Timeout):
        dns.query.udp(dns.message.make_query("slow.test", "A"), "127.0.0.1", port=dns_server.port, timeout=0.1)
    truncated = _ask(dns_server, "big.test", "A")
    assert truncated.flags & dns.flags.TC
    assert not truncated.answer
    assert _ask(dns_server, "big.test", "A", tcp=True).answer
    assert _ask(dns_server, "safe.test", "A").flags & dns.flags.AD
    dns_server.fail("fail.test", None)
    assert _ask(dns_server, "fail.test", "A").answer


def test_answer_that_does_not_fit_is_truncated(dns_server: DnsServer) -> None:
    """RFC 2181 s. 9: TC over UDP, all of it over TCP."""
    dns_server.add("long.test", "TXT", *(f'"{i:0200}"' for i in range(20)))
    assert _ask(dns_server, "long.test", "TXT").flags & dns.flags.TC
    assert len(_ask(dns_server, "long.test", "TXT", tcp=True).answer[0]) == 20


def test_certificate_is_trusted_by_its_own_client_context(tls_files: TlsFiles) -> None:
    """A real handshake with host name verification."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        client.setblocking(False)
        server.setblocking(False)
        a = tls_files.client_context().wrap_socket(client, server_hostname="localhost", do_handshake_on_connect=False)
        b = tls_files.server_context().wrap_socket(server, server_side=True, do_handshake_on_connect=False)
        with a, b:
            for side in (a, b, a, b, a):
                try:
                    side.do_handshake()
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
            assert a.getpeercert()


def test_smtp_sink_keeps_content_octet_by_octet(smtp_sink: SmtpSink) -> None:
    """What was sent is what is read back, with its envelope."""
    with smtplib.SMTP("127.0.0.1", smtp_sink.port, local_hostname="client.test") as client:
        client.sendmail("a@example.test", ["b@example.org", "c@example.org"], MESSAGE, ["BODY=8BITMIME"])
    message = wait_for(smtp_sink.messages)[0]
    assert (message.helo, message.mail_from) == ("client.test", "a@example.test")
    assert message.rcpt_to == ("b@example.org", "c@example.org")
    assert message.content == MESSAGE


def test_scripted_remote_says_what_the_script_says(
    scripted_remote: Callable[..., ScriptedRemote], tls_files: TlsFiles
) -> None:
    """Replies per command and address, STARTTLS, then everything is accepted."""
    remote = scripted_remote(
        tls=tls_files.server_context(), replies={"RCPT no@example.org": "550 5.1.1 no", ".": ["451 4.3.0 later"]}
    )
    with smtplib.SMTP("localhost", remote.port) as client:
        client.starttls(context=tls_files.client_context())
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("", ["a@example.org"], MESSAGE)
        refused = client.sendmail("", ["no@example.org", "a@example.org"], MESSAGE, ["BODY=8BITMIME"])
    assert list(refused) == ["no@example.org"]
    assert [(m.mail_from, m.rcpt_to, m.content, m.tls) for m in remote.messages] == [
        ("", ("a@example.org",), MESSAGE, True)
    ]
    assert remote.messages[0].mail_options == (f"size={len(MESSAGE)}", "BODY=8BITMIME")


def test_scripted_remote_drops_a_connection(scripted_remote: Callable[..., ScriptedRemote]) -> None:
    """DROP leaves the client without a reply."""
    remote = scripted_remote(replies={".": DROP})
    with pytest.raises(smtplib.SMTPServerDisconnected):
        smtplib.SMTP("127.0.0.1", remote.port).sendmail("a@example.test", "b@example.org", MESSAGE)
    assert remote.messages == []


def test_dovecot_opens_a_maildir_without_a_login(dovecot: Dovecot, tmp_path: Path) -> None:
    """A message put there is read back with its UID, and Dovecot has nothing to complain about."""
    maildir = tmp_path / "mail" / "alice"
    with dovecot.session(maildir) as client:
        assert client.append("INBOX", r"(\Seen)", None, MESSAGE)[0] == "OK"
    assert (maildir / "dovecot-uidlist").read_text().startswith("3 V")
    with dovecot.session(maildir) as client:
        assert client.fetch("1", "(UID BODY.PEEK[])")[1][0][1] == MESSAGE
    assert "messages=1" in dovecot.doveadm(maildir, "mailbox", "status", "messages", "INBOX")
    assert dovecot.errors() == []


def test_dovecot_serves_imap_and_lmtp_on_its_own_ports(dovecot: Dovecot, tmp_path: Path) -> None:
    """A message delivered over LMTP is found over IMAP."""
    ports = dovecot.serve(tmp_path / "vmail")
    with smtplib.LMTP("127.0.0.1", ports.lmtp) as client:
        client.sendmail("a@example.test", ["bob@example.test"], MESSAGE)
    with imaplib.IMAP4("127.0.0.1", ports.imap) as client:
        client.login("bob@example.test", ports.password)
        assert client.select("INBOX")[1] == [b"1"]
    assert dovecot.errors() == []
