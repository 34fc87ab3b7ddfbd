"""From nothing to a server that proves itself: set up on a machine of its own, with a real name server (nsd) that
serves what `dns records --zone` says, and a real certificate authority (pebble) that looks at port 80."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.machine import Machine, is_possible
from support.programs import require
from support.tls import CertificateAuthority
from support.wait import wait_for

HOST, DOMAIN = "mx.example.com", "example.com"
V4, V6 = "93.184.215.14", "2606:2800:21f:cb07::14"  # seen by others, were there others
AUTHORITY = ("env", "PEBBLE_VA_NOSLEEP=1", "pebble", "-config", "/etc/pebble.json", "-dnsserver", "127.0.0.1:53")
ZONES = (DOMAIN, "in-addr.arpa", "ip6.arpa", "org")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(is_possible()), reason=f"no machine of its own: {is_possible()}"),
]


@contextmanager
def running(machine: Machine, *words: str, until: str = "") -> Iterator[list[str]]:
    """A server in the machine; its output so far. `until`: a word that it prints when it is ready."""
    process = machine.start(*words)
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)  # noqa: PERF402  # as they come

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: process.poll() is not None or any(until in line for line in [*lines, ""]), timeout_s=30)
        assert process.poll() is None, "".join(lines[-30:])
        yield lines
    except AssertionError:
        print(words[0], "".join(lines[-40:]), sep="\n")
        raise
    finally:
        machine.kill(process)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def publish(machine: Machine, lines: list[str]) -> None:
    """Zone files for nsd."""
    zones = machine.root / "zones"
    zones.mkdir(exist_ok=True)
    head = "$TTL 60\n@ IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60\n@ IN NS ns.example.com.\n"
    for zone in ZONES:
        mine = [line for line in lines if line.partition(". IN ")[0].endswith(zone) and not line.startswith(";")]
        (zones / zone).write_text(f"$ORIGIN {zone}.\n{head}" + "\n".join(mine) + "\n")
    options = ["ip-address: 127.0.0.1", "port: 53", 'zonesdir: "/zones"', "server-count: 1"]
    options += [f'{key}: ""' for key in ("username", "pidfile", "chroot", "database", "xfrdfile", "zonelistfile")]
    blocks = [f'zone:\n  name: "{zone}"\n  zonefile: "{zone}"\n' for zone in ZONES]
    text = "server:\n" + "".join(f"  {option}\n" for option in options)
    (machine.root / "nsd.conf").write_text(text + "remote-control:\n  control-enable: no\n" + "".join(blocks))


def authority(machine: Machine, certificates: CertificateAuthority) -> None:
    files = certificates.issue("pebble-machine")
    for source, name in ((files.certificate, "cert.pem"), (files.private_key, "key.pem"), (files.ca, "ca.pem")):
        shutil.copy(source, machine.root / "etc" / name)
    config = {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
        "certificate": "/etc/cert.pem", "privateKey": "/etc/key.pem", "httpPort": 80, "tlsPort": 443,
        "ocspResponderURL": "", "externalAccountBindingRequired": False,
    }  # fmt: skip
    (machine.root / "etc/pebble.json").write_text(json.dumps({"pebble": config}))


SEND = """
import smtplib, ssl, urllib.request
ours = ssl.create_default_context(cafile="/etc/ca.pem")
roots = urllib.request.urlopen("https://localhost:15000/roots/0", context=ours)
trusted = ssl.create_default_context(cadata=roots.read().decode())
s = smtplib.SMTP("mx.example.com", 25, "client.example.net", timeout=30)
s.starttls(context=trusted)
s.sendmail("x@example.net", ["alice@example.com"], "From: x@example.net\\r\\nTo: alice@example.com\\r\\n"
    "Subject: over TLS\\r\\nMessage-ID: <1@example.net>\\r\\n"
    "Date: Tue, 24 Nov 2026 10:00:00 +0000\\r\\n\\r\\nhello\\r\\n")
policy = urllib.request.urlopen("https://mta-sts.example.com/.well-known/mta-sts.txt", context=trusted).read().decode()
assert "mx: mx.example.com" in policy, policy
"""


def test_set_up_published_certified_and_received(tmp_path: Path, certificate_authority: CertificateAuthority) -> None:
    nsd, ip = require("nsd", "nsd"), require("ip", "iproute2")
    require("pebble", "pebble")
    with Machine(tmp_path) as machine:
        for words in (
            ("addr", "add", f"{V4}/32", "dev", "lo"), ("route", "add", "default", "dev", "lo", "src", V4),
            ("-6", "addr", "add", f"{V6}/128", "dev", "lo"), ("-6", "route", "add", "default", "dev", "lo", "src", V6),
        ):  # fmt: skip
            machine.run(ip, *words)
        (machine.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2\n")
        (machine.root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        publish(machine, [])
        authority(machine, certificate_authority)
        setup = ("pymxctl", "setup", HOST, "--domain", DOMAIN, "--user", f"alice@{DOMAIN}", "--yes")
        with running(machine, nsd, "-d", "-c", "/nsd.conf"):
            wait_for(lambda: not _dig(machine), timeout_s=20, what="nsd answers")
            said = machine.run(*setup).stdout
            assert f"the server's name {HOST} is not in DNS" in said
            assert f"the address {V4} has no name in reverse DNS" in said
            assert "does not validate DNSSEC" in said
        config = machine.root / "etc/pymx/pymx.toml"
        text = config.read_text().replace(
            "[acme]\n", '[acme]\ndirectory_url = "https://localhost:14000/dir"\nca_file = "/etc/ca.pem"\n'
        )
        config.write_text(text + f'\n[outbound]\nsource_addresses = ["{V4}", "{V6}"]\n')
        zone = machine.run("pymxctl", "dns", "records", "--zone").stdout.splitlines()
        assert f"{HOST}. IN A {V4}" in zone
        assert f"{HOST}. IN AAAA {V6}" in zone
        publish(machine, zone)
        with (
            running(machine, nsd, "-d", "-c", "/nsd.conf"),
            running(machine, *AUTHORITY),
            running(machine, "pymx", "serve", "--config", "/etc/pymx/pymx.toml", until="ready"),
        ):  # fmt: skip
            tls = machine.root / "var/lib/pymx/tls"
            wanted = {f"{HOST}.pem", f"{DOMAIN}.pem"}
            wait_for(lambda: wanted <= {p.name for p in tls.glob("*.pem")}, timeout_s=120, what="the certificates")
            done = machine.run("pymxctl", "dns", "check", check=False)
            assert done.returncode == 0, done.stdout
            assert "FAIL" not in done.stdout
            wait_for(lambda: _send(machine) == "", timeout_s=60, what="mail is taken over TLS with the new certificate")
            home = machine.root / "var/vmail" / DOMAIN / "alice"
            wait_for(lambda: _has_mail(home), timeout_s=30, what="the mail is in the mailbox")
            findings = json.loads(machine.run("pymxctl", "doctor", "--json", check=False).stdout)["findings"]
            bad = {f["id"].partition(":")[0]: f["sentence"] for f in findings if f["severity"] == "fail"}
            assert set(bad) <= {"outbound", "disk"}, bad  # there is no world outside
            assert machine.run(*setup, "--dry-run", "--skip-checks").stdout == "Nothing is missing.\n"


def _has_mail(home: Path) -> bool:
    return any("over TLS" in path.read_text() for path in home.rglob("*") if path.parent.name in ("new", "cur"))


def _dig(machine: Machine) -> str:
    ask = "import socket; socket.create_connection(('127.0.0.1', 53), 2)"
    return machine.run("python", "-c", ask, check=False).stderr


def _send(machine: Machine) -> str:
    done: subprocess.CompletedProcess[str] = machine.run("python", "-c", SEND, check=False)
    return done.stderr
