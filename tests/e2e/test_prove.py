"""`pymxctl doctor --prove` between two whole servers: what is said when all is well, and when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.sinks import ScriptedRemote
from support.wait import wait_for

SOURCES = ("127.0.0.2", "127.0.0.3")


@dataclass
class Pair:
    """`near` is example.test, which proves itself; `far` is other.test, where bob reads."""

    near: Appliance
    far: Appliance
    dns: DnsServer
    password: Path

    def prove(
        self, *words: str, to: str = "bob@other.test", sender: str = "alice@example.test", wait: str = "40"
    ) -> tuple[int, list[dict[str, str]]]:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "pymxctl"), "--config", str(self.near.config), "doctor", "--json",
                "--prove", to, "--from", sender, "--wait", wait, *words,
            ],
            env=os.environ | {"SSL_CERT_FILE": str(self.far.directory / "tls" / "cert.pem")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def over_imap(self, sender: str = "alice@example.test") -> tuple[int, list[dict[str, str]]]:
        url = f"imaps://bob%40other.test@localhost:{self.far.ports['imaps']}"
        return self.prove("--imap-url", url, "--imap-password-file", str(self.password), sender=sender)

    def new_sender(self, domain: str, *, policy: str, addresses: str) -> str:
        """An account here in a domain of its own, with a DMARC policy and what SPF lets send."""
        self.near.ctl("domain", "add", domain)
        self.near.add_user(f"carol@{domain}")
        self.dns.add(domain, "TXT", f'"v=spf1 {addresses} -all"')
        self.dns.add(f"_dmarc.{domain}", "TXT", f'"v=DMARC1; p={policy}"')
        return f"carol@{domain}"

    @contextmanager
    def scripted(self, domain: str, address: str, **replies: str) -> Iterator[ScriptedRemote]:
        """Another domain's server, without TLS."""
        remote = ScriptedRemote(dict(replies), address=address, port=self.far.ports["smtp"])
        self.dns.add(domain, "MX", f"10 mx.{domain}")
        self.dns.add(f"mx.{domain}", "A", address)
        remote.start()
        try:
            yield remote
        finally:
            remote.stop()


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


def test_a_probe_that_was_taken_for_junk_is_told_with_its_folder(pair: Pair) -> None:
    """Signed with a key that nobody published, from where SPF lets nobody send: DMARC's quarantine."""
    sender = pair.new_sender("forged.test", policy="quarantine", addresses="")
    pair.near.ctl("dkim", "generate", "forged.test", "--algorithm", "ed25519")
    status, findings = pair.over_imap(sender)
    assert status == 1
    for source in SOURCES:
        found = about(findings, source)
        assert found["arrival"]["severity"] == "ok"
        assert found["junk"]["severity"] == "warn"
        assert found["junk"]["sentence"] == f"the probe from {source} was filed to Junk"
        assert "mark it as no junk" in found["junk"]["remedy"]
        assert {found[method]["severity"] for method in ("spf", "dkim", "dmarc")} == {"fail"}, found
        assert found["dmarc"]["sentence"] == f"mx.other.test says DMARC fail for the probe from {source}"


def test_an_unsigned_probe_is_told_whatever_becomes_of_it(pair: Pair) -> None:
    """SPF carries DMARC, so it arrives and is believed; but there is no key."""
    sender = pair.new_sender("keyless.test", policy="reject", addresses="ip4:127.0.0.2 ip4:127.0.0.3")
    status, findings = pair.over_imap(sender)
    assert status == 1
    found = about(findings, "127.0.0.2")
    assert found["unsigned"]["severity"] == "fail"
    assert found["unsigned"]["sentence"] == "the probe was not signed: keyless.test has no DKIM key"
    assert found["unsigned"]["remedy"] == "pymxctl dkim generate keyless.test"
    assert {name for name, f in found.items() if f["severity"] == "ok"} >= {"arrival", "spf", "dmarc"}, found
    assert found["dkim"]["severity"] != "ok"
    assert "junk" not in found


def test_a_probe_in_the_clear_is_told(pair: Pair) -> None:
    """The other server offers no STARTTLS; its answer has no word on SPF and its fellows."""
    with pair.scripted("plain.test", "127.0.0.5") as remote:
        ended = threading.Event()

        def answer() -> None:
            answered = 0
            while not ended.wait(0.1):
                for message in remote.messages[answered:]:
                    answered += 1
                    text = message.content.decode()
                    subject = next(line for line in text.splitlines() if line.startswith("Subject:"))
                    pair.near.submit("bob", "alice@example.test", "Re: " + subject[9:], "You sent:\n\n" + text)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            status, findings = pair.prove(to="bob@plain.test")
        finally:
            ended.set()
            thread.join()
    assert status == 1
    for source in SOURCES:
        found = about(findings, source)
        assert found["arrival"]["severity"] == "ok"
        assert " over " not in found["arrival"]["sentence"]
        assert found["tls"]["severity"] == "warn"
        assert found["tls"]["sentence"].startswith(f"the probe from {source} went in the clear")
        assert found["tls"]["remedy"].startswith("pymxctl trace ")
        assert "does not say whether SPF, DKIM and DMARC passed" in found["results"]["sentence"]


def test_a_probe_that_is_put_off_is_told_in_the_others_words(pair: Pair) -> None:
    with pair.scripted("later.test", "127.0.0.6", RCPT="451 4.7.1 not now") as remote:
        status, findings = pair.prove(to="bob@later.test", wait="8")
        assert remote.commands
    assert status == 1
    found = about(findings, "127.0.0.2")["all"]
    assert found["severity"] == "fail"
    assert found["sentence"] == "the probe from 127.0.0.2 is put off by the other server: 451 4.7.1 not now"
    assert found["remedy"]
