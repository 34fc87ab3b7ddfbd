"""`pymxctl doctor --prove` between two whole servers: what is said when all is well, and when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.wait import wait_for

SOURCES = ("127.0.0.2", "127.0.0.3")


@dataclass
class Pair:
    """`near` is example.test, which proves itself; `far` is other.test, where bob reads."""

    near: Appliance
    far: Appliance
    dns: DnsServer
    password: Path

    def prove(self, *words: str, to: str = "bob@other.test", wait: str = "40") -> tuple[int, list[dict[str, str]]]:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "pymxctl"), "--config", str(self.near.config), "doctor", "--json",
                "--prove", to, "--from", "alice@example.test", "--wait", wait, *words,
            ],
            env=os.environ | {"SSL_CERT_FILE": str(self.far.directory / "tls" / "cert.pem")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def over_imap(self) -> tuple[int, list[dict[str, str]]]:
        url = f"imaps://bob%40other.test@localhost:{self.far.ports['imaps']}"
        return self.prove("--imap-url", url, "--imap-password-file", str(self.password))


def appliance(hostname: str, dns: DnsServer, outbound: str) -> Appliance:
    made = Appliance(
        hostname=hostname,
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\ntimeout_s = 2\nmax_ttl_s = 1\n',
            "outbound": f"allow_private = true\n{outbound}\n",
        },
    )
    made.populate()
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    dns = DnsServer()
    near = Appliance(hostname="mx.example.test")  # its ports
    far = appliance(
        "mx.other.test",
        dns,
        f'route = [{{ domain = "example.test", host = "127.0.0.1", port = {near.ports["smtp"]} }}]',
    )
    near.extra = {
        "dns": f'nameservers = ["{dns.spec}"]\ntimeout_s = 2\n',
        "outbound": f"allow_private = true\nport = {far.ports['smtp']}\nsource_addresses = {json.dumps(SOURCES)}\n",
    }
    near.write_config()
    near.populate()
    near.ctl("dkim", "generate", "example.test", "--algorithm", "ed25519")
    key = near.ctl_json("dkim", "show", "example.test")["records"][0]
    dns.add(key["name"], "TXT", " ".join(f'"{s}"' for s in key["strings"]))
    dns.add("_dmarc.example.test", "TXT", '"v=DMARC1; p=none"')
    dns.add("example.test", "TXT", '"v=spf1 ip4:127.0.0.2 ip4:127.0.0.3 -all"', ttl=1)
    dns.add("other.test", "MX", "10 mx.other.test")
    dns.add("mx.other.test", "A", "127.0.0.1")
    password = tmp_path_factory.mktemp("prove") / "password"
    password.write_text("secret\n")
    try:
        yield Pair(near.start(), far.start(), dns, password)
    finally:
        for one in (near, far):
            one.stop()
            one.remove()
        dns.close()


def about(findings: list[dict[str, str]], source: str) -> dict[str, dict[str, str]]:
    head = f"prove:{source}"
    return {f["id"].removeprefix(head).lstrip(":") or "all": f for f in findings if f["id"].startswith(head)}


def test_from_every_address_it_arrives_and_is_believed(pair: Pair) -> None:
    """The other server's own words, read over IMAP."""
    status, findings = pair.over_imap()
    for source in SOURCES:
        found = about(findings, source)
        assert {name for name, f in found.items() if f["severity"] == "ok"} >= {"arrival", "spf", "dkim", "dmarc"}, (
            found
        )
        assert found["spf"]["sentence"] == f"mx.other.test says that SPF passes from {source}"
    assert status == 0, findings


def test_an_address_that_spf_does_not_know_is_told_apart(pair: Pair) -> None:
    """From one address all is well, from the other SPF fails; DKIM carries DMARC."""
    pair.dns.remove("example.test", "TXT")
    pair.dns.add("example.test", "TXT", '"v=spf1 ip4:127.0.0.2 -all"', ttl=1)
    try:
        found: list[tuple[int, list[dict[str, str]]]] = []
        wait_for(lambda: _spf(pair, found) == "fail", timeout_s=60, what="the far server sees the new record")
        status, findings = found[-1]
    finally:
        pair.dns.remove("example.test", "TXT")
        pair.dns.add("example.test", "TXT", '"v=spf1 ip4:127.0.0.2 ip4:127.0.0.3 -all"', ttl=1)
        # for the tests that come after this one, whichever they are
        wait_for(lambda: _spf(pair, found) == "ok", timeout_s=60, what="the far server sees the old record again")
    assert status == 1
    assert about(findings, "127.0.0.2")["spf"]["severity"] == "ok"
    bad = about(findings, "127.0.0.3")["spf"]
    assert bad["severity"] == "fail"
    assert bad["sentence"] == "mx.other.test says SPF fail for the probe from 127.0.0.3"
    assert "pymxctl dns check" in bad["remedy"]
    assert about(findings, "127.0.0.3")["dmarc"]["severity"] == "ok"


def _spf(pair: Pair, found: list[tuple[int, list[dict[str, str]]]]) -> str:
    found.append(pair.over_imap())
    return about(found[-1][1], "127.0.0.3")["spf"]["severity"]


def test_a_reflector_quotes_what_it_saw(pair: Pair) -> None:
    """Without a mailbox elsewhere: the answer comes to the account that the probe is from."""
    answered: list[str] = []
    ended = threading.Event()

    def reflect() -> None:
        while not ended.wait(0.2):
            with pair.far.imap("bob") as client:
                client.select("INBOX")
                for number in client.search(None, "UNSEEN")[1][0].split():
                    data = client.fetch(number.decode(), "(BODY[HEADER])")[1][0][1].decode()
                    if "Test of mx.example.test" not in data:
                        continue
                    subject = next(line for line in data.splitlines() if line.startswith("Subject:"))
                    quoted = "\n".join("> " + line for line in data.splitlines())
                    pair.far.submit("bob", "alice@example.test", "Re: " + subject[9:], "You sent:\n\n" + quoted + "\n")
                    answered.append(subject)

    with pair.far.imap("bob") as client:
        client.select("INBOX")
        if client.search(None, "ALL")[1][0]:
            client.store("1:*", "+FLAGS", "\\Seen")
    thread = threading.Thread(target=reflect)
    thread.start()
    try:
        _, findings = pair.prove()
    finally:
        ended.set()
        thread.join()
    for source in SOURCES:
        found = about(findings, source)
        assert {name for name, f in found.items() if f["severity"] == "ok"} >= {"arrival", "spf", "dkim", "dmarc"}, (
            found
        )


def test_a_refusal_is_told_in_the_others_words(pair: Pair) -> None:
    status, findings = pair.prove(to="nobody@other.test")
    assert status == 1
    found = about(findings, "127.0.0.2")["all"]
    assert found["sentence"].startswith("the probe from 127.0.0.2 was refused: 550 5.1.1")
