"""What runs under systemd, under the protection that its unit asks for: the same system calls, capabilities, mounts."""

from __future__ import annotations

import imaplib
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import sandbox
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.ports import answers
from support.programs import python_for, require
from support.sinks import ScriptedRemote
from support.wait import wait_for

from pymx.admin import backup_place

UNITS = Path(__file__).parents[2] / "systemd"
UNIT = UNITS / "pymx.service"
USER = "mail"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can put a sandbox around a program")


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    require("systemd-analyze", "systemd")
    require("setpriv", "util-linux")
    server = Appliance(workers=2)
    yield server
    server.remove()


def _privileged_port() -> int:
    """One that takes CAP_NET_BIND_SERVICE, of an address that nobody listens on."""
    return next(p for p in random.sample(range(200, 1000), 200) if not answers(p))


def _confined(server: Appliance, *command: str) -> list[str]:
    return [server.python, sandbox.__file__, str(UNIT), str(server.directory), USER, *command]


def _give_away(*tops: Path) -> None:
    user = pwd.getpwnam(USER)
    for path in (path for top in tops for path in (top, *top.rglob("*"))):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _run_unit(server: Appliance, *units: Path, places: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    """The ExecStart of a unit of pymxctl in its sandbox. `places` stand for directories that the unit opens."""
    unit = sandbox.directives(*units)
    program, *words = unit["ExecStart"][0].split()
    assert program == "/opt/pymx/bin/pymxctl"
    mine = ["-c", "import sys; from pymx.admin import ctl; sys.exit(ctl.main())", "--config", str(server.config)]
    opened = sandbox.writable(unit, {"/var/lib/pymx": server.directory / "data", **places})
    command = [
        server.python, sandbox.__file__, ":".join(map(str, units)), ":".join(map(str, opened)), USER,
        server.python, *mine, *words,
    ]  # fmt: skip
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Operation not permitted" not in done.stderr, done.stderr
    return done


def _possible(server: Appliance) -> None:
    tried = subprocess.run(
        _confined(server, "/bin/true"), env=server.environment, capture_output=True, text=True, timeout=60
    )
    if tried.returncode:
        pytest.skip(f"this machine permits no such sandbox: {tried.stderr.strip().splitlines()[-1]}")


def test_mail_flows_under_the_sandbox_of_the_unit(
    appliance: Appliance, scripted_remote: Callable[..., ScriptedRemote]
) -> None:
    """In over a privileged port, out through the queue, into a Maildir, with two workers and a clean end."""
    server, remote = appliance, scripted_remote()
    server.python, server.environment = python_for(USER)
    _possible(server)
    server.ports["smtp"] = _privileged_port()
    route = f'{{ domain = "*", host = "127.0.0.1", port = {remote.port}, tls = "none" }}'
    server.extra["outbound"] = f"route = [{route}]\nallow_private = true\n"
    server.write_config()
    server.populate()
    _give_away(server.directory)
    user = pwd.getpwnam(USER)
    server.wrapper = _confined(server)
    server.start()
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert re.search(rf"^Uid:\t{user.pw_uid}\t", status, re.M)
    assert re.search(r"^CapEff:\t0+400$", status, re.M)  # CAP_NET_BIND_SERVICE alone
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)
    server.submit("alice", server.address("bob"), "inside")
    server.wait_for_subject("bob", "inside")
    server.submit("alice", "carol@elsewhere.test", "outside")
    wait_for(lambda: remote.messages, what="the message leaves")
    assert server.stop() == 0
    assert "Traceback" not in server.log()
    assert "Operation not permitted" not in server.log()


def test_sandbox_does_refuse_what_the_unit_refuses(appliance: Appliance) -> None:
    """The test above could pass in an open sandbox: writing elsewhere, netlink and chroot are refused in this one."""
    appliance.python, appliance.environment = python_for(USER)
    _possible(appliance)
    os.chown(appliance.directory, pwd.getpwnam(USER).pw_uid, -1)
    attempt = (
        "import os, socket, sys\n"
        "def refused(act):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        return True\n"
        "    return False\n"
        f"open({str(appliance.directory / 'kept')!r}, 'w').close()\n"
        "assert refused(lambda: open('/var/tmp/elsewhere', 'w')), 'a write elsewhere'\n"
        "assert refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)), 'netlink'\n"
        "assert refused(lambda: os.chroot('/')), 'chroot'\n"
        "assert refused(lambda: os.setuid(0)), 'setuid'\n"
    )
    done = subprocess.run(
        _confined(appliance, appliance.python, "-c", attempt),
        env=appliance.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (appliance.directory / "kept").exists()


@pytest.fixture
def served(appliance: Appliance) -> Appliance:
    """A server in its sandbox, for what its timers start."""
    appliance.python, appliance.environment = python_for(USER)
    _possible(appliance)
    appliance.workers = 1
    appliance.database_url = f"sqlite:///{appliance.directory}/data/pymx.sqlite"
    appliance.write_config()
    return appliance


def _serve(server: Appliance) -> None:
    server.populate()
    _give_away(server.directory)
    server.wrapper = _confined(server)
    server.start()


def _letters(client: imaplib.IMAP4_SSL) -> int:
    return int(client.select("INBOX", readonly=True)[1][0] or 0)


def test_nightly_examination_takes_our_own_ports_for_ours(served: Appliance) -> None:
    """It has no capability and the server has one, so the kernel hides from it what the server has open: no failure."""
    dns = DnsServer()
    try:
        served.extra["dns"] = f'nameservers = ["{dns.spec}"]\ntimeout_s = 1\n'
        served.extra["outbound"] = 'allow_private = true\nsource_addresses = ["127.0.0.1"]\n'
        served.write_config()
        _serve(served)
        assert served.process is not None
        unit = UNITS / "pymx-nightly.service"
        hidden = f"import os; os.readlink('/proc/{served.process.pid}/fd/1')"
        tried = subprocess.run(
            [served.python, sandbox.__file__, str(unit), "", USER, served.python, "-c", hidden],
            env=served.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "PermissionError" in tried.stderr  # what the examination is up against
        quick = served.directory / "quick.conf"  # what is new is looked at again after a minute
        exec_start = sandbox.directives(unit)["ExecStart"][0]
        quick.write_text(f"[Service]\nExecStart=\nExecStart={exec_start} --second-look 0\n")
        done = _run_unit(served, unit, quick, places={"/run/pymx": served.directory / "run"})
    finally:
        dns.close()
    assert done.returncode == 0, done.stderr
    assert "; mailed" in done.stdout
    found = json.loads((served.directory / "data/doctor/last.json").read_text())
    assert found["backup"]["sentence"] == "no backup was ever made"
    assert [name for name in found if name.startswith("port:")] == []
    with served.imap("alice") as client:
        wait_for(lambda: _letters(client), what="the letter")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory outside of what the server has, and not under pytest's, which the user of the sandbox can't enter."""
    path = Path(tempfile.mkdtemp(prefix="pymx-elsewhere-"))
    yield path
    shutil.rmtree(path)


def test_nightly_backup_writes_where_its_unit_may(served: Appliance, elsewhere: Path) -> None:
    """Beside a running server: into /var/backups/pymx as the unit is, into another directory with the drop-in."""
    unit = UNITS / "pymx-backup.service"
    target = elsewhere / "a disk" / "pymx"
    target.mkdir(parents=True)
    served.extra["backup"] = f'target = "{target}"\n'
    served.write_config()
    _serve(served)
    served.submit("alice", served.address("bob"), "kept")
    served.wait_for_subject("bob", "kept")
    _give_away(elsewhere)
    places = {"/var/vmail": served.directory / "vmail", "/run/pymx": served.directory / "run"}
    done = _run_unit(served, unit, places={**places, str(backup_place.DEFAULT): target})
    assert done.returncode == 0, done.stderr
    assert ": 1 accounts, 1 messages, " in done.stdout
    assert served.ctl_json("backup", "verify", str(target))["messages"] == 1

    refused = _run_unit(served, unit, places=places)
    assert refused.returncode == 1
    assert f"{target} is read-only here" in refused.stderr
    assert f"ReadWritePaths={target}" in refused.stderr
    last = served.directory / "data/backup/last.json"
    assert json.loads(last.read_text())["ok"] is False

    (made,) = (path for path in target.iterdir() if not path.name.startswith("."))
    made.rename(made.with_name("20251231T030000Z"))  # names have seconds
    opened = served.directory / "target.conf"
    opened.write_text(backup_place.drop_in(target))
    done = _run_unit(served, unit, opened, places={**places, str(target): target})
    assert done.returncode == 0, done.stderr
    assert json.loads(last.read_text())["ok"] is True
    assert len(served.ctl_json("backup", "list", str(target))) == 2
