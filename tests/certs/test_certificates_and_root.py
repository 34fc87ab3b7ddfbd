"""Certificates where root is needed: certbot's are read as root and written as the server's user; the server that gets
its own has no more than the capability for ports 80 and 443."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import subprocess
import tempfile
from pathlib import Path

import pytest
from support import sandbox
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.pebble import Pebble
from support.ports import answers
from support.programs import python_for, require
from support.wait import wait_for

from pymx.net.certificate import read_certificate

UNIT = Path(__file__).parents[2] / "systemd" / "pymx.service"
HOST = "mx.example.test"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_certbots_hook_reads_as_root_and_writes_as_the_servers_user(tmp_path, certificate_authority):
    """As certbot calls it: no arguments, $RENEWED_LINEAGE, files that only root can read."""
    python, environment = python_for("nobody")
    theirs = certificate_authority.issue("as-root", (HOST,))
    lineage = tmp_path / "live" / HOST
    lineage.mkdir(parents=True)
    tmp_path.chmod(0o755)
    lineage.parent.chmod(0o700)
    for name, content in (("fullchain.pem", theirs.certificate), ("privkey.pem", theirs.private_key)):
        (lineage / name).write_bytes(content.read_bytes())
        (lineage / name).chmod(0o600)
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        os.chown(data, 65534, 65534)
        config = tmp_path / "hook.toml"
        config.write_text(
            f'hostname = "{HOST}"\nuser = "nobody"\ndata_dir = "{data}"\n[control]\nsocket = "{data}/control.sock"\n'
        )
        done = subprocess.run(
            [python, "-m", "pymx.admin.ctl", "--config", config, "cert", "install"],
            env={**environment, "RENEWED_LINEAGE": str(lineage)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        path = data / "tls" / f"{HOST}.pem"
        assert done.stdout.startswith(f"{path}: {HOST}, until ")
        for one, mode in ((path.parent, 0o700), (path, 0o600)):
            assert (one.stat().st_uid, one.stat().st_mode & 0o777) == (65534, mode)
        assert read_certificate(path).names == (HOST,)


def test_acme_works_under_the_sandbox_of_the_unit(tmp_path, certificate_authority):
    """Started without root: the web on a port below 1024, the child with its library, new files, and the reload."""
    require("systemd-analyze", "systemd")
    user = pwd.getpwnam("mail")
    with contextlib.ExitStack() as stack:
        dns = DnsServer()
        stack.callback(dns.close)
        dns.add(HOST, "A", "127.0.0.1")
        web = next(p for p in random.SystemRandom().sample(range(200, 1000), 200) if not answers(p))
        pebble = Pebble(tmp_path, certificate_authority.issue("pebble-sandbox"), dns=dns.spec, http_port=web)
        pebble.start()
        stack.callback(pebble.stop)
        server = Appliance(own_certificate=False)
        stack.callback(server.remove)
        roots = server.directory / "ca.pem"
        roots.write_bytes(pebble.ca_file.read_bytes())
        server.extra = {
            "dns": f'nameservers = ["{dns.spec}"]',
            "web": f'listen = ["127.0.0.1:{web}"]',
            "acme": f'enabled = true\ndirectory_url = "{pebble.directory_url}"\nca_file = "{roots}"',
        }
        server.write_config()
        server.python, server.environment = python_for("mail")
        server.wrapper = [server.python, sandbox.__file__, str(UNIT), str(server.directory), "mail"]
        tried = subprocess.run(
            [*server.wrapper, "/bin/true"], env=server.environment, capture_output=True, text=True, timeout=60
        )
        if tried.returncode:
            pytest.skip(f"this machine permits no such sandbox: {tried.stderr.strip().splitlines()[-1]}")
        server.populate()
        for path in (server.directory, *server.directory.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        server.start()
        wait_for(lambda: "event=certificate_issued" in server.log() or "_not_" in server.log(), timeout_s=60, what="it")
        assert f"event=certificate_issued host={HOST}" in server.log()
        assert read_certificate(server.directory / "data" / "tls" / f"{HOST}.pem").issuer.startswith("Pebble")
        wait_for(lambda: "event=configuration_reloaded" in server.log(), what="the reload")
        assert server.stop() == 0
        assert "Operation not permitted" not in server.log()
