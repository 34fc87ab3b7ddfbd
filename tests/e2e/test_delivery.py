"""Mail flows: in, out, back as a bounce, through aliases, over LMTP, to a client that waits."""

from __future__ import annotations

import contextlib
import email
import email.policy
import imaplib
import smtplib
import threading
import time
from email.message import EmailMessage

import dkim
import pytest
from support.appliance import Appliance, Site
from support.dns_server import DnsServer
from support.wait import wait_for


def inbound(server: Appliance, to: str, subject: str, **options: str) -> None:
    """One message from outside on port 25."""
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=20) as client:
        client.sendmail(
            options.get("sender", "someone@elsewhere.example"),
            [to],
            f"From: someone@elsewhere.example\r\nTo: {to}\r\nSubject: {subject}\r\n\r\nhello\r\n",
        )


def remote_subjects(server: Site) -> list[str]:
    assert server.remote is not None
    return [str(email.message_from_bytes(m.content)["Subject"]) for m in list(server.remote.messages)]


def test_submission_reaches_the_remote_signed_and_unaltered(server: Site) -> None:
    """MX lookup, delivery, and a DKIM signature that an independent verifier accepts."""
    server.submit("alice", "someone@remote.test", "to the remote", body="line\n.dot at the start\n\n trailing \n")
    wait_for(lambda: "to the remote" in remote_subjects(server), what="the remote has it")
    assert server.remote is not None
    (got,) = [m for m in server.remote.messages if b"to the remote" in m.content]
    assert got.mail_from == server.address("alice")
    assert b"\r\n.dot at the start\r\n" in got.content
    record = server.ctl_json("dkim", "show", server.domain)
    text = next(iter(r["txt"] for r in (record if isinstance(record, list) else record["records"])))
    assert dkim.verify(got.content, dnsfunc=lambda _name, timeout=5: text.encode())


def test_permanent_refusal_comes_back_as_a_dsn(server: Site) -> None:
    """RFC 3464: multipart/report to the sender at once, with the remote's words."""
    server.submit("carol", "unknown@remote.test", "will bounce")

    def bounces() -> list[bytes]:
        with server.imap("carol") as imap:
            imap.select("INBOX", readonly=True)
            _, found = imap.search(None, "BODY", '"unknown@remote.test"', "FROM", '"MAILER-DAEMON"')
            return [imap.fetch(n.decode(), "(BODY.PEEK[])")[1][0][1] for n in found[0].split()]

    (raw, *_) = wait_for(bounces, timeout_s=20, what="a DSN for carol")
    report = email.message_from_bytes(raw, policy=email.policy.default)
    assert report.get_content_type() == "multipart/report"
    assert report["Return-Path"] == "<>"
    parts = [p.get_content_type() for p in report.iter_parts()]
    assert parts[:2] == ["text/plain", "message/delivery-status"]
    status = raw.decode()
    assert "Final-Recipient: rfc822; unknown@remote.test" in status.replace("rfc822;unknown", "rfc822; unknown")
    assert "550 5.1.1 no such user" in status


def test_null_mx_bounces_without_a_connection(server: Site) -> None:
    """RFC 7505: 5.1.10."""
    server.submit("dave", "x@null.test", "to nobody")
    wait_for(
        lambda: any("5.1.10" in body for body in bodies(server, "dave")), timeout_s=20, what="a DSN that says 5.1.10"
    )


def bodies(server: Appliance, user: str, mailbox: str = "INBOX") -> list[str]:
    with server.imap(user) as imap:
        imap.select(mailbox, readonly=True)
        _, found = imap.search(None, "ALL")
        return [imap.fetch(n.decode(), "(BODY.PEEK[])")[1][0][1].decode() for n in found[0].split()]


def test_temporary_refusal_is_tried_again(server: Site) -> None:
    server.submit("alice", "later@remote.test", "second try")
    wait_for(lambda: "second try" in remote_subjects(server), timeout_s=30, what="the second try")


def test_alias_catch_all_detail_and_postmaster_deliver(server: Site) -> None:
    domain = server.domain
    server.ctl("alias", "add", f"team@{domain}", server.address("heidi"), server.address("ivan"))
    server.ctl("alias", "add", f"nested@{domain}", f"team@{domain}")
    inbound(server, f"nested@{domain}", "to the team")
    server.wait_for_subject("heidi", "to the team")
    server.wait_for_subject("ivan", "to the team")
    inbound(server, f"heidi+shop@{domain}", "with detail")
    server.wait_for_subject("heidi", "with detail")
    inbound(server, f"postmaster@{domain}", "to postmaster")
    server.wait_for_subject("alice", "to postmaster")
    server.ctl("alias", "add", f"@{domain}", server.address("judy"))
    inbound(server, f"anything@{domain}", "caught")
    server.wait_for_subject("judy", "caught")
    server.ctl("alias", "remove", f"@{domain}")
    wait_for(lambda: refused(server, f"anything@{domain}"), what="the catch-all is gone")


def refused(server: Appliance, rcpt: str) -> bool:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=20) as client:
        client.ehlo("client.example")
        client.mail("someone@elsewhere.example")
        return client.rcpt(rcpt)[0] == 550


def test_idle_client_hears_of_a_delivery_at_once(server: Site) -> None:
    """RFC 2177; several sessions and deliveries, so with two workers some of them cross processes."""
    deadline_s = 5.0
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4):
            imap = stack.enter_context(server.imap("judy"))
            imap.select("INBOX")
            imap.send(b"x IDLE\r\n")
            assert imap.readline().startswith(b"+")
            clients.append(imap)
        started = time.monotonic()
        inbound(server, server.address("judy"), "push")
        for imap in clients:
            imap.sock.settimeout(deadline_s)
            while not imap.readline().endswith(b"EXISTS\r\n"):
                assert time.monotonic() - started < deadline_s
            imap.send(b"DONE\r\n")
            while not imap.readline().startswith(b"x OK"):
                assert time.monotonic() - started < deadline_s


def test_lmtp_answers_for_each_recipient(server: Site) -> None:
    """RFC 2033 s. 4.2."""
    with smtplib.LMTP("127.0.0.1", server.ports["lmtp"], timeout=20) as client:
        client.ehlo("client.example")
        client.mail("someone@elsewhere.example")
        assert client.rcpt(server.address("bob"))[0] == 250
        assert client.rcpt(server.address("nobody"))[0] == 550
        assert client.rcpt(server.address("carol"))[0] == 250
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(b"Subject: by lmtp\r\n\r\nx\r\n.\r\n")
        assert [client.getreply()[0], client.getreply()[0]] == [250, 250]
    server.wait_for_subject("bob", "by lmtp")
    server.wait_for_subject("carol", "by lmtp")


def test_changed_password_and_removed_user_stop_working_at_once_in_every_process(server: Site) -> None:
    server.add_user(server.address("mallory"), "first")
    for _ in range(4):  # remembered in each worker
        with server.imap("mallory", "first"):
            pass
    server.ctl("user", "passwd", server.address("mallory"), "--password-stdin", stdin="second\n")
    wait_for(lambda: not can_log_in(server, "mallory", "first"), what="the old password is refused")
    for _ in range(6):
        assert not can_log_in(server, "mallory", "first")
        assert can_log_in(server, "mallory", "second")
    server.ctl("user", "remove", server.address("mallory"))
    wait_for(lambda: not can_log_in(server, "mallory", "second"), what="a removed user is refused")
    wait_for(lambda: refused(server, server.address("mallory")), what="its address is unknown")


def can_log_in(server: Appliance, user: str, password: str) -> bool:
    with imaplib.IMAP4_SSL("localhost", server.ports["imaps"], ssl_context=server.tls, timeout=30) as client:
        try:
            client.login(server.address(user), password)
        except imaplib.IMAP4.error as e:
            if "AUTHENTICATIONFAILED" not in str(e):
                raise
            return False
        return True


def test_one_id_is_followed_from_session_to_mailbox(server: Site) -> None:
    """The log names the session and the queue id at acceptance, and the queue id at delivery."""
    inbound(server, server.address("erin"), "traced")
    server.wait_for_subject("erin", "traced")

    def lines() -> list[str]:
        return [line for line in server.log().splitlines() if "event=message_accepted" in line and "erin@" in line]

    line = wait_for(lines)[-1]
    fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
    assert fields["session"]
    delivered = wait_for(
        lambda: [
            x
            for x in server.log().splitlines()
            if "event=message_delivered" in x and f"queue_id={fields['queue_id']}" in x
        ]
    )
    assert "mailbox=INBOX" in delivered[0]


def test_sighup_keeps_serving(server: Site) -> None:
    assert server.process is not None
    before = server.log().count("event=configuration_reloaded")
    server.process.send_signal(1)
    wait_for(lambda: server.log().count("event=configuration_reloaded") > before, what="the reload is logged")
    server.submit("alice", server.address("bob"), "after the reload")
    server.wait_for_subject("bob", "after the reload")


def test_second_pymx_takes_over_over_starttls(server: Site) -> None:
    """Submission here, a second pymx as the remote: STARTTLS on port 25, delivered, read there over IMAP."""
    other = Appliance(hostname="mx.other.test")
    try:
        other.populate(("zoe",))
        other.start()
        dns = DnsServer()
        dns.add("other.test", "MX", "10 mx.other.test")
        dns.add("mx.other.test", "A", "127.0.0.1")
        sender = Appliance(
            hostname="mx.third.test",
            extra={
                "outbound": f"port = {other.ports['smtp']}\nallow_private = true\n",
                "dns": f'nameservers = ["{dns.spec}"]\n',
            },
        )
        try:
            sender.populate(("yan",))
            sender.start()
            sender.submit("yan", "zoe@other.test", "between two")
            other.wait_for_subject("zoe", "between two")
            wait_for(lambda: "event=delivery_attempt" in sender.log() and 'tls="TLSv1.3' in sender.log())
            assert sender.stop() == 0
        finally:
            sender.remove()
            dns.close()
        assert other.stop() == 0
    finally:
        other.remove()


def test_database_outage_defers_unknown_recipients_and_heals(server: Site) -> None:
    """451 4.3.0 for recipients that are not cached; back to normal by itself."""
    mariadb = server.mariadb
    if mariadb is None:
        pytest.skip("only a database server can go away")
    inbound(server, server.address("bob"), "before the outage")
    mariadb.stop()
    try:
        with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=60) as client:
            client.ehlo("client.example")
            client.mail("someone@elsewhere.example")
            code, text = client.rcpt(server.address("never-asked-before"))
        assert (code, text.split()[0]) == (451, b"4.3.0")
    finally:
        mariadb.start()

    up = time.monotonic()

    def healed() -> bool:
        """Every process: one that had no answer asks again after a second, whoever else has one already."""
        return time.monotonic() - up > 1.5 and all(
            refused(server, server.address(f"never-asked-{n}")) for n in range(10)
        )

    wait_for(healed, timeout_s=30, what="550 again")


def test_many_senders_at_once_lose_and_double_nothing(server: Site) -> None:
    """200 messages over 10 connections to two mailboxes."""

    def worker(k: int) -> None:
        with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=60) as client:
            for i in range(20):
                message = EmailMessage()
                message["Subject"] = f"load {k}-{i}"
                message.set_content("x\n" * 100)
                client.send_message(
                    message, "someone@elsewhere.example", [server.address("ivan" if i % 2 else "heidi")]
                )

    threads = [threading.Thread(target=worker, args=(k,)) for k in range(10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    got = [s for user in ("ivan", "heidi") for s in server.subjects(user) if s.startswith("load ")]
    assert sorted(got) == sorted(f"load {k}-{i}" for k in range(10) for i in range(20))
