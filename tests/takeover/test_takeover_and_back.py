"""From Postfix, Dovecot and MariaDB to pymx and back to Dovecot, in place: no client notices either change."""

from __future__ import annotations

import imaplib
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.essay_stack import EssayStack
from support.mariadb import MariaDb
from support.mbsync import Mbsync
from support.ports import free_port
from support.wait import wait_for

from pymx.mailauth.dkim.keys import generate

pytestmark = pytest.mark.mariadb


@pytest.fixture
def stack(mariadb: MariaDb) -> Iterator[EssayStack]:
    with mariadb.database() as database:
        old = EssayStack(database)
        try:
            yield old
        finally:
            old.remove()


def send(port: int, to: list[str], subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.elsewhere.test", timeout=60) as client:
        text = f"From: someone@elsewhere.test\r\nTo: {to[0]}\r\nSubject: {subject}\r\n\r\nhello\r\n"
        client.sendmail("someone@elsewhere.test", to, text)


def imap(stack: EssayStack, port: int, user: str) -> imaplib.IMAP4_SSL:
    context = ssl.create_default_context(cafile=str(stack.top / "tls" / "cert.pem"))
    client = imaplib.IMAP4_SSL("localhost", port, ssl_context=context, timeout=60)
    client.login(f"{user}@example.test", stack.password)
    return client


def count(stack: EssayStack, port: int, user: str) -> int:
    client = imap(stack, port, user)
    try:
        return int(client.select("INBOX", readonly=True)[1][0] or 0)
    finally:
        client.logout()


def test_installation_is_taken_over_used_and_given_back(stack: EssayStack, tmp_path: Path) -> None:
    """Configuration, accounts, hashes, aliases and mail; UIDVALIDITY and UIDs stay, mbsync downloads nothing twice."""
    imaps = stack.ports["IMAPS"]
    stack.start()
    for n in range(5):
        send(stack.ports["SMTP"], ["alice@example.test"], f"old {n}")
    send(stack.ports["SMTP"], ["team@example.test"], "old team")
    wait_for(lambda: count(stack, imaps, "alice") == 6 and count(stack, imaps, "bob") == 1, what="Postfix delivers")
    client = imap(stack, imaps, "alice")
    client.create("Lists/Python")
    client.subscribe("Lists/Python")
    client.select("INBOX")
    client.uid("STORE", "1", "+FLAGS", "(\\Seen $Work)")
    client.uid("STORE", "2", "+FLAGS", "(\\Deleted)")
    client.expunge()
    client.uid("COPY", "3", "Lists/Python")
    client.logout()
    reader = Mbsync("alice@example.test", stack.password, imaps, stack.top / "tls" / "cert.pem", tmp_path / "client")
    reader.pull()
    files = reader.files()
    assert len(files) == 6
    stack.stop()

    # the configuration
    (stack.top / "dkim").mkdir(exist_ok=True)
    generate(tmp_path / "keys", "example.test", "mail")
    key_path = next((tmp_path / "keys").rglob("*.pem"))
    (stack.top / "dkim" / "example.test.mail.key").write_bytes(key_path.read_bytes())
    server = Appliance()  # for its commands and its process; the configuration is the one that adopt writes
    try:
        server.config.unlink()
        adopt = ("adopt", "--from-postfix", f"{stack.top}/postfix", "--from-dovecot", f"{stack.top}/dovecot",
                 "--from-rspamd", f"{stack.top}/rspamd", "--data-dir", f"{server.directory}/data")  # fmt: skip
        looked = server.ctl(*adopt, "--check")
        assert "smtp_header_checks:4" in looked.stdout
        assert not server.config.exists()
        assert "geheim" not in looked.stdout
        # the ports of this machine are not ours: that much is the test's own
        server.ctl(*adopt)
        assert (server.directory / "data/dkim/example.test/mail.pem").read_bytes() == key_path.read_bytes()
        smtp = free_port()
        config = server.config.read_text()
        config = config.replace("127.0.0.1:465", f"127.0.0.1:{free_port()}").replace(
            "127.0.0.1:587", f"127.0.0.1:{free_port()}"
        )
        config = config.replace(f"127.0.0.1:{stack.ports['SMTP']}", f"127.0.0.1:{smtp}")
        assert 'user = "nobody"' in config
        config = "workers = 1\n" + config.replace('user = "nobody"', 'user = "none"')
        config += f'\n[control]\nsocket = "{server.directory}/run/control.sock"\n'
        server.config.write_text(config)
        server.ctl("migrate")
        server.ctl("adopt", "--check", "--dovecot-config", f"{stack.top}/dovecot/dovecot.conf")
        server.ctl("adopt", "--dovecot-config", f"{stack.top}/dovecot/dovecot.conf")

        # used
        server.start()
        reader.pull()
        assert reader.files() == files
        send(smtp, ["team@example.test"], "through pymx")
        wait_for(lambda: count(stack, imaps, "alice") == 6 and count(stack, imaps, "bob") == 2, what="pymx delivers")
        client = imap(stack, imaps, "alice")
        assert b'"/"' in client.list()[1][0]
        assert any(b"Lists/Python" in line for line in client.lsub()[1])
        client.select("INBOX")
        assert client.uid("SEARCH", "KEYWORD", "$Work")[1] == [b"1"]
        client.uid("STORE", "4", "+FLAGS", "(\\Flagged $Later)")
        client.logout()
        reader.pull()
        used = reader.files()
        assert len(used) == 7
        server.stop()

        # and back
        released = server.ctl("release")
        assert "doveadm" in released.stdout
    finally:
        server.remove()
    subprocess.run(["chown", "-R", "nobody", str(stack.top / "vmail")], check=True)  # pymx ran as root here
    stack.start(postfix=False)
    reader.pull()
    assert reader.files() == used
    client = imap(stack, imaps, "alice")
    client.select("INBOX")
    assert client.uid("SEARCH", "KEYWORD", "$Later")[1] == [b"4"]
    client.logout()
    assert count(stack, imaps, "bob") == 2
    stack.stop()
    assert stack.errors() == []
