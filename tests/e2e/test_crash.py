"""kill -9 under load, restart, again and again: what was answered 250 is there (invariant 1).

The long form (-m soak) has 100 rounds, or CRASH_ROUNDS.
"""

from __future__ import annotations

import bisect
import collections
import email
import os
import random
import smtplib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote
from support.wait import wait_for

SHORT_ROUNDS = 6
LONG_ROUNDS = int(os.environ.get("CRASH_ROUNDS", "100"))


class Load:
    """Clients that send numbered messages until told to stop, and remember what was acknowledged."""

    def __init__(self, server: Appliance) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._number = 0
        self.acknowledged: dict[str, set[str]] = {"in": set(), "out": set()}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._stop.clear()
        self._threads = [threading.Thread(target=self._run, args=(self._inbound,)) for _ in range(3)]
        self._threads += [threading.Thread(target=self._run, args=(self._outbound,)) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, session: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                session()
            except (OSError, smtplib.SMTPException):
                time.sleep(0.02)  # the server is down

    def _next(self, kind: str) -> str:
        with self._lock:
            self._number += 1
            return f"{kind}-{self._number}"

    def _inbound(self) -> None:
        with smtplib.SMTP("127.0.0.1", self._server.ports["smtp"], timeout=20) as client:
            while not self._stop.is_set():
                name = self._next("in")
                to = [self._server.address(u) for u in random.choice((("alice",), ("bob",), ("alice", "bob")))]
                refused = client.sendmail("x@elsewhere.example", to, f"Subject: {name}\r\n\r\n{'x' * 2000}\r\n")
                assert not refused
                self.acknowledged["in"].update(f"{name}>{address}" for address in to)

    def _outbound(self) -> None:
        alice = self._server.address("alice")
        with smtplib.SMTP_SSL(
            "localhost", self._server.ports["submissions"], context=self._server.tls, timeout=20
        ) as client:
            client.login(alice, "secret")
            while not self._stop.is_set():
                name = self._next("out")
                client.sendmail(alice, ["y@remote.test"], f"From: {alice}\r\nSubject: {name}\r\n\r\nx\r\n")
                self.acknowledged["out"].add(name)


@pytest.fixture
def target() -> Iterator[tuple[Appliance, ScriptedRemote]]:
    remote = ScriptedRemote()
    remote.start()
    dns = DnsServer()
    dns.add("remote.test", "MX", "10 mx.remote.test")
    dns.add("mx.remote.test", "A", "127.0.0.1")
    server = Appliance(
        extra={
            "outbound": f"port = {remote.port}\nallow_private = true\nretry_first = 1\nretry_max_s = 1\n",
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "database": "cache_s = 600\n",
        }
    )
    try:
        server.populate()
        yield server, remote
    finally:
        server.remove()
        dns.close()
        remote.stop()


@pytest.mark.parametrize(
    "rounds",
    [SHORT_ROUNDS, pytest.param(LONG_ROUNDS, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_kill_9_under_load_loses_nothing_acknowledged(
    target: tuple[Appliance, ScriptedRemote], rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server, remote = target
    load = Load(server)
    kills: list[int] = []  # how many messages had come out by then
    for _ in range(rounds):
        server.start()
        load.start()
        time.sleep(random.uniform(0.1, 0.8))  # not a wait: the moment of the kill is what is varied
        server.kill()
        load.stop()
        wait_for(lambda: not remote.busy, what="the remote has seen the ends of its connections")
        kills.append(len(remote.messages))
    server.start()
    inbox = {user: collections.Counter(server.subjects(user)) for user in ("alice", "bob")}
    there = {f"{name}>{server.address(user)}": n for user, counts in inbox.items() for name, n in counts.items()}
    lost = {name for name in load.acknowledged["in"] if name not in there}
    assert not lost

    def sent() -> list[str]:
        return [str(email.message_from_bytes(m.content)["Subject"]) for m in list(remote.messages)]

    wait_for(lambda: load.acknowledged["out"] <= set(sent()), timeout_s=60, what="the queue is delivered")
    assert server.stop() == 0
    doubled_in = {name for name, n in there.items() if n > 1}
    # a client that got its 250 does not send again; what is there twice was never doubled by us
    assert not doubled_in
    # sent again is only what had gone out when a kill came, before that was recorded: once per kill at most
    lives = collections.defaultdict(list)
    for place, name in enumerate(sent()):
        lives[name].append(bisect.bisect_right(kills, place))
    for name, seen in lives.items():
        assert len(set(seen)) == len(seen), f"{name} was sent twice by one process"
    doubled_out = sum(len(seen) - 1 for seen in lives.values())
    with capsys.disabled():
        print(
            f"\n{rounds} kills: acknowledged {len(load.acknowledged['in'])} deliveries and "
            f"{len(load.acknowledged['out'])} submissions, none lost; sent again to the remote: {doubled_out}"
        )
