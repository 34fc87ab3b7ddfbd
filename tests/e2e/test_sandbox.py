"""The daemon under the protection that its systemd unit asks for: the same system calls, capabilities and mounts."""

from __future__ import annotations

import os
import pwd
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import sandbox
from support.appliance import Appliance
from support.ports import answers
from support.programs import python_for, require
from support.sinks import ScriptedRemote
from support.wait import wait_for

UNIT = Path(__file__).parents[2] / "systemd" / "pymx.service"
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
    user = pwd.getpwnam(USER)
    for path in (server.directory, *server.directory.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
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
