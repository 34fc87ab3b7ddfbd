"""The systemd units beside the services: sockets that the server adopts, profiles of memory."""

from __future__ import annotations

import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.appliance import Appliance
from support.ports import free_port
from support.programs import require
from support.sandbox import directives
from support.wait import wait_for

from pymx.admin.health import machine as health
from pymx.admin.health import ports, services
from pymx.admin.health.activation import Activation, activation
from pymx.admin.health.finding import Severity
from pymx.admin.health.listening import Holder
from pymx.admin.install.dropins import MEMORY, has_limits, memory, profile_for, profile_taken
from pymx.admin.install.units import SOCKETS, UNITS, unit_text
from pymx.config.listeners import endpoints, listeners
from pymx.config.load import parse
from pymx.config.model import Config

SYSTEMD = Path(__file__).parents[2] / "systemd"
PROFILES = ("512m", "1g", "2g", "4g")
_SIZE = {"M": 1 << 20, "G": 1 << 30}


def octets(text: str) -> int:
    return int(text[:-1]) * _SIZE[text[-1]]


def test_every_unit_that_is_there_is_installed() -> None:
    assert {path.name for path in SYSTEMD.iterdir() if path.is_file()} == set(UNITS)
    assert {path.name for path in SYSTEMD.glob("*.socket")} == set(SOCKETS)


def test_socket_units_are_those_of_the_listeners() -> None:
    """The name by which the server adopts a socket, the ports that it listens at by itself, both families."""
    web = '[web]\nlisten = ["0.0.0.0:80", "[::]:80"]\nlisten_tls = ["0.0.0.0:443", "[::]:443"]\n'
    known = {x.service: set(endpoints(x.specs)) for x in listeners(parse(web))}
    for name in SOCKETS:
        unit = directives(SYSTEMD / name)
        (service,) = unit["FileDescriptorName"]
        assert name == f"pymx-{service}.socket"
        assert set(endpoints(unit["ListenStream"])) == known[service]
        assert unit["BindIPv6Only"] == ["ipv6-only"]
        assert unit["Service"] == ["pymx.service"]
    public = {service for service, found in known.items() if any(host == "0.0.0.0" for host, _ in found)}
    assert {f"pymx-{service}.socket" for service in public} == set(SOCKETS)


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    server = Appliance()
    yield server
    server.remove()


def test_sockets_of_all_units_at_once_are_served(appliance: Appliance) -> None:
    """As systemd does it with all of them enabled: each by its name, and the server binds none of them."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed")
    names = [directives(SYSTEMD / unit)["FileDescriptorName"][0] for unit in SOCKETS]
    for name in names:
        appliance.ports[name] = free_port()
    appliance.write_config()
    appliance.populate()
    with appliance.log_path.open("ab") as log:
        appliance.process = subprocess.Popen(
            [activate, *(f"--listen=127.0.0.1:{appliance.ports[name]}" for name in names),
             f"--fdname={':'.join(names)}", "-E", "PATH", sys.executable, "-m", "pymx", "serve",
             "--config", str(appliance.config)],
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", appliance.ports["smtp"]), timeout=20)
        except OSError:
            return None

    wait_for(connected, what="systemd's stand-in listens").close()  # this starts the server
    with smtplib.SMTP("127.0.0.1", appliance.ports["submission"], timeout=30) as client:
        assert client.ehlo()[0] == 250
        assert client.has_extn("starttls")
    appliance.submit("alice", appliance.address("bob"), "handed over")  # submissions
    appliance.wait_for_subject("bob", "handed over")  # imaps
    assert appliance.stop() == 0


@pytest.mark.parametrize("holder", ["systemd", "", "pymx"])
def test_socket_that_systemd_holds_for_us_is_ours(holder: str) -> None:
    """The doctor as root sees process 1 behind it."""
    held = (Holder("0.0.0.0", 25, holder, 1, "/sbin/init"),)
    config = Config(hostname="mx.example.test")
    subject = SimpleNamespace(config=config, listening=held, running=True, activation=Activation())
    found = {f.check: f for f in ports.check(subject)}
    if holder == "pymx":  # a name alone does not make it ours
        assert found["port:0.0.0.0:25"].severity is Severity.FAIL
    else:
        assert found["port:0.0.0.0:25"].severity is Severity.OK


_SHOWN = """\
Id=pymx.service
ActiveState={state}

Id=dbus.socket
ActiveState=active
FileDescriptorName=dbus.socket
Listen=/run/dbus/system_bus_socket (Stream)
Triggers=dbus.service

Id=pymx-smtp.socket
ActiveState=active
Triggers=pymx.service
FileDescriptorName=smtp
Listen=0.0.0.0:25 (Stream)
Listen=[::]:25 (Stream)

Id=pymx-submissions.socket
ActiveState=active
Triggers=pymx.service
FileDescriptorName=submissions
Listen=0.0.0.0:4650 (Stream)

Id=pymx-imaps.socket
ActiveState=inactive
Triggers=pymx.service
FileDescriptorName=imaps
Listen=0.0.0.0:993 (Stream)
"""


def shown(directory: Path, state: str) -> Activation:
    """What the doctor learns from a systemctl that says so."""
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\ncat <<'end'\n{_SHOWN.format(state=state)}end\n")
    program.chmod(0o755)
    return activation(str(program))


def stopped(directory: Path, state: str, held: tuple[Holder, ...]) -> Any:
    config = parse('hostname = "mx.example.test"\n[imap]\nlisten_tls = ["0.0.0.0:993"]')
    return SimpleNamespace(config=config, listening=held, running=False, activation=shown(directory, state))


@pytest.mark.parametrize("program", ["systemd", ""])
def test_socket_units_of_a_stopped_server_are_told_as_what_they_are(program: str, tmp_path: Path) -> None:
    """systemd listens and would start it. Where the unit listens counts, and not what pymx.toml says."""
    held = tuple(Holder(*where, program, 1, "/sbin/init") for where in (("0.0.0.0", 25), ("::", 25), ("0.0.0.0", 4650)))
    found = {f.check: f for f in ports.check(stopped(tmp_path, "inactive", held))}
    for name, unit in (("0.0.0.0:25", "smtp"), (":::25", "smtp"), ("0.0.0.0:4650", "submissions")):
        assert found[f"port:{name}"].severity is Severity.INFO
        assert "systemd listens at port" in found[f"port:{name}"].sentence
        assert f"(pymx-{unit}.socket)" in found[f"port:{name}"].sentence
    assert "port:0.0.0.0:465" not in found
    assert found["port:0.0.0.0:993"].severity is Severity.OK
    assert "is free ([imap] listen_tls)" in found["port:0.0.0.0:993"].sentence


def test_socket_of_another_program_beside_ours_is_still_in_the_way(tmp_path: Path) -> None:
    held = (
        Holder("0.0.0.0", 25, "systemd", 1, "/sbin/init"),
        Holder("127.0.0.1", 993, "systemd", 1, "/sbin/init"),  # of a unit that is not for us
        Holder("0.0.0.0", 4650, "nginx", 7, "nginx"),
    )
    found = {f.check: f for f in ports.check(stopped(tmp_path, "inactive", held))}
    assert found["port:0.0.0.0:993"].severity is Severity.FAIL
    assert found["port:0.0.0.0:4650"].severity is Severity.FAIL
    assert found["port:0.0.0.0:25"].severity is Severity.INFO


@pytest.mark.parametrize(
    ("state", "severity", "says"),
    [
        ("inactive", Severity.WARN, "(pymx-smtp.socket, pymx-submissions.socket) and starts it when somebody connects"),
        ("failed", Severity.FAIL, "tries again when somebody connects"),
        ("activating", Severity.FAIL, "no mail is accepted"),
    ],
)
def test_stopped_server_that_systemd_would_start_is_not_down(
    state: str, severity: Severity, says: str, tmp_path: Path
) -> None:
    finding = services.server(stopped(tmp_path, state, ()))
    assert finding.severity is severity
    assert says in finding.sentence + finding.why


def test_without_systemd_nothing_is_held(tmp_path: Path) -> None:
    """No such program; or one that says only that it can't be asked."""
    assert activation(str(tmp_path / "missing")) == Activation()
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus: Host is down' >&2\nexit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    assert activation(str(tmp_path / "systemctl")) == Activation()


@pytest.mark.parametrize(
    ("mib", "profile"),
    [(460, "512m"), (512, "512m"), (980, "1g"), (1024, "1g"), (1970, "2g"), (3900, "4g"), (4096, "4g"), (7900, "")],
)
def test_profile_follows_the_memory_of_the_machine(mib: int, profile: str, tmp_path: Path) -> None:
    """What a machine says is a little less than its size."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       {mib * 1024} kB\nMemFree:          100 kB\n")
    assert profile_for(meminfo) == profile
    meminfo.write_text("nothing of use\n")
    assert profile_for(meminfo) is None


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_are_known_to_systemd_and_fit(profile: str, tmp_path: Path) -> None:
    """Room for a process, its children and a thousand sessions, and less than three quarters of the machine."""
    analyze = require("systemd-analyze", "systemd")
    text = unit_text(f"memory/{profile}.conf", Path("/opt/pymx/bin"))
    found = directives(SYSTEMD / "memory" / f"{profile}.conf")
    high, most = octets(found["MemoryHigh"][0]), octets(found["MemoryMax"][0])
    # 63 MiB, 44 MiB for a thousand sessions in IDLE, and a child of the first size
    assert (63 + 44 + 63) << 20 < high < most <= 0.75 * octets(profile.upper())
    (tmp_path / MEMORY).parent.mkdir()
    (tmp_path / MEMORY).write_text(text)
    (tmp_path / "pymx.service").write_text(
        re.sub(r"/opt/pymx/bin/\w+", "/bin/true", unit_text("pymx.service", Path("/opt/pymx/bin")))
    )
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / "pymx.service")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert "pymx.service" not in done.stderr, done.stderr


def test_limits_of_somebody_else_are_seen(tmp_path: Path) -> None:
    """A drop-in with a name before memory.conf would lose to it."""
    assert not has_limits(tmp_path / "pymx.service.d")
    (tmp_path / "memory.conf").write_text("[Service]\nMemoryMax=1G\n")
    (tmp_path / "10-own.conf").write_text("[Service]\n#MemoryMax=2G\nTasksMax=100\n")
    assert not has_limits(tmp_path)
    (tmp_path / "limits.conf").write_text("[Service]\nMemoryMax=2G\n")
    assert has_limits(tmp_path)


@dataclass
class Machine:
    """One with systemd's directory and some memory."""

    directory: Path

    @property
    def units(self) -> Path:
        return self.directory / "system"

    @property
    def drop_in(self) -> Path:
        return self.units / MEMORY

    @property
    def meminfo(self) -> Path:
        return self.directory / "meminfo"

    def set_up(self, mib: int) -> None:
        """What `pymxctl setup` does about memory when there is so much of it."""
        self.meminfo.write_text(f"MemTotal:       {mib * 1024} kB\n")
        for step in memory(self.units, self.meminfo):
            if step.pending():
                step.apply()


def test_profile_follows_a_machine_that_grows_or_shrinks(tmp_path: Path) -> None:
    """And from one that needs none to one that does."""
    machine = Machine(tmp_path)
    machine.set_up(7900)
    assert not machine.drop_in.exists()
    for mib, profile in ((1970, "2g"), (3900, "4g"), (980, "1g"), (7900, ""), (460, "512m")):
        machine.set_up(mib)
        assert profile_taken(machine.units) == profile
        assert bool(directives(machine.drop_in).get("MemoryMax")) == bool(profile)
    machine.meminfo.write_text("nothing of use\n")
    assert list(memory(machine.units, machine.meminfo)) == []
    assert profile_taken(machine.units) == "512m"


def test_profile_with_other_comments_is_ours_all_the_same(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    machine = Machine(tmp_path)
    machine.set_up(1970)
    lines = machine.drop_in.read_text().splitlines()
    machine.drop_in.write_text("\n".join(["# something else", *(line for line in lines if line[0] != "#")]))
    machine.set_up(3900)
    assert profile_taken(machine.units) == "4g"


@pytest.mark.parametrize("where", ["memory.conf", "own.conf", "control"])
def test_limits_of_the_administrator_stay(where: str, tmp_path: Path) -> None:
    """Our file with one number changed, a drop-in beside it, or systemctl set-property."""
    machine = Machine(tmp_path)
    machine.set_up(1970)
    before = machine.drop_in.read_text()
    if where == "memory.conf":
        before = before.replace("MemoryMax=1280M", "MemoryMax=1300M")
        machine.drop_in.write_text(before)
    else:
        place = machine.drop_in if where == "own.conf" else tmp_path / "system.control" / MEMORY
        place.parent.mkdir(parents=True, exist_ok=True)
        (place.parent / "own.conf").write_text("[Service]\nMemoryMax=1G\n")
    machine.set_up(3900)
    assert machine.drop_in.read_text() == before
    subject = SimpleNamespace(places=SimpleNamespace(units=machine.units, meminfo=machine.meminfo))
    assert list(health.limits(subject)) == []


def test_doctor_tells_limits_of_another_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    subject = SimpleNamespace(places=SimpleNamespace(units=machine.units, meminfo=machine.meminfo))
    machine.set_up(1970)
    assert list(health.limits(subject)) == []
    for mib, says in ((3900, "those of 4 GB"), (980, "those of 1 GB"), (7900, "has enough for the shares")):
        machine.meminfo.write_text(f"MemTotal:       {mib * 1024} kB\n")
        (finding,) = health.limits(subject)
        assert finding.severity is Severity.WARN
        assert "as on a machine with 2 GB of memory" in finding.sentence
        assert says in finding.sentence
        assert "pymxctl setup" in finding.remedy
        machine.set_up(mib)
        assert list(health.limits(subject)) == []
        machine.set_up(1970)


def test_the_kernel_ends_a_child_and_not_the_server() -> None:
    """Without a word, systemd stops a whole service when one of its processes runs out of memory."""
    assert directives(SYSTEMD / "pymx.service")["OOMPolicy"] == ["continue"]
