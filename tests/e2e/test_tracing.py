"""From a message at port 25 to its mailbox and to a remote that first says no: traced, logged, counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import smtplib
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.ports import free_port
from support.programs import require
from support.sinks import ScriptedRemote
from support.wait import wait_for

ROOT = Path(__file__).parent.parent.parent
PEER = "127.0.0.2"
MESSAGE_ID = "<traced.1@good.test>"


@dataclass
class Traced:
    server: Appliance
    remote: ScriptedRemote
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
    port = free_port()
    server = Appliance(
        workers=2,
        ports={"status": port},
        top="hang_s = 8\n",
        extra={
            "status": f'listen = ["127.0.0.1:{port}"]\n',
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "outbound": f"port = {remote.port}\nallow_private = true\nretry_first = 1\nretry_max_s = 2\n",
        },
    )
    try:
        server.populate(("alice", "bob"))
        server.ctl("alias", "add", "team@example.test", "bob@example.test", "ext@remote.test")
        server.start()
        yield Traced(server, remote, bring(server))
        assert server.stop() == 0
        # and with the server stopped
        assert "2 delivered" in server.ctl("trace", MESSAGE_ID).stdout
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


def test_bounce_is_told_with_its_notification(traced: Traced) -> None:
    """A refusal for good, what to do about it, and the notification until it is in the sender's mailbox."""
    server = traced.server
    traced.remote.replies["RCPT strict@remote.test"] = "550 5.7.26 Unauthenticated email is not accepted"
    server.submit("alice", "strict@remote.test", "bounces")

    def told() -> str:
        said = server.ctl("trace", "strict@remote.test", check=False).stdout
        return said if "INBOX" in said else ""

    lines = wait_for(told, what="the notification in the mailbox").splitlines()
    steps = [line[25:38].strip() for line in lines if re.match(r"\d{4}-", line)]
    assert steps[:3] == ["connected", "accepted", "failed"]
    assert sorted(steps[3:]) == ["accepted", "delivered", "notified"]  # in the same few milliseconds
    assert any("→" in line and "SPF, DKIM and DMARC" in line for line in lines)
    assert any("alice@example.test was told of the failure" in line for line in lines)
    (failed,) = (e for e in server.ctl_json("status")["last_errors"] if "strict@remote.test" in e["text"])
    assert "550 5.7.26" in failed["text"]


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
    assert len(server.ctl_json("log", traced.queue_id, "verdict=delivered")["events"]) == 1
    (trouble,) = server.ctl_json("log", "--warnings", "--since", "1h", traced.queue_id)["events"]
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


def scrape(server: Appliance, path: str) -> tuple[int, str]:
    """Status and body, fetched by curl."""
    url = f"http://127.0.0.1:{server.ports['status']}{path}"
    done = subprocess.run(
        [require("curl", "curl"), "-sS", "-m", "20", "-w", "\n%{http_code}", url],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def value(page: str, series: str) -> float:
    """Of one series on the page; 0 when it is not there."""
    return next(
        (float(line.rpartition(" ")[2]) for line in page.splitlines() if line.rpartition(" ")[0] == series), 0.0
    )


def test_metrics_are_those_of_all_processes(traced: Traced) -> None:
    """What a session worker and the runner did, on one page."""

    def page() -> str:
        status, body = scrape(traced.server, "/metrics")
        assert status == 200
        return body if value(body, 'pymx_deliveries_total{provider="other",result="delivered"}') else ""

    numbers = wait_for(
        lambda: (
            (body := page())
            and value(body, "pymx_mda_messages_delivered_total")
            and value(body, 'pymx_queue_deliveries{state="new"}') == 0 == value(body, "pymx_queue_messages")
            and body
        ),
        what="the session worker's numbers, and an empty queue",
    )
    assert isinstance(numbers, str)
    assert value(numbers, 'pymx_messages_accepted_total{listener="smtp"}') == 1
    assert value(numbers, 'pymx_messages_checked_total{verdict="accept"}') == 1
    assert value(numbers, "pymx_rcpt_refused_total") >= 1
    assert value(numbers, 'pymx_deliveries_total{provider="other",result="deferred"}') >= 1
    assert value(numbers, 'pymx_message_accept_seconds_bucket{le="+Inf"}') >= 1
    assert value(numbers, "pymx_message_accept_seconds_count") >= 1
    assert "\npymx_queue_messages 0\n" in numbers
    assert value(numbers, 'pymx_disk_free_octets{path="mail"}') > 0
    for process in ("session-1", "session-2", "runner"):
        assert value(numbers, f'pymx_up{{process="{process}"}}') == 1
        assert value(numbers, f'pymx_memory_octets{{process="{process}"}}') > 20_000_000


def test_metrics_page_is_as_prometheus_wants_it(traced: Traced) -> None:
    """promtool of Debian's package prometheus finds nothing to say."""
    program = require("promtool", "prometheus")
    _, page = scrape(traced.server, "/metrics")
    done = subprocess.run([program, "check", "metrics"], input=page, capture_output=True, text=True, timeout=30)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_dashboard_shows_what_is_there(traced: Traced) -> None:
    """config/grafana-dashboard.json asks for nothing that the page does not have."""
    dashboard = json.loads((ROOT / "config" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = {name for expression in expressions for name in re.findall(r"pymx_[a-z_]+", expression)}
    assert len(asked) > 20
    asked -= {"pymx_notifications_failed_total", "pymx_notifications_delayed_total"}  # there from their first count on

    def missing() -> set[str]:
        _, page = scrape(traced.server, "/metrics")
        return asked - set(re.findall(r"^(pymx_[a-z_]+)[{ ]", page, re.MULTILINE))

    wait_for(lambda: not missing(), what="the numbers of all processes")


def test_health_is_said(traced: Traced) -> None:
    """For load balancers and monitors; other paths and methods are refused."""
    wait_for(lambda: scrape(traced.server, "/healthz") == (200, "ok\n"), what="all processes heard of")
    assert scrape(traced.server, "/")[0] == 404


def test_status_shows_the_whole_server(traced: Traced) -> None:
    """All processes, not only the runner that answers; trouble of the last day; as lines and as JSON."""
    server = traced.server
    wait_for(lambda: len(server.ctl_json("status")["processes"]) == 3, what="all processes heard of")
    facts = server.ctl_json("status")
    assert {p["process"] for p in facts["processes"]} == {"session-1", "session-2", "runner"}
    assert facts["problems"] == []
    assert [e for e in facts["last_errors"] if "Greylisted" in str(e["text"])] == []
    said = server.ctl("status").stdout
    assert "all processes serve" in said
    assert re.search(r"certificate +expires in \d+ d", said)
    assert re.search(r"^runner +\d+ ", said, re.MULTILINE)


def test_status_can_be_watched(traced: Traced) -> None:
    """On a terminal: drawn by rich, again and again; the terminal is as before afterwards."""
    server = traced.server
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, 130, 0, 0))
    command = [str(Path(sys.executable).parent / "pymxctl"), "--config", str(server.config), "status", "--watch"]
    with subprocess.Popen(
        [*command, "--interval", "0.3"], stdin=terminal, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    ) as watcher:  # fmt: skip
        os.close(terminal)
        killer = threading.Timer(40, watcher.kill)
        killer.start()
        seen = b""
        while seen.count(b"all processes serve") < 3:
            seen += os.read(main, 65536)
        watcher.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(main, 65536):
                seen += data
        assert watcher.wait(20) == 130
        killer.cancel()
    os.close(main)
    assert b"Processes" in seen
    assert seen.endswith(b"\x1b[?25h\x1b[?1049l")  # the cursor is shown again, on the screen of before


def test_worker_that_hangs_is_replaced(traced: Traced) -> None:
    """A stopped process does not turn its event loop; after hang_s another serves in its place and counts on."""
    server = traced.server
    pids = wait_for(
        lambda: (
            {p["process"]: p["pid"] for p in server.ctl_json("status")["processes"]}
            if len(server.ctl_json("status")["processes"]) == 3
            else None
        ),
        what="all processes heard of",
    )
    assert pids is not None
    delivered = "pymx_mda_messages_delivered_total"
    before = wait_for(lambda: value(scrape(server, "/metrics")[1], delivered), what="the workers' numbers")
    os.kill(pids["session-1"], signal.SIGSTOP)
    wait_for(lambda: f'pid={pids["session-1"]} reason="killed by SIGKILL"' in server.log(), what="its end")
    assert f"event=worker_hangs role=session number=1 pid={pids['session-1']}" in server.log()

    def successor() -> bool:
        processes = {p["process"]: p["pid"] for p in server.ctl_json("status")["processes"]}
        return bool(processes["session-1"] != pids["session-1"])

    wait_for(successor, what="its successor")
    with server.imap("bob") as client:
        client.select()
    _, page = scrape(server, "/metrics")
    assert value(page, delivered) >= before


def test_message_that_waits_says_until_when(traced: Traced) -> None:
    """Deferred for long: the next try, with what to do about the reply; also when the server is stopped."""
    server = traced.server
    traced.remote.replies["RCPT full@remote.test"] = "452 4.2.2 The email account is over quota"
    server.submit("alice", "full@remote.test", "waits")
    queue_id = wait_for(
        lambda: next(iter(re.findall(r"^(\w{10,}) .*full@remote", server.ctl("queue", "list").stdout, re.M)), "")
    )
    server.ctl("queue", "hold", queue_id)
    told = wait_for(
        lambda: told if "4.2.2" in (told := server.ctl("trace", queue_id, check=False).stdout) else "",
        what="the first try",
    )
    assert "→ The recipient's mailbox is full" in told
    assert re.search(r"waits +full@remote\.test: held; pymxctl queue release", told)
    assert "1 deferred, 1 held" in told
    server.ctl("queue", "remove", queue_id)
