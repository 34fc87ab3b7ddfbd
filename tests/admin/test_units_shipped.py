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
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.appliance import Appliance
from support.ports import free_port
from support.programs import require
from support.sandbox import directives
from support.wait import wait_for

from pymx.admin.health import ports
from pymx.admin.health.finding import Severity
from pymx.admin.health.listening import Holder
from pymx.admin.install.dropins import MEMORY, has_limits, profile_for
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
    subject = SimpleNamespace(config=config, listening=held, running=True)
    found = {f.check: f for f in ports.check(subject)}
    if holder == "pymx":  # a name alone does not make it ours
        assert found["port:0.0.0.0:25"].severity is Severity.FAIL
    else:
        assert found["port:0.0.0.0:25"].severity is Severity.OK


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
    assert profile_for(meminfo) == ""


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


def test_the_kernel_ends_a_child_and_not_the_server() -> None:
    """Without a word, systemd stops a whole service when one of its processes runs out of memory."""
    assert directives(SYSTEMD / "pymx.service")["OOMPolicy"] == ["continue"]
