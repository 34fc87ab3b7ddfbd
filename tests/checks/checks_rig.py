"""Checked mail in: real listeners, engine, store and queue, with the checks asking a real name server.

Peers differ by their loopback address; `World.zones` describes some domains:

    good.test      192.0.2.x is nobody here: 127.0.0.2 may send (SPF), DKIM key "k", DMARC p=reject
    softie.test    SPF ~all, DMARC p=quarantine          lax.test     SPF -all, DMARC p=none
    plain.test     exists, has no SPF and no DMARC       *.sub of good.test follow sp=
"""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import compat32
from pathlib import Path
from typing import Any

import pytest
from support.dns_server import DnsServer
from support.flow import HOSTNAME, MailIn, mail_in
from support.tls import TlsFiles

from pymx.checks.build import build_pipeline
from pymx.checks.pipeline import Pipeline
from pymx.config.model import Checks, Config, Dns, Limits, Rspamd
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

ALICE = "alice@example.test"
BOB = "bob@example.test"
GOOD_IP, OTHER_IP = "127.0.0.2", "127.0.0.9"


def zones(dns_server: DnsServer) -> None:
    """The world as the name server tells it."""
    dns_server.zone(
        "good.test",
        """
        @       TXT  "v=spf1 ip4:127.0.0.2 -all"
        @       MX   10 mail
        mail    A    127.0.0.2
        mail    TXT  "v=spf1 ip4:127.0.0.2 -all"
        _dmarc  TXT  "v=DMARC1; p=reject; sp=quarantine"
        sub     A    127.0.0.2
        """,
    )
    dns_server.zone(
        "softie.test",
        """
        @       TXT  "v=spf1 ip4:127.0.0.2 ~all"
        @       A    127.0.0.2
        _dmarc  TXT  "v=DMARC1; p=quarantine"
        """,
    )
    dns_server.zone(
        "lax.test",
        """
        @       TXT  "v=spf1 -all"
        @       A    127.0.0.2
        _dmarc  TXT  "v=DMARC1; p=none"
        """,
    )
    dns_server.add("plain.test", "A", "127.0.0.2")
    dns_server.add("2.0.0.127.in-addr.arpa", "PTR", "mail.good.test")


@dataclass
class Rig:
    """A running server with checks, and what it did."""

    flow: MailIn
    dns: DnsServer
    pipeline: Pipeline
    directory: Path
    caplog: pytest.LogCaptureFixture
    signers: dict[str, Signer] = field(default_factory=dict)

    async def send(
        self,
        message: str | bytes,
        *,
        sender: str = "x@good.test",
        to: Sequence[str] = (ALICE,),
        helo: str = "",
        peer: str = GOOD_IP,
    ) -> tuple[int, str]:
        """The reply to the data, or to the last recipient when all were refused."""
        octets = message.encode() if isinstance(message, str) else message
        helo = helo or ("mail.good.test" if peer == GOOD_IP else "plain.test")

        def dialogue() -> tuple[int, bytes]:
            with smtplib.SMTP("127.0.0.1", self.flow.ports["smtp"], helo, source_address=(peer, 0)) as client:
                client.ehlo()
                client.mail(sender)
                replies = [client.rcpt(address) for address in to]
                if all(code >= 400 for code, _ in replies):
                    return replies[-1]
                return client.data(octets)

        code, text = await self.flow.blocking(dialogue)
        return code, text.decode()

    def sign(self, domain: str, message: str, *, algorithm: str = "rsa", publish: bool = True) -> bytes:
        """`message` with a DKIM signature of `domain`, whose key is put into the DNS."""
        directory = self.directory / f"keys-{algorithm}"
        signer = self.signers.get(f"{domain} {algorithm}")
        if signer is None:
            key = keys.generate(directory, domain, selector=algorithm, algorithm=algorithm)
            signer = self.signers[f"{domain} {algorithm}"] = Signer(directory)
            if publish:
                record = key.record
                strings = " ".join(f'"{record[i : i + 250]}"' for i in range(0, len(record), 250))
                self.dns.add(key.record_name, "TXT", strings)
        octets = message.encode()
        return signer.sign(domain, Content.from_bytes(octets)) + octets

    def folder(self, email: str, name: str = "") -> list[Message]:
        """The messages in INBOX, or in another folder, oldest first."""
        local_part, _, domain = email.partition("@")
        home = self.flow.directory / "vmail" / domain / local_part
        home = home / f".{name}" if name else home
        files = sorted((*home.glob("new/*"), *home.glob("cur/*")), key=lambda p: p.name)
        return [BytesParser(policy=compat32).parsebytes(path.read_bytes()) for path in files]

    def only(self, email: str = ALICE, name: str = "") -> Message:
        (message,) = self.folder(email, name)
        return message

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The fields of every log line of that event."""
        return [vars(r)["fields"] for r in self.caplog.records if r.getMessage() == event]


Start = Callable[..., contextlib.AbstractAsyncContextManager[Rig]]
"""The fixture `checked`: `async with checked(checks=…, rspamd=…) as rig`."""


def results(message: Message) -> str:
    """Our Authentication-Results as one line."""
    (field,) = [f for f in message.get_all("Authentication-Results", []) if str(f).startswith(HOSTNAME)]
    return " ".join(str(field).split())


def letter(author: str = "x@good.test", *, fields: str = "", body: str = "Hello\r\n") -> str:
    return (
        f"{fields}From: {author}\r\nTo: {ALICE}\r\nSubject: hi\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <1@x>\r\n\r\n{body}"
    )


@contextlib.asynccontextmanager
async def checked_mail(
    directory: Path,
    dns_server: DnsServer,
    tls_files: TlsFiles,
    caplog: pytest.LogCaptureFixture,
    *,
    checks: Checks | None = None,
    rspamd: Rspamd | None = None,
    dns_timeout_s: int = 2,
    trusted: Sequence[str] = (),
) -> AsyncIterator[Rig]:
    """Everything running, with these settings."""
    caplog.set_level("INFO", "pymx")
    zones(dns_server)
    config = Config(
        hostname=HOSTNAME,
        data_dir=str(directory),
        checks=checks or Checks(),
        rspamd=rspamd or Rspamd(),
        limits=Limits(trusted=list(trusted)),
    )
    pipeline = build_pipeline(config, Resolver(Dns(nameservers=[dns_server.spec], timeout_s=dns_timeout_s)))
    assert pipeline is not None
    try:
        async with mail_in(directory, tls=tls_files.server_context(), checks=pipeline) as flow:
            yield Rig(flow, dns_server, pipeline, directory, caplog)
    finally:
        await pipeline.close()
