"""Moves into and out of Junk by a mail client teach the server's own filter, when there is no rspamd."""

from __future__ import annotations

import contextlib
import imaplib
import signal
import smtplib
import sqlite3
import time
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import default

import pytest
from junk_letters import letter
from support.appliance import Appliance
from support.wait import wait_for

NEEDED = 6


@pytest.fixture(scope="module")
def server() -> Iterator[Appliance]:
    checks = "spf = false\ndkim = false\ndmarc = false\niprev = false\nhelo = false\n"
    appliance = Appliance(workers=2, extra={"checks": checks, "junk": f"min_learned = {NEEDED}\n"})
    with appliance.serving(("alice", "bob", "carol")):
        yield appliance


def bring(server: Appliance, message: str, to: str = "alice@example.test") -> None:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"]) as client:
        client.sendmail("x@remote.test", [to], message.encode())


def uid_of(client: imaplib.IMAP4_SSL, mailbox: str, message_id: str) -> bytes:
    assert client.select(mailbox)[0] == "OK"
    _, (found,) = client.uid("SEARCH", "HEADER", "Message-ID", f'"{message_id}"')
    return bytes(found)


def field(client: imaplib.IMAP4_SSL, mailbox: str, message_id: str, name: str) -> str:
    uid = uid_of(client, mailbox, message_id)
    _, fetched = client.uid("FETCH", uid, f"(BODY.PEEK[HEADER.FIELDS ({name})])")
    (part,) = [part for part in fetched if isinstance(part, tuple)]
    return str(BytesParser(policy=default).parsebytes(part[1])[name] or "")


def learned(server: Appliance, user: str) -> tuple[int, int]:
    rows = server.ctl_json("junk", "stats", f"{user}@example.test")
    return rows[0]["junk"], rows[0]["wanted"]


def logged(server: Appliance, event: str, user: str) -> int:
    lines = [line for line in server.log().splitlines() if f"event={event} " in line]
    return len([line for line in lines if f"account={user}@example.test" in line])


def test_moves_teach_and_mail_is_filed(server: Appliance) -> None:
    """Silent at first; then what is like junk goes to Junk, and the message and the log say why."""
    with server.imap("alice") as client:
        for number in range(NEEDED):
            bring(server, letter(number, spam=True))
            bring(server, letter(number, spam=False))
        assert client.create("Kept")[0] == "OK"
        for number in range(NEEDED):
            # clients without MOVE copy, mark and expunge
            uid = uid_of(client, "INBOX", f"<spam-{number}@x>")
            assert client.uid("COPY", uid, "Junk")[0] == "OK"
            assert client.uid("STORE", uid, "+FLAGS", r"(\Deleted)")[0] == "OK"
            assert client.expunge()[0] == "OK"
            uid = uid_of(client, "INBOX", f"<ham-{number}@x>")
            assert client.uid("MOVE", uid, "Kept")[0] == "OK"
        wait_for(lambda: learned(server, "alice") == (NEEDED, NEEDED), timeout_s=20)
        wait_for(lambda: logged(server, "message_learned", "alice") == 2 * NEEDED, timeout_s=20)

        bring(server, letter(30, spam=True))
        bring(server, letter(30, spam=False))
        assert "sure that it is junk" in field(client, "Junk", "<spam-30@x>", "X-Pymx-Junk")
        assert field(client, "INBOX", "<ham-30@x>", "X-Pymx-Junk") == ""
        assert "sure that it is junk" in field(client, "INBOX", "<ham-30@x>", "X-Pymx-Filter")
        wait_for(lambda: f"mailbox=Junk uid={NEEDED + 1}" in server.log(), timeout_s=20)

        # out of Junk again: the next one like it, from the same sender, stays in INBOX
        uid = uid_of(client, "Junk", "<spam-30@x>")
        assert client.uid("MOVE", uid, "INBOX")[0] == "OK"
        wait_for(lambda: learned(server, "alice") == (NEEDED, NEEDED + 1), timeout_s=20)

        # to Trash and back nothing is learned
        uid = uid_of(client, "Junk", "<spam-1@x>")
        assert client.uid("MOVE", uid, "Trash")[0] == "OK"
        uid = uid_of(client, "Trash", "<spam-1@x>")
        assert client.uid("MOVE", uid, "INBOX")[0] == "OK"
        uid = uid_of(client, "INBOX", "<ham-30@x>")
        assert client.uid("MOVE", uid, "Kept")[0] == "OK"
        wait_for(lambda: learned(server, "alice") == (NEEDED, NEEDED + 2), timeout_s=20)

    # what was learned lies beside the mail, and is nothing that should not be there
    assert (server.directory / "vmail/example.test/alice/pymx.junk").stat().st_mode & 0o077 == 0
    server.ctl("mailbox", "check", "alice@example.test")

    # another account has learned nothing
    bring(server, letter(31, spam=True), "bob@example.test")
    assert letter(31, spam=True).split("Subject: ")[1].split("\r\n")[0] in server.subjects("bob")


def test_what_is_read_and_stays_is_learned_with_the_next_junk(server: Appliance) -> None:
    """In INBOX, read, older than two days: wanted, for who only ever says what he does not want."""
    old = imaplib.Time2Internaldate(time.time() - 7 * 86400)
    with server.imap("bob") as client:
        for number in range(NEEDED):
            message = letter(100 + number, spam=False).encode()
            flags = r"(\Seen)" if number else ""
            assert client.append("INBOX", flags, old, message)[0] == "OK"
        # SAVEDATE counts as well: nothing of it has lain there for two days
        bring(server, letter(101, spam=True), "bob@example.test")
        uid = uid_of(client, "INBOX", "<spam-101@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        wait_for(lambda: learned(server, "bob") == (1, 0), timeout_s=20)

        with contextlib.closing(sqlite3.connect(server.directory / "vmail/example.test/bob/pymx.index")) as index:
            index.execute("UPDATE message SET savedate = savedate - 3 * 86400")
            index.commit()
        bring(server, letter(102, spam=True), "bob@example.test")
        uid = uid_of(client, "INBOX", "<spam-102@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        wait_for(lambda: learned(server, "bob") == (2, NEEDED - 1), timeout_s=20)


def test_an_adopted_mailbox_is_trained_by_the_administrator(server: Appliance) -> None:
    """`pymxctl junk train`: Junk as junk, INBOX as far as it was read, or the folders that are named."""
    with server.imap("carol") as client:
        assert client.create("Lists")[0] == "OK"
        for number in range(NEEDED):
            client.append("Junk", "", None, letter(200 + number, spam=True).encode())
            client.append("INBOX", r"(\Seen)" if number % 2 else "", None, letter(200 + number, spam=False).encode())
            client.append("Lists", "", None, letter(300 + number, spam=False).encode())
    said = server.ctl("junk", "train", "carol@example.test").stdout
    assert learned(server, "carol") == (NEEDED, NEEDED // 2)
    assert f"the filter begins to work at {NEEDED} of each" in said
    done = server.ctl_json("junk", "train", "carol@example.test", "INBOX", "Lists")
    assert done["learned"] == {"Junk": 0, "INBOX": 0, "Lists": NEEDED}
    bring(server, letter(250, spam=True), "carol@example.test")
    assert len(server.subjects("carol", "Junk")) == NEEDED + 1

    assert server.ctl("junk", "train", "carol@example.test", "Nowhere", check=False).returncode == 1
    assert server.ctl("junk", "train", "carol@example.test", "Junk", check=False).returncode == 2
    server.ctl("junk", "reset", "carol@example.test")
    assert learned(server, "carol") == (0, 0)
    bring(server, letter(251, spam=True), "carol@example.test")
    assert len(server.subjects("carol", "Junk")) == NEEDED + 1


def test_those_written_to_are_noted(server: Appliance) -> None:
    """Recipients of the account's submissions are senders it knows."""
    with server.imap("alice"):
        pass  # the account's directory is made
    before = server.ctl_json("junk", "stats", "alice@example.test")[0]["senders"]
    server.submit("alice", "bob@example.test", "hello")
    wait_for(lambda: server.ctl_json("junk", "stats", "alice@example.test")[0]["senders"] == before + 1, timeout_s=20)


def test_a_reload_says_what_takes_a_restart(server: Appliance) -> None:
    """Who filters and who learns is settled at the start."""
    assert server.process is not None
    server.extra["rspamd"] = 'url = "http://127.0.0.1:1"\ncontroller_url = "http://127.0.0.1:1"\ntimeout_s = 1\n'
    server.write_config()
    server.process.send_signal(signal.SIGHUP)
    # by both workers and the runner: two signals to a process that are one to it would be reported once
    wait_for(lambda: server.log().count("event=configuration_reloaded") >= 3, what="three reloads")
    assert "rspamd.controller_url" in server.log()
    assert "rspamd.url" in server.log()
    del server.extra["rspamd"]
    server.write_config()
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.log().count("event=configuration_reloaded") >= 6, what="three more")
