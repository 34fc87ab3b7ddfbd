"""REQUIRETLS from a mail client to a mailbox of another server, over DANE (RFC 8689), and what comes back elsewhere.

mx.first.test sends. mx.second.test is signed, and its key is in a TLSA record. plain.test leads to the same server, but
its zone is not signed.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import hashlib
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.appliance import Appliance
from support.dnssec import ValidatingResolver
from support.wait import wait_for

from pymx.accounts import passwords
from pymx.accounts.registry import Registry
from pymx.config.model import Database

WAIT_S = 30


@dataclass
class Pair:
    first: Appliance
    second: Appliance

    def submit(
        self, to: str, subject: str, *, options: tuple[str, ...] = (), fields: dict[str, str] | None = None
    ) -> None:
        """From alice@first.test."""
        message = EmailMessage()
        for name, value in {"From": "alice@first.test", "To": to, "Subject": subject, **(fields or {})}.items():
            message[name] = value
        message.set_content("a secret\n")
        with smtplib.SMTP_SSL(
            "localhost", self.first.ports["submissions"], context=self.first.tls, timeout=WAIT_S
        ) as client:
            client.login("alice@first.test", "secret")
            client.sendmail("alice@first.test", [to], message.as_bytes(policy=email.policy.SMTP), options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(ValidatingResolver(tmp_path_factory.mktemp("dns")))
        servers = {"dns": f'nameservers = ["{dns.spec}"]\n'}
        second = Appliance(hostname="mx.second.test", extra=servers)
        stack.callback(second.remove)
        port = second.ports["smtp"]
        first = Appliance(
            hostname="mx.first.test",
            extra={
                **servers,
                "outbound": f"port = {port}\nallow_private = true\nretry_first = 1\nretry_max_s = 2\nmta_sts = false\n",
            },
        )
        stack.callback(first.remove)
        certificate = x509.load_pem_x509_certificate(Path(second.directory / "tls" / "cert.pem").read_bytes())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = hashlib.sha256(key).hexdigest()
        dns.zone("second.test", f"@ MX 10 mx\nmx A 127.0.0.1\n_{port}._tcp.mx TLSA 3 1 1 {digest}")
        dns.zone("first.test", "@ MX 10 mx\nmx A 127.0.0.1", signed=False)
        dns.zone("plain.test", "@ MX 10 mx\nmx A 127.0.0.1", signed=False)
        dns.start()
        for server, user in ((first, "alice"), (second, "bob")):
            registry = Registry(Database(url=server.database_url))
            registry.add_domain(server.domain)
            registry.add_user(server.address(user), passwords.make("secret", 4))
            registry.close()
            stack.callback(server.stop)
            server.start()
        yield Pair(first, second)


def test_a_message_with_requiretls_arrives_over_authenticated_tls(pair: Pair) -> None:
    """RFC 8689 s. 4.2.1: from the client's MAIL to the next server's."""
    pair.submit("bob@second.test", "sealed", options=("REQUIRETLS",))
    wait_for(lambda: "sealed" in pair.second.subjects("bob"), timeout_s=WAIT_S, what="the message is there")
    lines = [line for line in pair.first.log().splitlines() if "mx=mx.second.test" in line and "delivered" in line]
    assert lines
    assert all(" dane" in line for line in lines)


def test_a_message_with_requiretls_that_can_not_be_kept_so_comes_back(pair: Pair) -> None:
    """RFC 8689 s. 4.2.1, 4.3: 5.7.30, a sentence that says it, and nothing of the content."""
    pair.submit("bob@plain.test", "unsealed", options=("REQUIRETLS", "RET=FULL"))

    def bounce() -> str:
        with pair.first.imap("alice") as client:
            client.select("INBOX", readonly=True)
            _, found = client.search(None, "FROM", "MAILER-DAEMON")
            if not found[0]:
                return ""
            _, data = client.fetch(found[0].split()[-1].decode(), "(BODY.PEEK[])")
            return data[0][1].decode()  # type: ignore[index,union-attr]

    text = wait_for(bounce, timeout_s=WAIT_S, what="the bounce is there")
    assert "Status: 5.7.30" in text
    assert "You asked for encryption all the way" in text
    assert "Subject: unsealed" in text
    assert "a secret" not in text
    assert "unsealed" not in pair.second.subjects("bob")


def test_what_is_asked_for_is_kept_in_the_queue(pair: Pair) -> None:
    """The wish is in the content file, not only in memory: it outlives the server."""
    pair.second.stop()
    pair.submit("bob@second.test", "waiting", options=("REQUIRETLS",))
    wait_for(lambda: pair.first.ctl_json("queue", "list"), timeout_s=WAIT_S, what="it waits")
    pair.first.kill()
    assert any(
        b'"requiretls":true' in f.read_bytes() for f in (pair.first.directory / "data").rglob("queue/messages/*")
    )
    pair.second.start()
    pair.first.start()
    wait_for(lambda: "waiting" in pair.second.subjects("bob"), timeout_s=WAIT_S, what="the message is there")
