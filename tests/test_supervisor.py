"""The supervisor with real processes, signals and sockets."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.programs import python_for
from support.wait import wait_for

from pymx.net import notify
from pymx.net.privileges import PrivilegeError, drop_privileges

SCRIPT = Path(__file__).parent / "support" / "supervised.py"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says of itself."""

    role: str
    number: int
    pid: int
    uid: int
    gid: int
    groups: int
    hups: int
    reloads: int


class Running:
    """The script under a supervisor."""

    def __init__(self, directory: Path, workers: int, user: str, drain_s: int, behaviour: str) -> None:
        self.log = directory / "log"
        self.out = directory / "out"
        self.notify_path = directory / "n"
        self._port_file = directory / "port"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.notify_path))
        self.notified.settimeout(10)
        self.notify_path.chmod(0o666)
        python, environment = (sys.executable, dict(os.environ)) if user == "none" else python_for(user)
        with self.log.open("wb") as err, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [python, str(SCRIPT), str(self._port_file), str(workers), user, str(drain_s), behaviour],
                env={**environment, "NOTIFY_SOCKET": str(self.notify_path), "WATCHDOG_USEC": "400000"},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.out.read_text() == "ready\n"

        wait_for(ready, what="ready")

    @property
    def port(self) -> int:
        return int(self._port_file.read_text())

    def ask(self, command: str = "who") -> Answer:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as s:
            s.sendall(command.encode())
            role, *numbers = s.recv(200).decode().split()
        return Answer(role, *map(int, numbers))

    def children(self) -> dict[int, str]:
        """State letter by pid of the supervisor's children; Z is a zombie."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        states = {}
        for pid in map(int, text.split()):
            stat = Path(f"/proc/{pid}/stat").read_text()
            states[pid] = stat.rpartition(")")[2].split()[0]
        return states

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.notified.close()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(workers: int = 2, user: str = "none", drain_s: int = 5, behaviour: str = "ok") -> Running:
        running.append(Running(tmp_path, workers, user, drain_s, behaviour))
        return running[-1]

    yield start
    for server in running:
        server.close()


def test_ready_is_said_once_when_all_processes_serve(supervise: Callable[..., Running]) -> None:
    """Two session workers and a runner; systemd hears READY=1, then the watchdog's heartbeats."""
    server = supervise(workers=2)
    server.until_ready()
    assert len(server.children()) == 3
    heard = [server.notified.recv(1000) for _ in range(3)]
    assert heard.count(b"READY=1") == 1
    assert b"WATCHDOG=1" in heard


def test_killed_worker_is_replaced_within_a_second(supervise: Callable[..., Running]) -> None:
    """Twice in a row, without a zombie; connections wait in the shared socket meanwhile."""
    server = supervise(workers=1)
    server.until_ready()
    first = server.ask("die")
    for _ in range(2):
        began = time.monotonic()
        second = server.ask("die")
        assert time.monotonic() - began < 1
        assert second.pid != first.pid
        first = second
    server.ask()
    wait_for(lambda: list(server.children().values()).count("Z") == 0, what="zombies are collected")
    assert len(server.children()) == 2
    assert server.log.read_text().count('reason="killed by SIGKILL"') == 3


def test_worker_that_hangs_is_killed_and_replaced(supervise: Callable[..., Running]) -> None:
    """hang_s without a heartbeat: the log says where it hung, and the others go on."""
    server = supervise(workers=1, behaviour="watched")
    server.until_ready()
    first = server.ask("freeze")
    second = server.ask()  # waits in the listening socket for the successor
    assert second.pid != first.pid
    log = server.log.read_text()
    assert re.search(rf"event=worker_hangs role=session number=1 pid={first.pid} ", log)
    assert "Fatal Python error: Aborted" in log
    assert "in worker" in log
    assert 'reason="killed by SIGABRT"' in log
    assert log.count("event=worker_hangs") == 1


def test_nobody_is_killed_because_the_whole_server_was_frozen(supervise: Callable[..., Running]) -> None:
    """A paused container or virtual machine: the supervisor goes on first, and sees old heartbeats."""
    server = supervise(workers=1, behaviour="watched")
    server.until_ready()
    first = server.ask()
    frozen = [server.process.pid, *server.children()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 1.5
    wait_for(lambda: time.monotonic() > until, what="more than hang_s")
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 0.5
    wait_for(lambda: time.monotonic() > until, what="looks of the supervisor")
    assert server.ask().pid == first.pid
    assert "worker_hangs" not in server.log.read_text()


def test_worker_that_ignores_the_abort_is_killed(supervise: Callable[..., Running]) -> None:
    """Two seconds after it."""
    server = supervise(workers=1, behaviour="watched")
    server.until_ready()
    first = server.ask("stop")
    assert server.ask().pid != first.pid
    assert 'reason="killed by SIGKILL"' in server.log.read_text()


def test_worker_that_keeps_dying_is_restarted_with_growing_gaps(supervise: Callable[..., Running]) -> None:
    """A runner that ends at once does not turn the machine into a heater: 0, 0.5, 1, 2 … seconds."""
    server = supervise(behaviour="loop")
    wait_for(lambda: server.log.read_text().count("event=worker_died") >= 3, what="three deaths")
    began = time.monotonic()
    wait_for(lambda: server.log.read_text().count("event=worker_died") >= 4, what="the fourth death")
    assert time.monotonic() - began > 0.5
    assert server.ask().role == "session"


def test_server_that_can_not_start_ends_with_status_1(supervise: Callable[..., Running]) -> None:
    """The reason stands in the log; nothing is tried again, and ready is never said."""
    server = supervise(behaviour="fail")
    assert server.process.wait(10) == 1
    assert "no schema" in server.log.read_text()
    assert server.out.read_text() == ""


def test_sigterm_drains_before_it_ends(supervise: Callable[..., Running]) -> None:
    """A session in progress is finished, new connections are refused, the exit status is 0."""
    server = supervise()
    server.until_ready()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as session:
        session.sendall(b"slow")
        assert session.recv(200)
        server.process.terminate()
        assert session.recv(200) == b" drained"
    assert server.process.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    assert "event=worker_killed" not in server.log.read_text()


def test_worker_that_does_not_drain_is_killed(supervise: Callable[..., Running]) -> None:
    """A second SIGTERM does not wait for drain_s."""
    server = supervise(drain_s=60)
    server.until_ready()
    server.ask("hang")
    server.process.terminate()
    wait_for(lambda: "event=server_stopping" in server.log.read_text(), what="stopping")
    server.process.terminate()
    assert server.process.wait(5) == 0
    assert "event=worker_killed" in server.log.read_text()


def test_sighup_is_forwarded_after_the_supervisor_has_reloaded(supervise: Callable[..., Running]) -> None:
    """Running workers get the signal; a worker started later has the supervisor's new state."""
    server = supervise(workers=1)
    server.until_ready()
    assert server.ask().hups == 0
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.ask().hups == 1, what="the worker has got SIGHUP")
    before = server.ask("die")
    after = server.ask()
    assert (before.reloads, after.reloads) == (0, 1)
    assert after.hups == 0


def test_killed_supervisor_takes_its_children_along(supervise: Callable[..., Running]) -> None:
    """Else they would hold the ports against the next server (prctl(2), PR_SET_PDEATHSIG)."""
    server = supervise()
    server.until_ready()
    pids = list(server.children())
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(_alive(pid) for pid in pids), what="the children are gone")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT: only root can drop privileges")
def test_workers_run_as_the_configured_user(supervise: Callable[..., Running]) -> None:
    """Real, effective and saved ids and all groups are given up, before the first fork."""
    server = supervise(user="nobody")
    server.until_ready()
    answer = server.ask()
    assert answer.uid != 0
    assert answer.gid != 0
    status = Path(f"/proc/{answer.pid}/status").read_text()
    assert set(re.search(r"^Uid:(.*)$", status, re.MULTILINE)[1].split()) == {str(answer.uid)}
    assert set(re.search(r"^Gid:(.*)$", status, re.MULTILINE)[1].split()) == {str(answer.gid)}
    assert int(re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)[1], 16) == 0
    assert Path(f"/proc/{server.process.pid}").stat().st_uid in (0, answer.uid)
    supervisor = Path(f"/proc/{server.process.pid}/status").read_text()
    assert re.search(r"^Uid:\s*(\d+)", supervisor, re.MULTILINE)[1] == str(answer.uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT: only root can drop privileges")
def test_unknown_user_is_refused_with_what_to_do() -> None:
    """Better no server than one that runs as root."""
    with pytest.raises(PrivilegeError, match="useradd"):
        drop_privileges("no-such-user-here")


def test_workers_share_the_memory_of_the_code(supervise: Callable[..., Running]) -> None:
    """Frozen before the fork, a full collection in the child copies hardly any page: PSS stays far below RSS."""
    server = supervise(workers=2)
    server.until_ready()
    for pid in server.children():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        rss, pss, dirty = (int(re.search(rf"^{k}:\s+(\d+)", rollup, re.MULTILINE)[1]) for k in KINDS)
        assert pss < rss * 0.6, rollup
        assert dirty < rss * 0.35, rollup


KINDS = ("Rss", "Pss", "Private_Dirty")


def test_notify_speaks_to_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """sd_notify(3): a leading @ stands for the NUL of the abstract namespace; a missing listener is no error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0pymx-test-{os.getpid()}")
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@pymx-test-{os.getpid()}")
        notify.ready()
        assert listener.recv(100) == b"READY=1"
        notify.reloading()
        assert listener.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notify.stopping()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
    ],
)
def test_heartbeat_is_half_the_watchdogs_time(environ: dict[str, str], expected: float | None) -> None:
    """sd_watchdog_enabled(3), only for the process it is meant for."""
    assert notify.heartbeat_interval_s(environ) == expected
