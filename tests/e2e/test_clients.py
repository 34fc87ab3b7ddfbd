"""Clients that we did not write, against the whole server: swaks, smtplib, curl, mbsync, mutt, imaplib."""

from __future__ import annotations

import imaplib
import os
import smtplib
import subprocess
import textwrap
from email.message import EmailMessage
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.terminal import run_on_terminal


def run(*command: str, stdin: str = "", timeout_s: float = 60) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def swaks(server: Appliance, port: str, *arguments: str) -> str:
    return run("swaks", "--server", f"127.0.0.1:{server.ports[port]}", "--helo", "client.example", *arguments)


@pytest.mark.parametrize(
    ("port", "tls", "mechanism"),
    [
        ("submissions", "--tls-on-connect", "PLAIN"),
        ("submissions", "--tls-on-connect", "LOGIN"),
        ("submission", "--tls", "PLAIN"),
        ("submission", "--tls", "LOGIN"),
    ],
)
def test_swaks_submits_with_login(server: Appliance, port: str, tls: str, mechanism: str) -> None:
    """RFC 6409, RFC 8314: 465 with implicit TLS, 587 with STARTTLS."""
    subject = f"swaks {port} {mechanism}"
    swaks(
        server, port, tls, "--auth", mechanism, "--auth-user", server.address("alice"), "--auth-password", "secret",
        "--from", server.address("alice"), "--to", server.address("bob"), "--header", f"Subject: {subject}",
    )  # fmt: skip
    server.wait_for_subject("bob", subject)


@pytest.mark.parametrize("tls", [(), ("--tls",)])
def test_swaks_delivers_on_port_25(server: Appliance, tls: tuple[str, ...]) -> None:
    subject = f"from outside {'tls' if tls else 'plain'}"
    swaks(
        server, "smtp", *tls, "--from", "someone@elsewhere.example", "--to", server.address("bob"),
        "--header", f"Subject: {subject}",
    )  # fmt: skip
    server.wait_for_subject("bob", subject)


def test_port_25_refuses_relay_unknown_users_and_offers_no_login(server: Appliance) -> None:
    """RFC 5321 s. 7.1; 550 5.7.1, 550 5.1.1."""
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=20) as client:
        client.ehlo("client.example")
        assert "auth" not in client.esmtp_features
        for feature in (
            "pipelining", "size", "8bitmime", "smtputf8", "enhancedstatuscodes", "dsn", "chunking", "starttls",
        ):  # fmt: skip
            assert feature in client.esmtp_features
        client.mail("someone@elsewhere.example")
        assert client.rcpt("x@other.example") == (550, b"5.7.1 Relaying denied")
        code, text = client.rcpt(server.address("nobody"))
        assert (code, text.split()[0]) == (550, b"5.1.1")


def test_wrong_password_is_refused_and_not_told_apart_from_an_unknown_user(server: Appliance) -> None:
    replies = []
    for user in ("alice", "nobody"):
        with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls, timeout=20) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
                client.login(server.address(user), "wrong")
            replies.append((refused.value.smtp_code, refused.value.smtp_error))
    assert replies[0] == replies[1]
    assert replies[0][0] == 535


def test_submission_refuses_a_sender_that_is_not_the_logins(server: Appliance) -> None:
    """No spoofing between users: envelope and header, 553 5.7.1."""
    message = EmailMessage()
    message["From"] = server.address("bob")
    message["To"] = server.address("carol")
    message["Subject"] = "forged"
    message.set_content("x")
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls, timeout=20) as client:
        client.login(server.address("alice"), "secret")
        with pytest.raises(smtplib.SMTPSenderRefused) as envelope:
            client.send_message(message, from_addr=server.address("bob"))
        with pytest.raises(smtplib.SMTPDataError) as header:
            client.send_message(message, from_addr=server.address("alice"))
    assert envelope.value.smtp_code == header.value.smtp_code == 553


def test_submitted_header_keeps_the_senders_privacy(server: Appliance) -> None:
    """Bcc, the client's Received and X-Originating-IP go; the client's address appears nowhere."""
    text = textwrap.dedent(f"""\
        From: {server.address("alice")}
        To: {server.address("carol")}
        Bcc: secret@hidden.example
        Received: from laptop (10.1.2.3) by x
        X-Originating-IP: [10.1.2.3]
        Subject: private

        body
        """)
    with smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls, timeout=20) as client:
        client.login(server.address("alice"), "secret")
        client.sendmail(server.address("alice"), [server.address("carol")], text)
    server.wait_for_subject("carol", "private")
    with server.imap("carol") as imap:
        imap.select("INBOX", readonly=True)
        _, found = imap.search(None, "SUBJECT", "private")
        _, data = imap.fetch(found[0].split()[-1].decode(), "(BODY.PEEK[HEADER])")
        header = data[0][1].decode()
    for hidden in ("hidden.example", "10.1.2.3", "127.0.0.1", "X-Originating-IP"):
        assert hidden not in header
    for present in ("Date: ", "Message-ID: ", "DKIM-Signature: ", "Received: ", "Return-Path: ", "Delivered-To: "):
        assert present.lower() in header.lower()


def test_curl_lists_and_reads_over_imaps(server: Appliance) -> None:
    server.submit("alice", server.address("erin"), "for curl")
    server.wait_for_subject("erin", "for curl")
    base = f"imaps://localhost:{server.ports['imaps']}/"
    common = (
        "curl",
        "-sS",
        "--cacert",
        str(server.directory / "tls/cert.pem"),
        "-u",
        server.address("erin") + ":secret",
    )
    listing = run(*common, base)
    for folder in ("INBOX", "Drafts", "Sent", "Junk", "Trash", "Archive"):
        assert folder in listing
    found = run(*common, base + 'INBOX?SUBJECT%20"for%20curl"').split()
    number = found[-1]
    assert "Subject: for curl" in run(*common, f"{base}INBOX;MAILINDEX={number}")


def mbsyncrc(server: Appliance, directory: Path, user: str) -> Path:
    config = directory / "mbsyncrc"
    config.write_text(
        textwrap.dedent(f"""\
        IMAPStore remote
        Host localhost
        Port {server.ports["imaps"]}
        User {server.address(user)}
        Pass secret
        SSLType IMAPS
        CertificateFile {server.directory}/tls/cert.pem

        MaildirStore local
        Path {directory}/mail/
        Inbox {directory}/mail/INBOX
        SubFolders Verbatim

        Channel all
        Far :remote:
        Near :local:
        Patterns *
        Create Both
        Expunge Both
        SyncState *
        """)
    )
    (directory / "mail").mkdir()
    return config


def test_mbsync_carries_200_messages_both_ways(server: Appliance, tmp_path: Path) -> None:
    """200 down, flags and new messages up, deletions both ways, and nothing left to do at the end."""
    with server.imap("frank") as imap:
        for i in range(200):
            imap.append("INBOX", "(\\Seen)" if i % 2 else None, None, f"Subject: m{i}\r\n\r\nbody {i}\r\n".encode())
    config = mbsyncrc(server, tmp_path, "frank")
    run("mbsync", "-c", str(config), "all", timeout_s=120)
    local = tmp_path / "mail" / "INBOX"
    files = [*(local / "cur").iterdir(), *(local / "new").iterdir()]
    assert len(files) == 200
    # locally: flag one, delete one, add one
    victim, flagged = sorted(files)[:2]
    victim.unlink()
    name = flagged.name.partition(":")[0] + ":2,F"
    flagged.rename(local / "cur" / name)
    (local / "new" / "1700000000.fresh.host").write_bytes(b"Subject: from the client\n\nx\n")
    run("mbsync", "-c", str(config), "all", timeout_s=120)
    with server.imap("frank") as imap:
        imap.select("INBOX")
        assert len(imap.search(None, "ALL")[1][0].split()) == 200
        assert len(imap.search(None, "FLAGGED")[1][0].split()) == 1
        assert imap.search(None, "SUBJECT", '"from the client"')[1][0]
        imap.store("1:3", "+FLAGS", "(\\Deleted)")
        imap.expunge()
    run("mbsync", "-c", str(config), "all", timeout_s=120)
    assert len([*(local / "cur").iterdir(), *(local / "new").iterdir()]) == 197


def test_mutt_reads_and_saves_in_batch_mode(server: Appliance, tmp_path: Path) -> None:
    """mutt opens INBOX, saves the message to Archive and leaves."""
    server.submit("alice", server.address("grace"), "for mutt")
    server.wait_for_subject("grace", "for mutt")
    config = tmp_path / "muttrc"
    config.write_text(
        textwrap.dedent(f"""\
        set imap_user="{server.address("grace")}"
        set imap_pass="secret"
        set folder="imaps://localhost:{server.ports["imaps"]}/"
        set spoolfile="+INBOX"
        set ssl_starttls=no
        set certificate_file="{server.directory}/tls/cert.pem"
        set header_cache=""
        set confirmappend=no
        set confirmcreate=no
        set delete=yes
        set move=no
        set quit=yes
        set sleep_time=0
        set wait_key=no
        push "<save-message>=Archive<enter><sync-mailbox><quit>"
        """)
    )
    status, screen = run_on_terminal("mutt", "-n", "-F", str(config), env={**os.environ, "TERM": "xterm"})
    assert status == 0, screen
    assert "for mutt" not in server.subjects("grace")
    assert "for mutt" in server.subjects("grace", "Archive")


def test_folders_live_through_imaplib(server: Appliance) -> None:
    """CREATE, APPEND, COPY, RENAME, DELETE, SUBSCRIBE by Python's own client."""
    with server.imap("dave") as imap:
        assert imap.create("Projects.2026")[0] == "OK"
        assert imap.append("Projects.2026", "(\\Flagged kw1)", None, b"Subject: kept\r\n\r\nx\r\n")[0] == "OK"
        assert imap.select("Projects.2026")[0] == "OK"
        assert imap.copy("1", "Archive")[0] == "OK"
        assert imap.unselect()[0] == "OK"
        assert imap.rename("Projects.2026", "Done")[0] == "OK"
        assert imap.subscribe("Done")[0] == "OK"
        assert any(b"Done" in line for line in imap.lsub()[1])
    assert server.subjects("dave", "Done") == ["kept"]
    assert server.subjects("dave", "Archive") == ["kept"]
    with server.imap("dave") as imap:
        assert imap.delete("Done")[0] == "OK"
        assert imap.select("Done")[0] == "NO"
        with pytest.raises(imaplib.IMAP4.error):
            imap.login("x", "y")
