"""From a message at port 25 to its mailbox and to a remote that first says no: traced, logged, counted."""

from __future__ import annotations

import re
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote
from support.wait import wait_for

PEER = "127.0.0.2"
MESSAGE_ID = "<traced.1@good.test>"


@dataclass
class Traced:
    server: Appliance
    queue_id: str


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    """Two workers and a runner; team@ leads to bob's mailbox and to a remote that greylists. One message has come."""
    dns = DnsServer()
    dns.zone(
        "good.test",
        """
        @       TXT  "v=spf1 ip4:127.0.0.2 -all"
        @       MX   10 mail
        mail    A    127.0.0.2
        _dmarc  TXT  "v=DMARC1; p=reject"
        """,
    )
    dns.add("2.0.0.127.in-addr.arpa", "PTR", "mail.good.test")
    dns.add("remote.test", "MX", "10 mx.remote.test")
    dns.add("mx.remote.test", "A", "127.0.0.1")
    remote = ScriptedRemote(replies={"RCPT ext@remote.test": ["451 4.7.1 Greylisted, try again later"]})
    remote.start()
    server = Appliance(
        workers=2,
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "outbound": f"port = {remote.port}\nallow_private = true\nretry_first = 1\nretry_max_s = 2\n",
        },
    )
    try:
        server.populate(("alice", "bob"))
        server.ctl("alias", "add", "team@example.test", "bob@example.test", "ext@remote.test")
        server.start()
        yield Traced(server, bring(server))
        assert server.stop() == 0
    finally:
        server.remove()
        remote.stop()
        dns.close()


def bring(server: Appliance) -> str:
    """One message in; its queue id as the 250 says it."""
    with smtplib.SMTP(
        "127.0.0.1", server.ports["smtp"], "mail.good.test", source_address=(PEER, 0), timeout=30
    ) as client:
        client.starttls()
        client.ehlo()
        client.mail("ann@good.test")
        assert client.rcpt("nobody@example.test")[0] == 550
        assert client.rcpt("team@example.test")[0] == 250
        text = (
            f"From: ann@good.test\r\nTo: team@example.test\r\nSubject: hi\r\nMessage-ID: {MESSAGE_ID}\r\n\r\nhello\r\n"
        )
        code, said = client.data(text.encode())
    assert code == 250
    queue_id = said.decode().rpartition(" ")[2]
    try:
        wait_for(lambda: "2 delivered" in server.ctl("trace", queue_id, check=False).stdout, what="the second try")
    except AssertionError:
        raise AssertionError(server.ctl("trace", queue_id).stdout + server.log()[-5000:]) from None
    return queue_id


def assert_whole_way(told: str, queue_id: str) -> None:
    lines = told.splitlines()
    assert lines[0].split() == ["message", queue_id, MESSAGE_ID]
    line = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (\S.*?)  +(.*)")
    steps = [m.groups() for m in map(line.match, lines) if m and m[1] != "forwarded"]
    assert [s for s, _ in steps] == [
        "connected", "refused", "checked", "delivered", "accepted", "deferred", "delivered",
    ]  # fmt: skip
    connected, refused, checked, stored, accepted, deferred, delivered = (s for _, s in steps)
    assert connected.startswith(f"from {PEER} (mail.good.test) to smtp, TLSv1.")
    assert "nobody@example.test" in refused
    assert checked.startswith("accept in ")
    assert "spf=pass" in checked
    assert "dmarc=pass" in checked
    assert any(f.strip() == "spf smtp.mailfrom=ann@good.test" for f in lines)
    assert any("(mail.good.test)" in f and f.strip().startswith("iprev") for f in lines)
    assert re.match(r"to bob@example\.test.*: INBOX, UID 1", stored)
    assert accepted.startswith(f"as {queue_id} by smtp: ann@good.test to team@example.test")
    assert re.match(
        r"ext@remote\.test, try 1 at mx\.remote\.test \[127\.0\.0\.1\], no TLS: 451 4\.7\.1 Greylisted", deferred
    )
    assert any("→" in f and "greylisting" in f for f in lines)
    assert re.match(r"ext@remote\.test, try 2 at mx\.remote\.test .* 250 2\.0\.0 stored", delivered)


@pytest.mark.parametrize("what", ["", MESSAGE_ID, MESSAGE_ID.strip("<>"), "ext@remote.test", "ANN@good.test"])
def test_trace_tells_the_whole_way(traced: Traced, what: str) -> None:
    """By queue id, Message-ID, recipient of a forwarding copy and sender: one time line from connect to the remote's
    250, whichever process did what."""
    told = traced.server.ctl("trace", what or traced.queue_id).stdout
    assert_whole_way(told, traced.queue_id)


def test_trace_has_the_same_as_json(traced: Traced) -> None:
    """For scripts: each event with its fields, and the advice."""
    (message,) = traced.server.ctl_json("trace", traced.queue_id)["messages"]
    assert message["queue_ids"] == [traced.queue_id]
    assert message["waiting"] == []
    attempts = [e for e in message["events"] if e["event"] == "delivery_attempt"]
    assert [e["verdict"] for e in attempts] == ["deferred", "delivered"]
    assert "greylisting" in attempts[0]["advice"]
    assert len({e["session"] for e in message["events"]}) == 1


def test_refused_recipient_is_found_though_no_message_came_of_it(traced: Traced) -> None:
    """ "Why did the mail to nobody@ not arrive?" A refusal has no queue id; its session tells."""
    told = traced.server.ctl("trace", "nobody@example.test").stdout
    assert re.search(r"refused +recipient nobody@example\.test from ann@good\.test .*: 550 5\.1\.1", told)


def test_log_shows_readable_lines(traced: Traced) -> None:
    """The last events, those with a word in them, those whose field has a value, and trouble alone."""
    server = traced.server
    assert len(server.ctl("log").stdout.splitlines()) >= 7
    lines = server.ctl("log", "ext@remote.test", "deferred").stdout.splitlines()
    assert [traced.queue_id in line and "451 4.7.1 Greylisted" in line for line in lines] == [True]
    assert len(server.ctl_json("log", "event=delivery_attempt", "verdict=delivered")["events"]) == 1
    (trouble,) = server.ctl_json("log", "--warnings", "--since", "1h", "remote.test")["events"]
    assert trouble["verdict"] == "deferred"
    nothing = server.ctl("log", "no such word")
    assert "journalctl -u pymx" in nothing.stderr


def test_log_follows(traced: Traced) -> None:
    """What comes in is printed as it comes."""
    server = traced.server
    command = [
        str(Path(sys.executable).parent / "pymxctl"),
        "--config",
        str(server.config),
        "log",
        "-f",
        "rcpt_refused",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        killer = threading.Timer(30, follower.kill)
        killer.start()
        assert follower.stdout is not None
        assert "nobody@example.test" in follower.stdout.readline()
        with smtplib.SMTP("127.0.0.1", server.ports["smtp"], timeout=30) as client:
            client.ehlo()
            client.mail("eve@good.test")
            client.rcpt("follow@example.test")
        line = follower.stdout.readline()
        killer.cancel()
        follower.kill()
    assert "refused      recipient follow@example.test" in line


def test_what_is_not_there_is_said(traced: Traced) -> None:
    """Exit status 1, and since when there is a store."""
    done = traced.server.ctl("trace", "stranger@good.test", check=False)
    assert done.returncode == 1
    assert "nothing about 'stranger@good.test'" in done.stderr
