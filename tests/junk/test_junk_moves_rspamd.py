"""Moves into and out of Junk by a mail client teach a real rspamd, and change what it says."""

from __future__ import annotations

import imaplib
import itertools
import shutil
import smtplib
import urllib.request
from collections.abc import Iterator

import pytest
from junk_letters import letter
from support.appliance import Appliance
from support.rspamd import CONTROLLER_PASSWORD, RealRspamd
from support.wait import wait_for


@pytest.fixture(scope="module")
def rspamd() -> Iterator[RealRspamd]:
    for program in ("rspamd", "redis-server"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    server = RealRspamd(learning=True)
    yield server
    server.stop()


@pytest.fixture(scope="module", params=[1, 2])
def server(request: pytest.FixtureRequest, rspamd: RealRspamd) -> Iterator[Appliance]:
    """In one process, and in several: the one whose session moved the message teaches."""
    password = rspamd.directory / "password"
    password.write_text(CONTROLLER_PASSWORD + "\n")
    settings = f'url = "{rspamd.url}"\ncontroller_url = "{rspamd.controller_url}"\ntimeout_s = 2\n'
    settings += f'password_file = "{password}"\n'
    checks = "spf = false\ndkim = false\ndmarc = false\niprev = false\nhelo = false\n"
    appliance = Appliance(workers=request.param, extra={"rspamd": settings, "checks": checks})
    with appliance.serving(("alice",)):
        yield appliance


def bring(server: Appliance, message: str) -> None:
    """By LMTP, so that it comes to INBOX whatever rspamd thinks of it by now."""
    with smtplib.LMTP("127.0.0.1", server.ports["lmtp"]) as client:
        client.sendmail("x@remote.test", ["alice@example.test"], message.encode())


def uid_of(client: imaplib.IMAP4_SSL, mailbox: str, message_id: str) -> bytes:
    assert client.select(mailbox)[0] == "OK"
    _, (found,) = client.uid("SEARCH", "HEADER", "Message-ID", f'"{message_id}"')
    assert len(found.split()) == 1
    return bytes(found)


def symbols(rspamd: RealRspamd, message: str) -> str:
    with urllib.request.urlopen(f"{rspamd.url}/checkv2", data=message.encode(), timeout=10) as response:
        return str(response.read())


def lessons(server: Appliance) -> list[str]:
    return [line for line in server.log().splitlines() if "event=message_learned" in line]


def test_moves_teach_rspamd_and_what_it_says_changes(server: Appliance, rspamd: RealRspamd) -> None:
    """MOVE into Junk is spam, COPY and EXPUNGE out of it is ham, moves to and from Trash are nothing."""
    number = 1 if "workers = 1" in server.config.read_text() else 2
    text = letter(number, spam=True)
    before = len(lessons(server))

    def learned(count: int) -> list[str]:
        wait_for(lambda: len(lessons(server)) == before + count, timeout_s=20)
        return lessons(server)[before:]

    bring(server, text)
    with server.imap("alice") as client:
        uid = uid_of(client, "INBOX", f"<spam-{number}@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        (line,) = learned(1)
        assert "verdict=spam" in line
        assert "account=alice@example.test" in line

        other = letter(number, spam=False)
        bring(server, other)
        uid = uid_of(client, "INBOX", f"<ham-{number}@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        learned(2)
        uid = uid_of(client, "Junk", f"<ham-{number}@x>")
        assert client.uid("COPY", uid, "INBOX")[0] == "OK"
        assert client.uid("STORE", uid, "+FLAGS", r"(\Deleted)")[0] == "OK"
        assert client.expunge()[0] == "OK"
        assert "verdict=ham" in learned(3)[2]

        assert "BAYES_SPAM" in symbols(rspamd, letter(number, spam=True))
        assert "BAYES_HAM" in symbols(rspamd, letter(number, spam=False))

        uid = uid_of(client, "Junk", f"<spam-{number}@x>")
        assert client.uid("MOVE", uid, "Trash")[0] == "OK"
        uid = uid_of(client, "Trash", f"<spam-{number}@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        # lessons are learned in order: when this one is, nothing came of those moves before it
        uid = uid_of(client, "INBOX", f"<ham-{number}@x>")
        assert client.uid("MOVE", uid, "Junk")[0] == "OK"
        learned(4)
        uid = uid_of(client, "Junk", f"<ham-{number}@x>")
        assert client.uid("MOVE", uid, "INBOX")[0] == "OK"
        learned(5)
    assert [line.count("verdict=spam") for line in learned(5)] == [1, 1, 0, 1, 0]
    assert "learning_failed" not in server.log()


def test_what_rspamd_has_learned_already_is_no_error(server: Appliance) -> None:
    """By way of Trash, which teaches nothing, the same message comes into Junk again: 208."""
    number = 41 if "workers = 1" in server.config.read_text() else 42
    before = expected = len(lessons(server))
    bring(server, letter(number, spam=True))
    with server.imap("alice") as client:
        way = ["INBOX", "Junk", "Trash", "INBOX", "Junk"]
        for source, target in itertools.pairwise(way):
            uid = uid_of(client, source, f"<spam-{number}@x>")
            assert client.uid("MOVE", uid, target)[0] == "OK"
            if (source, target) == ("INBOX", "Junk"):
                expected += 1
                wait_for(lambda n=expected: len(lessons(server)) == n, timeout_s=20)  # type: ignore[misc]
    first, second = lessons(server)[before:]
    assert "was known" not in first
    assert 'reason="was known"' in second
    assert "event=learning_failed" not in server.log()
    assert "event=lesson_refused" not in server.log()
