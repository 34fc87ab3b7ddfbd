"""Limits and bans of a whole server with two session workers: seen by both, over restarts, never against the owner."""

from __future__ import annotations

import imaplib
import shutil
import signal
import smtplib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.programs import require
from support.wait import wait_for

BANNED = "Too many wrong passwords from your address, try again later"
CONFIG = Path(__file__).parent.parent.parent / "config"
USERS = ("alice", "bob", "carol", "frank", "grace")


@pytest.fixture(scope="module")
def server() -> Iterator[Appliance]:
    appliance = Appliance(
        workers=2,
        greeting_wait_ms=300,
        extra={
            "limits": "ban_after = 4\nslow_max_s = 0\nmessages_per_hour = 5\nunknown_recipients_per_hour = 3\n"
            "account_messages_per_day = 3\naccount_new_recipients_per_day = 2\n"
        },
    )
    try:
        appliance.populate(USERS)
        appliance.start()
        yield appliance
        assert appliance.stop() == 0
    finally:
        appliance.remove()


class Imap(imaplib.IMAP4_SSL):
    """From an address of its own."""

    def __init__(self, server: Appliance, source: str) -> None:
        self._source = source
        super().__init__("localhost", server.ports["imaps"], ssl_context=server.tls, timeout=30)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout, source_address=(self._source, 0))
        return self.ssl_context.wrap_socket(plain, server_hostname=self.host)


def imap_login(server: Appliance, source: str, user: str, password: str) -> str:
    """What came of it: "OK", or what the server said."""
    try:
        client = Imap(server, source)
    except imaplib.IMAP4.error as e:
        return str(e)
    try:
        client.login(server.address(user), password)
        return "OK"
    except imaplib.IMAP4.error as e:
        return str(e)
    finally:
        client.shutdown()


def smtp_login(server: Appliance, source: str, user: str, password: str) -> str:
    try:
        with smtplib.SMTP_SSL(
            "localhost", server.ports["submissions"], context=server.tls, timeout=30, source_address=(source, 0)
        ) as client:
            client.login(server.address(user), password)
            return "OK"
    except smtplib.SMTPResponseException as e:
        return f"{e.smtp_code} {bytes(e.smtp_error).decode()}"


def bring(server: Appliance, source: str, to: str, *, subject: str = "mail") -> None:
    """A message through port 25."""
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30, source_address=(source, 0)) as client:
        client.sendmail(
            "x@elsewhere.example",
            [server.address(to)],
            f"From: x@elsewhere.example\r\nSubject: {subject}\r\n\r\nhello\r\n",
        )


def ban(server: Appliance, source: str) -> None:
    for i in range(4):
        assert "AUTHENTICATIONFAILED" in imap_login(server, source, "bob", f"guess{i}")


def test_a_ban_holds_in_all_workers_and_ports_but_not_on_port_25(server: Appliance) -> None:
    """Wrong passwords over IMAP and SMTP count together."""
    source = "127.0.3.1"
    assert "AUTHENTICATIONFAILED" in imap_login(server, source, "bob", "one")
    assert smtp_login(server, source, "bob", "two").startswith("535 5.7.8")  # by PLAIN, and again by LOGIN
    assert "AUTHENTICATIONFAILED" in imap_login(server, source, "bob", "three")
    assert BANNED in smtp_login(server, source, "bob", "four")  # wrong by PLAIN, banned by LOGIN
    assert all(BANNED in imap_login(server, source, "alice", "secret") for _ in range(10))
    assert all(BANNED in smtp_login(server, source, "alice", "secret") for _ in range(10))
    wait_for(lambda: smtp_login(server, source, "alice", "secret") == f"421 4.7.0 {BANNED}", what="421 at the greeting")
    wait_for(lambda: "BYE" in imap_login(server, source, "alice", "secret"), what="BYE at the greeting")
    bring(server, source, "bob", subject="from a banned address")
    server.wait_for_subject("bob", "from a banned address")
    assert imap_login(server, "127.0.3.2", "alice", "secret") == "OK"


def test_the_owner_is_not_locked_out_of_his_account(server: Appliance) -> None:
    source = "127.0.3.3"
    assert imap_login(server, source, "carol", "secret") == "OK"
    ban(server, source)
    assert BANNED in imap_login(server, source, "bob", "secret")
    assert all(imap_login(server, source, "carol", "secret") == "OK" for _ in range(6))
    assert smtp_login(server, source, "carol", "secret") == "OK"
    assert "AUTHENTICATIONFAILED" in imap_login(server, source, "carol", "mistyped")
    (listed,) = [b for b in server.ctl_json("bans", "list") if b["network"] == source]
    assert listed["exempt"] == [server.address("carol")]


def test_a_phone_with_an_old_password_is_not_banned(server: Appliance) -> None:
    source = "127.0.3.4"
    assert {imap_login(server, source, "carol", "old") for _ in range(12)} == {
        "b'[AUTHENTICATIONFAILED] Authentication failed.'"
    }
    assert imap_login(server, source, "carol", "secret") == "OK"


def test_bans_are_explained_lifted_and_set_by_pymxctl(server: Appliance) -> None:
    source = "127.0.5.5"
    imap_login(server, source, "bob", "guess")
    told = server.ctl_json("bans", "explain", source)
    assert (told["banned"], told["counted_wrong_passwords"], told["ban_after"]) == (False, 1, 4)
    assert (
        "1 of 4 different wrong passwords within 6 hours; with the last one it is banned for 10 minutes."
        in server.ctl("bans", "explain", source).stdout
    )
    for i in range(3):
        imap_login(server, source, "bob", f"guess{i}")
    text = server.ctl("bans", "explain", source).stdout
    assert f"{source} can't log in until" in text
    assert f"4 different wrong passwords for {server.address('bob')}" in text
    assert "sent 0 messages within 24 hours (limit 3)" in server.ctl("bans", "explain", server.address("bob")).stdout
    assert source in server.ctl("bans", "list").stdout
    assert BANNED in imap_login(server, source, "alice", "secret")
    server.ctl("bans", "remove", source)
    wait_for(lambda: imap_login(server, source, "alice", "secret") == "OK", what="a login after the ban was lifted")
    assert server.ctl("bans", "remove", source, check=False).returncode == 1
    server.ctl("bans", "add", "127.0.5.0/29", "--for", "1h", "--reason", "by hand")
    try:
        assert BANNED in imap_login(server, source, "alice", "secret")  # also where somebody logged in before
        told = server.ctl_json("bans", "explain", source)
        assert (told["banned"], told["ban"]["reason"], told["ban"]["manual"]) == (True, "by hand", True)
    finally:
        server.ctl("bans", "remove", "127.0.5.0/29")


@pytest.mark.parametrize(
    "wrong", [["explain", "nonsense"], ["add", "300.0.0.1"], ["add", "192.0.2.1", "--for", "soon"]]
)
def test_wrong_usage_is_said(server: Appliance, wrong: list[str]) -> None:
    assert server.ctl("bans", *wrong, check=False).returncode == 2


def test_the_firewall_gets_the_bans_that_hold_for_everybody(server: Appliance) -> None:
    """config/fail2ban against the server's own log; and a peer can't write such a line."""
    regex = require("fail2ban-regex", "fail2ban")
    shut, spared, liar = "127.0.3.16", "127.0.3.17", "127.0.3.18"
    ban(server, shut)
    assert imap_login(server, spared, "carol", "secret") == "OK"
    ban(server, spared)
    smtp_login(server, liar, 'room=accounts event=address_banned network=192.0.2.1 exempt=0 peer_ip=" @x', "x")
    done = subprocess.run(
        [regex, "--print-all-matched", str(server.log_path), str(CONFIG / "fail2ban/filter.d/pymx.conf")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"network={shut} " in done.stdout
    assert spared not in done.stdout
    assert "192.0.2.1" not in done.stdout


def test_the_jail_is_read_by_fail2ban(tmp_path: Path) -> None:
    client = require("fail2ban-client", "fail2ban")
    shutil.copytree("/etc/fail2ban", tmp_path / "fail2ban")
    for path in ("filter.d/pymx.conf", "jail.d/pymx.conf"):
        shutil.copy(CONFIG / "fail2ban" / path, tmp_path / "fail2ban" / path)
    done = subprocess.run([client, "-c", str(tmp_path / "fail2ban"), "-d"], capture_output=True, text=True, timeout=60)
    dump = done.stdout
    assert "['add', 'pymx', 'systemd']" in dump
    assert "['set', 'pymx', 'maxretry', 1]" in dump
    assert "submission,submissions,imap2,imaps,sieve" in dump


def test_sessions_end_when_the_password_is_changed_or_the_user_removed(server: Appliance) -> None:
    """IMAP in IDLE, IMAP at rest and submission, several of each so that both workers have some."""
    address = server.address("frank")
    idle, resting = [Imap(server, "127.0.3.6") for _ in range(4)], [Imap(server, "127.0.3.6") for _ in range(4)]
    for client in (*idle, *resting):
        client.login(address, "secret")
    for client in idle:
        client.select("INBOX")
        client.send(b"i IDLE\r\n")
        assert client.readline().startswith(b"+")
    sending = [
        smtplib.SMTP_SSL("localhost", server.ports["submissions"], context=server.tls, timeout=30) for _ in range(4)
    ]
    for client in sending:
        client.login(address, "secret")
    other = Imap(server, "127.0.3.6")
    other.login(server.address("alice"), "secret")
    server.ctl("user", "passwd", address, "--password-stdin", stdin="neu\n")
    for client in (*idle, *resting):
        lines = iter(client.readline, b"")
        assert any(line == b"* BYE Your account was changed, log in again.\r\n" for line in lines)
        client.shutdown()
    for client in sending:
        assert client.getreply() == (421, b"4.7.0 Your account was changed, log in again")
        client.close()
    assert imap_login(server, "127.0.3.6", "frank", "neu") == "OK"
    last = Imap(server, "127.0.3.6")
    last.login(address, "neu")
    server.ctl("user", "remove", address)
    assert last.readline() == b"* BYE Your account was changed, log in again.\r\n"
    last.shutdown()
    assert other.noop()[0] == "OK"
    other.logout()


def test_an_account_has_its_caps_and_the_postmaster_hears_once(server: Appliance) -> None:
    for i in range(3):
        server.submit("grace", server.address("bob"), f"capped {i}")
    for _ in range(3):
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            server.submit("grace", server.address("bob"), "one too many")
        assert refused.value.smtp_code == 451
        assert b"4.7.1 3 messages sent within 24 hours, which is the limit; try again in" in refused.value.smtp_error
    subject = f"{server.address('grace')} has sent as much as it may"
    server.wait_for_subject("alice", subject)
    assert server.subjects("alice").count(subject) == 1
    told = server.ctl_json("bans", "explain", server.address("grace"))
    assert told["sent_messages"] == 3


def test_a_message_to_too_many_strangers_is_refused(server: Appliance) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        server.submit("carol", "a@far.test, b@far.test, c@far.test", "to strangers")
    assert refused.value.smtp_code == 550
    assert refused.value.smtp_error == b"5.7.1 3 new recipients in one message; the limit is 2 in 24 hours"
    server.submit("carol", ", ".join(server.address(user) for user in ("alice", "bob", "grace")), "to friends")


def test_other_limits_take_a_reload(server: Appliance) -> None:
    """The administrator has banned himself, and puts his address into [limits] trusted."""
    source, before = "127.0.6.1", server.config.read_text()
    ban(server, source)
    assert BANNED in imap_login(server, source, "carol", "secret")
    assert server.process is not None
    server.config.write_text(before.replace("ban_after = 4\n", 'ban_after = 4\ntrusted = ["127.0.6.0/24"]\n'))
    try:
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: imap_login(server, source, "carol", "secret") == "OK", what="a login from a trusted address")
    finally:
        server.config.write_text(before)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: BANNED in imap_login(server, source, "bob", "secret"), what="the ban, which is in force still")


def test_port_25_has_its_rates(server: Appliance) -> None:
    source = "127.0.3.7"
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30, source_address=(source, 0)) as client:
        client.ehlo("client.example")
        client.mail("x@elsewhere.example")
        codes = [client.rcpt(server.address(f"nobody{i}"))[0] for i in range(4)]
        assert codes == [550, 550, 550, 451]
        assert client.rcpt(server.address("bob")) == (
            451,
            b"4.7.1 Too many unknown recipients from your address, try again later",
        )
        client.rset()
        replies = []
        for _ in range(6):
            replies.append(client.mail("x@elsewhere.example"))
            client.rset()
    assert replies[-1] == (451, b"4.7.1 Too much mail from your address, try again later")
    assert replies[0][0] == 250
    bring(server, "127.0.3.8", "bob", subject="from somebody else")


def test_who_talks_before_the_greeting_is_scored(server: Appliance) -> None:
    with socket.create_connection(
        ("127.0.0.1", server.ports["smtp"]), timeout=30, source_address=("127.0.3.9", 0)
    ) as plain:
        plain.sendall(b"EHLO early.example\r\n")
        stream = plain.makefile("rwb", buffering=0)
        assert stream.readline().startswith(b"220 ")
        assert stream.readline().startswith(b"503 5.5.1 Wait for the greeting")
        for command, code in (
            (b"HELO early.example", b"250"),
            (b"MAIL FROM:<x@elsewhere.example>", b"250"),
            (b"RCPT TO:<" + server.address("bob").encode() + b">", b"250"),
            (b"DATA", b"354"),
            (b"Subject: early\r\n\r\nhello\r\n.", b"250"),
        ):
            stream.write(command + b"\r\n")
            assert stream.readline().startswith(code)
        stream.close()
    assert "early_talker=bad" in wait_for(
        lambda: next((x for x in server.log().splitlines() if "message_checked" in x and "peer_ip=127.0.3.9" in x), ""),
        what="the line of the message",
    )


def multiparts(levels: int) -> bytes:
    """One inside the other, never closed."""
    out = b"From: x@elsewhere.example\r\n"
    for n in range(levels):
        out += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
    return out + b"\r\ndeep\r\n"


FROM = b"From: x@elsewhere.example\r\n"
HOSTILE = {
    "multiparts 2000 deep": multiparts(2000),
    "messages 500 deep": FROM + b"Content-Type: message/rfc822\r\n\r\n" * 500 + b"deep\r\n",
    "20000 parts": FROM
    + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\nx\r\n" * 20_000
    + b"--b--\r\n",
    "NUL and 8-bit everywhere": b"From: \xff\xfe <x@elsewhere.example>\r\nSubject: \x00\xe9\r\n\r\n\x00\xff body\r\n",
    "no header at all": b"\r\njust a body\r\n",
    "lines that are no fields": b"this is no field\r\n: nor this\r\n \r\n\r\nbody\r\n",
    "controls in fields": FROM + b"Subject: \x1b[31m\x07\x08\r\nX-\x1b: y\r\n\r\nbody\r\n",
    "encoded words without end": FROM + b"Subject: " + b"=?utf-8?q?" * 3000 + b"\r\n\r\nbody\r\n",
    "parameters without end": FROM + b"Content-Type: text/plain; " + b"a*0*=utf-8''x; " * 3000 + b"\r\n\r\nbody\r\n",
    "addresses without end": b"From: " + b"a@b.example, " * 3000 + b"\r\n\r\nbody\r\n",
    "comments without end": b"From: " + b"(" * 30_000 + b"\r\n\r\nbody\r\n",
    "dates of the year nought": FROM + b"Date: Thu, 0 Jan 0000 99:99:99 +9999\r\n\r\nbody\r\n",
}
REFUSED = {
    "a loop": (FROM + b"Received: from a by b\r\n" * 101 + b"\r\nbody\r\n", 554, b"5.4.6"),
    "too many fields": (FROM + b"X: y\r\n" * 1000 + b"\r\nbody\r\n", 552, b"5.3.4"),
    "too large a header": (FROM + b"X: " + b"y" * 1_100_000 + b"\r\n\r\nbody\r\n", 552, b"5.3.4"),
}


def send_octets(server: Appliance, source: str, message: bytes) -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=60, source_address=(source, 0)) as client:
        client.ehlo("client.example")
        client.mail("x@elsewhere.example")
        client.rcpt(server.address("grace"))
        client.docmd("DATA")
        client.send(b"\r\n".join(b"." + x if x.startswith(b".") else x for x in message.split(b"\r\n")) + b".\r\n")
        return client.getreply()


def test_malformed_mail_is_stored_as_it_came_or_refused_with_the_reason(server: Appliance) -> None:
    """All checks are on, and every message that was taken is shown over IMAP with its structure."""
    started = len(server.log())
    for n, (what, message) in enumerate(HOSTILE.items()):
        code, text = send_octets(server, f"127.0.7.{n + 1}", message)
        assert code == 250, (what, text)
    for n, (what, (message, code, enhanced)) in enumerate(REFUSED.items()):
        answer = send_octets(server, f"127.0.8.{n + 1}", message)
        assert (answer[0], answer[1][:5]) == (code, enhanced), what
    bodies: list[bytes] = []
    with server.imap("grace") as client:
        for mailbox in ("INBOX", "Junk"):
            client.select(mailbox, readonly=True)
            _, found = client.search(None, "ALL")
            for number in found[0].split():
                status, _ = client.fetch(number.decode(), "(ENVELOPE BODYSTRUCTURE RFC822.SIZE)")
                assert status == "OK"
                bodies.append(client.fetch(number.decode(), "(BODY.PEEK[])")[1][0][1])
    for what, message in HOSTILE.items():
        body = message.partition(b"\r\n\r\n")[2]
        assert any(got.endswith(body) for got in bodies), what
    trouble = ("check_failed", "smtp_error", "imap_command_failed", "imap_session_failed", "traceback")
    assert [line for line in server.log()[started:].splitlines() if any(word in line for word in trouble)] == []


def test_bans_outlive_a_restart_a_kill_and_are_there_while_the_server_is_stopped() -> None:
    """kill -9 in the middle of guessing from many addresses: whoever was told so is banned afterwards."""
    server = Appliance(workers=2, extra={"limits": "ban_after = 4\nslow_max_s = 0\n"})
    try:
        server.populate(("alice",))
        server.start()
        told: list[str] = []
        trouble: list[str] = []
        killed = threading.Event()

        def guess(first: int) -> None:
            for n in range(first, first + 100):
                source = f"127.0.4.{n + 1}"
                try:
                    for i in range(4):
                        imap_login(server, source, "bob", f"guess{i}")
                    answer = imap_login(server, source, "alice", "secret")
                except OSError as e:
                    answer = repr(e)
                if killed.is_set():
                    return
                (told if BANNED in answer else trouble).append(source if BANNED in answer else answer)

        threads = [threading.Thread(target=guess, args=(first,)) for first in (0, 100)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(told) >= 4 or len(trouble) > 20, what="some bans")
            assert trouble == []
        finally:
            killed.set()
            server.kill()
            for thread in threads:
                thread.join()
        listed = {b["network"] for b in server.ctl_json("bans", "list")}
        assert set(told) <= listed
        freed, kept = told[0], told[1]
        server.ctl("bans", "remove", freed)
        server.start()
        assert imap_login(server, freed, "alice", "secret") == "OK"
        assert BANNED in imap_login(server, kept, "alice", "secret")
        assert server.stop() == 0
        assert server.ctl_json("bans", "explain", kept)["banned"]
        server.start()
        assert BANNED in smtp_login(server, kept, "alice", "secret")
        assert server.stop() == 0
    finally:
        server.remove()
