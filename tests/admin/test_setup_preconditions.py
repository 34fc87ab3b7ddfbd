"""What `pymxctl setup` says of its surroundings before it does anything: all well, and each thing broken once.

The real command on a machine of its own, with the world on the other side of a cable: nothing of it is replaced.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import outside
from support.machine import Machine, is_possible

HOST, V4 = "mx.example.com", "93.184.215.14"
ROUTER, MAIL, WEB = "93.184.215.1", "198.51.100.25", "198.51.100.80"
REVERSE = "14.215.184.93"

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(is_possible()), reason=f"no machine of its own: {is_possible()}"),
]

WELL: dict[str, dict[str, list[str] | str]] = {
    "org": {"SOA": "a. b. 1 2 3 4 5"},
    "gmail.com": {"MX": "10 mx.big.example"},
    "mx.big.example": {"A": MAIL},
    "deb.debian.org": {"A": WEB},
    HOST: {"A": V4, "TXT": '"v=spf1 a -all"'},
    f"{REVERSE}.in-addr.arpa": {"PTR": HOST},
}

HOLDS_PORT_25 = (
    "import socket; open('/proc/self/comm', 'w').write('master'); s = socket.create_server(('0.0.0.0', 25)); "
    "print('up', flush=True); s.accept()"
)


class Surroundings:
    """A machine, and a router with the world behind it."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.enter, self.until_end = stack.enter_context, stack.callback
        self.records = {name: dict(records) for name, records in WELL.items()}
        self.secure = ["org"]
        self.inside = {"dns": "127.0.0.1"}
        self.outside: dict[str, Any] = {"mail": MAIL, "web": WEB}
        self.machine = self.enter(Machine(directory))
        (self.machine.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2\n")
        (self.machine.root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        for path in ("/var/lib", "/var/vmail"):
            self.mount(path, "64g")  # as large as they claim, whatever this machine has

    def mount(self, path: str, size: str) -> None:
        self.machine.run("mkdir", "-p", path)
        self.machine.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)

    def setup(self, *words: str) -> str:
        """What it prints."""
        there = self.enter(outside.connected(self.machine, [f"{V4}/24"], [f"{ROUTER}/24"], [MAIL, WEB]))
        self.until_end(outside.end, outside.start(self.outside, there))
        names = {**self.inside, "records": self.records, "secure": self.secure}
        here = ["nsenter", f"--net=/proc/{self.machine.pid}/ns/net"]
        self.until_end(outside.end, outside.start(names, here))
        command = ("setup", HOST, "--domain", "example.com", "--certificate", "later", "--dry-run", *words)
        return self.machine.run("pymxctl", *command).stdout


def well(_there: Surroundings) -> None:
    """Nothing is wrong."""


def closed(there: Surroundings) -> None:
    """A small new machine at a hoster that closes port 25, beside a Postfix."""
    del there.outside["mail"], there.records[HOST]
    there.records[f"{REVERSE}.in-addr.arpa"] = {"PTR": "vps1.hoster.example"}
    there.records[f"{REVERSE}.zen.spamhaus.org"] = {"A": "127.0.0.2"}
    there.outside["offset_s"] = 600.0
    there.mount("/var/vmail", "64m")
    meminfo = there.machine.root / "tmp/meminfo"
    meminfo.write_text(f"MemTotal: {256 << 10} kB\nMemAvailable: {128 << 10} kB\n")
    there.machine.run("mount", "--bind", "/tmp/meminfo", "/proc/meminfo")
    postfix = there.machine.start("python", "-c", HOLDS_PORT_25)
    there.until_end(stop, there.machine, postfix)
    assert postfix.stdout is not None
    assert postfix.stdout.readline() == "up\n"


def doubtful(there: Surroundings) -> None:
    """Names that lead elsewhere or nowhere, and a resolver that is not one's own."""
    there.records[HOST]["A"] = "203.0.113.9"
    del there.records[f"{REVERSE}.in-addr.arpa"]
    there.records[f"{REVERSE}.zen.spamhaus.org"] = {"A": "127.255.255.254"}
    there.secure = []
    there.outside["offset_s"] = 30.0
    there.mount("/var/vmail", "64g,nr_inodes=40")
    there.machine.run("touch", *(f"/var/vmail/{i}" for i in range(38)))


def silent(there: Surroundings) -> None:
    """No name server."""
    there.inside.clear()


def stop(machine: Machine, process: subprocess.Popen[str]) -> None:
    machine.kill(process)
    assert process.stdout is not None
    process.stdout.close()


Say = Callable[..., str]


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Say:
    """What setup says in given surroundings, each made once; wrapped lines put together."""
    said: dict[tuple[object, ...], str] = {}

    def of(surroundings: Callable[[Surroundings], None], *words: str) -> str:
        if (surroundings, *words) not in said:
            with ExitStack() as stack:
                there = Surroundings(tmp_path_factory.mktemp("machine"), stack)
                surroundings(there)
                said[surroundings, *words] = there.setup(*words)
        return said[surroundings, *words]

    return of


def test_where_all_is_well_every_precondition_was_looked_at(say: Say) -> None:
    findings = {f["id"]: f for f in json.loads(say(well, "--json"))["findings"]}
    for check in (
        "outbound:" + V4, "hostname:" + HOST, f"dns.a:{HOST}:{V4}", f"dns.ptr:{V4}", f"dns.spf-helo:{HOST}",
        "disk:/var/lib/pymx", "disk:/var/vmail", "resolver", "port:0.0.0.0:25", "port:0.0.0.0:993",
        f"blocklist:zen.spamhaus.org:{V4}",
    ):  # fmt: skip
        assert findings[check]["severity"] == "ok", findings[check]
    # of this machine, not of the test's
    assert findings["memory"]["severity"] in ("ok", "info", "warn")
    assert "NTP" in findings["clock"]["sentence"] or findings["clock"]["severity"] == "ok"
    assert [f for f in findings.values() if f["severity"] == "fail"] == []


@pytest.mark.parametrize(
    ("surroundings", "sentence", "remedy"),
    [
        (closed, f"FAIL  no mail server elsewhere can be reached from {V4} at port 25: {MAIL}: ",
         "ask your hoster to open outgoing port 25"),
        (closed, f"FAIL  the server's name {HOST} is not in DNS", "publish its address: pymxctl dns records"),
        (closed, f"FAIL  {HOST} has no A record with {V4}", f"publish: {HOST}. IN A {V4}"),
        (doubtful, f"FAIL  {HOST} leads to 203.0.113.9, not to {V4}", f"publish: {HOST}. IN A {V4}"),
        (closed, f"FAIL  the address {V4} is named vps1.hoster.example, not {HOST}",
         f"ask your hoster (its panel: reverse DNS) to name {V4} {HOST}"),
        (doubtful, f"FAIL  the address {V4} has no name in reverse DNS (PTR)",
         f"ask your hoster (its panel: reverse DNS) to name {V4} {HOST}"),
        (closed, "FAIL  the clock is 6", "let NTP keep it: apt-get install systemd-timesyncd"),
        (doubtful, "warn  the clock is 3", "let NTP keep it: apt-get install systemd-timesyncd"),
        (closed, "FAIL  only 64 MiB free of 64 MiB at /var/vmail", "make room: "),
        (doubtful, "warn  only 1 files more can be made at /var/vmail (inodes)", "make room: "),
        (closed, "FAIL  the machine has 256 MiB of memory", "a larger one"),
        (closed, "FAIL  port 25 at 0.0.0.0 is taken by Postfix (process ", "systemctl disable --now postfix"),
        (closed, f"FAIL  {V4} is on zen.spamhaus.org (127.0.0.2)", "then ask the list to take it out: https://check."),
        (doubtful, "warn  zen.spamhaus.org refuses to answer us (127.255.255.254)", "apt-get install unbound"),
        (doubtful, "warn  the name server 127.0.0.1 does not validate DNSSEC", "apt-get install unbound"),
        (silent, "FAIL  the name server 127.0.0.1 does not answer", "see /etc/resolv.conf"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)  # fmt: skip
def test_what_is_printed_of_a_precondition_that_does_not_hold(
    say: Say, surroundings: Callable[[Surroundings], None], sentence: str, remedy: str
) -> None:
    """The sentence, and below it what to do."""
    lines = say(surroundings).splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith(sentence)), None)
    assert at is not None, "\n".join(lines[:60])
    following = [line for line in lines[at : at + 5] if line.startswith("      do:  ")]
    assert following, lines[at : at + 5]
    assert following[0].startswith(f"      do:  {remedy}") or remedy in following[0], following[0]


def test_the_rest_is_said_all_the_same_without_a_name_server(say: Say) -> None:
    """And setup goes on: whether it matters is for the administrator to decide."""
    said = say(silent)
    assert "surroundings: 1 failed" in said
    assert "Nothing was done (--dry-run)." in said
