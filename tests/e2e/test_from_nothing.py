"""From nothing to a server that proves itself: a fresh system, set up, published, certified, and written to over TLS.

The machine is a root directory of its own (made by debootstrap, with its own Python) with a network of its own. At the
other end of its cable are a real name server (nsd), which serves what `dns records --zone` says, a real certificate
authority (pebble), which looks at port 80, and the client that writes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import distribution
from support.distribution import Distribution
from support.machine import Machine, is_possible
from support.outside import connected
from support.programs import require
from support.tls import CertificateAuthority
from support.wait import wait_for

HOST, DOMAIN = "mx.example.com", "example.com"
V4, V6 = "93.184.215.14", "2606:2800:21f:cb07::14"
ROUTER, ROUTER6 = "93.184.215.1", "2606:2800:21f:cb07::1"
ZONES = (DOMAIN, "in-addr.arpa", "ip6.arpa", "org")

pytestmark = [
    pytest.mark.timeout(540),
    pytest.mark.skipif(bool(is_possible()), reason=f"no machine of its own: {is_possible()}"),
]


@contextmanager
def running(command: list[str], until: str = "") -> Iterator[list[str]]:
    """A server; its output so far. `until`: a word that it prints when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)  # noqa: PERF402  # as they come

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: process.poll() is not None or any(until in line for line in [*lines, ""]), timeout_s=60)
        assert process.poll() is None, "".join(lines[-30:])
        yield lines
    except AssertionError:
        print(command, "".join(lines[-40:]), sep="\n")
        raise
    finally:
        Machine.kill(process)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


class World:
    """What is at the other end of the cable. `there` is a command that runs another one in its network."""

    def __init__(self, directory: Path, there: list[str], certificates: CertificateAuthority) -> None:
        self._directory = directory
        self._there = there
        self._zones = directory / "zones"
        self._zones.mkdir()
        self._tls = certificates.issue("pebble-machine", names=(ROUTER,))
        self._authority()
        self.publish([])

    def publish(self, lines: list[str]) -> None:
        """Zone files for nsd."""
        head = "$TTL 60\n@ IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60\n@ IN NS ns.example.com.\n"
        for zone in ZONES:
            mine = [line for line in lines if line.partition(". IN ")[0].endswith(zone) and not line.startswith(";")]
            (self._zones / zone).write_text(f"$ORIGIN {zone}.\n{head}" + "\n".join(mine) + "\n")
        options = [f"ip-address: {ROUTER}", "port: 53", f'zonesdir: "{self._zones}"', "server-count: 1"]
        options += [f'{key}: ""' for key in ("username", "pidfile", "chroot", "database", "xfrdfile", "zonelistfile")]
        blocks = [f'zone:\n  name: "{zone}"\n  zonefile: "{zone}"\n' for zone in ZONES]
        text = "server:\n" + "".join(f"  {option}\n" for option in options)
        config = text + "remote-control:\n  control-enable: no\n" + "".join(blocks)
        (self._directory / "nsd.conf").write_text(config)

    @contextmanager
    def name_server(self) -> Iterator[None]:
        command = [require("nsd", "nsd"), "-d", "-c", str(self._directory / "nsd.conf")]
        with running([*self._there, *command]):
            ask = f"import socket; socket.create_connection(('{ROUTER}', 53), 2)"
            wait_for(lambda: not self.run("-c", ask).returncode, timeout_s=20, what="nsd answers")
            yield

    def _authority(self) -> None:
        config = {
            "listenAddress": f"{ROUTER}:14000", "managementListenAddress": f"{ROUTER}:15000",
            "certificate": str(self._tls.certificate), "privateKey": str(self._tls.private_key),
            "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": False,
        }  # fmt: skip
        (self._directory / "pebble.json").write_text(json.dumps({"pebble": config}))

    def certificate_authority(self) -> list[str]:
        pebble = [require("pebble", "pebble"), "-config", str(self._directory / "pebble.json")]
        return [*self._there, "env", "PEBBLE_VA_NOSLEEP=1", *pebble, "-dnsserver", f"{ROUTER}:53"]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Python, out there."""
        return subprocess.run([*self._there, sys.executable, *words], capture_output=True, text=True, timeout=90)

    def send(self) -> str:
        """What went wrong."""
        return self.run("-c", SEND, str(self._tls.ca), ROUTER, V4).stderr


SEND = """
import smtplib, socket, ssl, sys, urllib.request
ca, router, server = sys.argv[1:]
ours = ssl.create_default_context(cafile=ca)
roots = urllib.request.urlopen(f"https://{router}:15000/roots/0", context=ours)
trusted = ssl.create_default_context(cadata=roots.read().decode())
s = smtplib.SMTP(server, 25, "client.example.net", timeout=30)
s._host = "mx.example.com"  # whose certificate it must be
s.starttls(context=trusted)
s.sendmail("x@example.net", ["alice@example.com"], "From: x@example.net\\r\\nTo: alice@example.com\\r\\n"
    "Subject: over TLS\\r\\nMessage-ID: <1@example.net>\\r\\n"
    "Date: Tue, 24 Nov 2026 10:00:00 +0000\\r\\n\\r\\nhello\\r\\n")
name = "mta-sts.example.com"
with trusted.wrap_socket(socket.create_connection((server, 443), 30), server_hostname=name) as tls:
    tls.sendall(f"GET /.well-known/mta-sts.txt HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    policy = b"".join(iter(lambda: tls.recv(65536), b""))
assert b"mx: mx.example.com" in policy, policy
"""


@pytest.mark.parametrize(
    "system",
    [
        pytest.param(distribution.DEBIAN_12, id="debian-12"),
        pytest.param(distribution.DEBIAN_13, id="debian-13", marks=pytest.mark.soak),
        pytest.param(distribution.UBUNTU_24, id="ubuntu-24.04", marks=pytest.mark.soak),
    ],
)
def test_set_up_published_certified_and_received(
    system: Distribution, tmp_path: Path, certificate_authority: CertificateAuthority
) -> None:
    tree = distribution.install(system, tmp_path)
    with (
        Machine(tmp_path, tree, distribution.PROGRAMS) as machine,
        connected(machine, [f"{V4}/24", f"{V6}/64"], [f"{ROUTER}/24", f"{ROUTER6}/64"]) as there,
    ):
        world = World(tmp_path, there, certificate_authority)
        (machine.root / "etc/resolv.conf").write_text(f"nameserver {ROUTER}\noptions timeout:2\n")
        setup = ("pymxctl", "setup", HOST, "--domain", DOMAIN, "--user", f"alice@{DOMAIN}", "--yes")
        with world.name_server():
            said = machine.run(*setup).stdout
        assert f"the server's name {HOST} is not in DNS" in said
        assert f"the address {V4} has no name in reverse DNS" in said
        assert "does not validate DNSSEC" in said
        assert "There is no certificate yet, so there are no TLSA and CAA records here." in said
        configure(machine, certificate_authority)
        zone = machine.run("pymxctl", "dns", "records", "--zone").stdout.splitlines()
        assert f"{HOST}. IN A {V4}" in zone
        assert f"{HOST}. IN AAAA {V6}" in zone
        world.publish(zone)
        with world.name_server(), running(world.certificate_authority()), running(unit_command(machine), "ready"):
            tls = machine.root / "var/lib/pymx/tls"
            wanted = {f"{HOST}.pem", f"{DOMAIN}.pem"}
            wait_for(lambda: wanted <= {p.name for p in tls.glob("*.pem")}, timeout_s=120, what="the certificates")
            assert f"_25._tcp.{HOST}. IN TLSA 3 1 1 " in machine.run("pymxctl", "dns", "records", "--zone").stdout
            done = machine.run("pymxctl", "dns", "check", check=False)
            assert done.returncode == 0, done.stdout
            assert "FAIL" not in done.stdout
            wait_for(lambda: world.send() == "", timeout_s=60, what="mail is taken over TLS with the new certificate")
            home = machine.root / "var/vmail" / DOMAIN / "alice"
            wait_for(lambda: _has_mail(home), timeout_s=30, what="the mail is in the mailbox")
            findings = json.loads(machine.run("pymxctl", "doctor", "--json", check=False).stdout)["findings"]
            bad = {f["id"].partition(":")[0]: f["sentence"] for f in findings if f["severity"] == "fail"}
            assert set(bad) <= {"outbound", "disk"}, (
                bad
            )  # there are no other mail servers, and it is this machine's disk
            assert machine.run(*setup, "--dry-run", "--skip-checks").stdout == "Nothing is missing.\n"
    shutil.rmtree(tree)


def configure(machine: Machine, certificates: CertificateAuthority) -> None:
    """As after setup, but for the authority."""
    shutil.copy(certificates.file, machine.root / "etc/ca.pem")
    config = machine.root / "etc/pymx/pymx.toml"
    text = config.read_text().replace(
        "[acme]\n", f'[acme]\ndirectory_url = "https://{ROUTER}:14000/dir"\nca_file = "/etc/ca.pem"\n'
    )
    config.write_text(text + f'\n[outbound]\nsource_addresses = ["{V4}", "{V6}"]\n')


def unit_command(machine: Machine) -> list[str]:
    """What systemd would start."""
    unit = (machine.root / "etc/systemd/system/pymx.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    return machine.command(*start.split())


def _has_mail(home: Path) -> bool:
    return any("over TLS" in path.read_text() for path in home.rglob("*") if path.parent.name in ("new", "cur"))
