"""MTA-STS with a running server (RFC 8461): the policy comes over HTTPS at port 443, is met, kept, and enforced.

Port 443 is no setting, so the policy host has a loopback address of its own here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.policy_server import Page, PolicyServer
from support.sinks import ScriptedRemote
from support.tls import CertificateAuthority
from support.wait import wait_for

POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx.far.test\r\nmax_age: 604800\r\n"


@dataclass
class Sending:
    server: Appliance
    far: ScriptedRemote
    web: PolicyServer
    authority: CertificateAuthority

    def attempts(self, to: str) -> list[str]:
        return [x for x in self.server.log().splitlines() if "event=delivery_attempt" in x and f"rcpt_to={to}" in x]


@pytest.fixture
def sending(certificate_authority: CertificateAuthority) -> Iterator[Sending]:
    address = f"127.{random.randint(2, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"
    web_files = certificate_authority.issue("sts-served-web", ("mta-sts.far.test",))
    try:
        web = PolicyServer(web_files.server_context(), address, 443)
        web.__enter__()
    except PermissionError:
        pytest.skip("port 443 needs root")
    far = ScriptedRemote(tls=certificate_authority.issue("sts-served-mx", ("mx.far.test",)).server_context())
    far.start()
    dns = DnsServer()
    dns.zone("far.test", f'@ MX 10 mx\nmx A 127.0.0.1\nmta-sts A {address}\n_mta-sts TXT "v=STSv1; id=1"', ttl=1)
    server = Appliance(
        extra={
            "outbound": f"port = {far.port}\nallow_private = true\nretry_first = 1\nretry_max_s = 1\n"
            f'keep_connection_s = 0\nca_file = "{web_files.ca}"\n',
            "dns": f'nameservers = ["{dns.spec}"]\n',
        }
    )
    try:
        server.populate()
        server.start()
        web.answer = Page(POLICY)
        yield Sending(server, far, web, certificate_authority)
        assert server.stop() == 0
    finally:
        server.remove()
        dns.close()
        far.stop()
        web.__exit__(None, None, None)


def test_a_policy_is_fetched_met_and_enforced_over_a_kill(sending: Sending, tmp_path: Path) -> None:
    """Kept on disk, in force without its web server, never in the clear, and what waits says why."""
    server, far, web = sending.server, sending.far, sending.web
    server.submit("alice", "a@far.test", "first")
    wait_for(lambda: len(far.messages) == 1, what="the first message")
    assert far.messages[0].tls
    assert web.requests == [("mta-sts.far.test", "/.well-known/mta-sts.txt")]
    (line,) = wait_for(lambda: sending.attempts("a@far.test"), what="the attempt in the log")
    assert " verified" in line
    assert "event=sts_policy_fetched" in server.log()
    wait_for(lambda: server.ctl_json("queue", "list") == [], what="the end of the first one, on disk")
    server.kill()
    web.answer = Page(b"", 404)
    far.tls = sending.authority.issue("sts-served-bad", ("mx.other.test",)).server_context()
    server.start()
    server.submit("alice", "b@far.test", "second")
    wait_for(lambda: sending.attempts("b@far.test"), what="a try")
    far.tls = None
    tries = len(sending.attempts("b@far.test"))
    wait_for(lambda: len(sending.attempts("b@far.test")) > tries, what="a try of a server without TLS")
    (waiting,) = server.ctl_json("queue", "list")
    shown = server.ctl_json("queue", "show", waiting["queue_id"])
    said = [attempt["reply"] for attempt in shown["attempts"]]
    assert any("mx.far.test" in text or "certificate" in text.lower() for text in said), said
    assert any("STARTTLS" in text for text in said), said
    assert len(far.messages) == 1
    assert not any(c.startswith("MAIL") for c in far.commands[far.commands.index("DATA") :])
    far.tls = sending.authority.issue("sts-served-good", ("mx.far.test",)).server_context()
    server.ctl("queue", "retry", "--all")
    wait_for(lambda: len(far.messages) == 2, what="the second message")
    assert far.messages[1].tls
