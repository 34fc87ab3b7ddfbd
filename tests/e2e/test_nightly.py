"""`pymxctl doctor --nightly` on a running server: the postmaster gets a mail, and only about what changed."""

from __future__ import annotations

import email
import email.policy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.wait import wait_for


@pytest.fixture
def site() -> Iterator[tuple[Appliance, DnsServer]]:
    dns = DnsServer()
    appliance = Appliance(
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\ntimeout_s = 2\n',
            "outbound": 'allow_private = true\nsource_addresses = ["127.0.0.1", "::1"]\n',
        }
    )
    appliance.populate()
    appliance.ctl("dkim", "generate", "example.test", "--algorithm", "ed25519")
    dns.add("org", "SOA", "a. b. 1 2 3 4 5")
    for record in appliance.ctl_json("dns", "records")["records"]:
        if record["kind"] != "tlsa":
            dns.add(record["name"], record["type"], record["zone"].partition(f" IN {record['type']} ")[2].strip("( )"))
    try:
        yield appliance.start(), dns
    finally:
        appliance.stop()
        appliance.remove()
        dns.close()


def letters(appliance: Appliance) -> list[str]:
    """The texts of the doctor's letters, in order."""
    with appliance.imap("alice") as client:
        count = int(client.select("INBOX", readonly=True)[1][0])
        if not count:
            return []
        parts = [part[1] for part in client.fetch("1:*", "(BODY.PEEK[])")[1] if isinstance(part, tuple)]
    return [str(email.message_from_bytes(p, policy=email.policy.default).get_content()) for p in parts]


def test_a_mail_comes_only_when_something_changed(site: tuple[Appliance, DnsServer]) -> None:
    appliance, dns = site

    def night() -> dict[str, object]:
        done = appliance.ctl("doctor", "--nightly", "--second-look", "0", "--json")
        return dict(json.loads(done.stdout))

    night()  # whatever this machine lacks: a clock that is kept, a backup
    wait_for(lambda: len(letters(appliance)) == 1, timeout_s=30, what="the first letter")
    assert night()["mailed"] is False
    dns.remove("_dmarc.example.test", "TXT")
    found = night()
    assert (found["mailed"], found["new"], found["over"]) == (True, ["dns.dmarc:_dmarc.example.test"], 0)
    wait_for(lambda: len(letters(appliance)) == 2, timeout_s=30, what="the second letter")
    text = letters(appliance)[1]
    assert text.startswith("New since the last check:")
    assert "example.test has no DMARC record" in text
    assert "why: Google, Yahoo and Microsoft" in text
    assert 'do:  publish: _dmarc.example.test. IN TXT "v=DMARC1' in text
    assert "no backup" not in text  # known since the first night
    dns.add("_dmarc.example.test", "TXT", '"v=DMARC1; p=reject; rua=mailto:postmaster@example.test"')
    night()
    wait_for(lambda: len(letters(appliance)) == 3, timeout_s=30, what="the third letter")
    assert letters(appliance)[2].startswith("Over:")
    # nobody is mailed while the server is down: the text is printed, and it is said again
    appliance.stop()
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "pymxctl"), "--config", str(appliance.config),
            "doctor", "--nightly", "--second-look", "0",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pymx is not running" in done.stderr
    appliance.start()
    assert night()["mailed"] is False
