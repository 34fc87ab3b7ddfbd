"""Keys for TLS reports only (RFC 8460 s. 3): they verify reports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dns_server import DnsServer

from pymx.config.model import Dns
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.dkim.verify import verify
from pymx.resolver.resolver import Resolver
from pymx.spool import Content

REPORT = b'Content-Type: multipart/report; report-type="tlsrpt"; boundary=x\r\n'
ORDINARY = b"Content-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("services", "fields", "result"),
    [
        ("", ORDINARY, "pass"),
        ("", REPORT, "pass"),
        ("s=tlsrpt; ", REPORT, "pass"),
        ("s=tlsrpt; ", ORDINARY, "permerror"),
        ("s=email:tlsrpt; ", ORDINARY, "pass"),
        ("s=other; ", REPORT, "permerror"),
    ],
)
async def test_a_key_signs_what_it_is_for(
    tmp_path: Path, dns_server: DnsServer, services: str, fields: bytes, result: str
) -> None:
    """`s=` of the key record."""
    key = keys.generate(tmp_path, "good.test", "k1", algorithm="ed25519")
    dns_server.add(key.record_name, "TXT", '"' + key.record.replace("p=", f"{services}p=") + '"')
    message = b"From: x@good.test\r\n" + fields + b"\r\nhello\r\n"
    signed = Content.from_bytes(Signer(tmp_path).sign("good.test", Content.from_bytes(message)) + message)
    resolver = Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2))
    (found,) = await verify(resolver, signed.head, signed.body_chunks(), now=2e9)
    assert found.result == result, found.reason
