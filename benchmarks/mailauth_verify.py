"""CPU of authenticating one incoming message: SPF, one RSA-2048 DKIM signature, DMARC; all DNS answers cached.

    PYTHONPATH=tests python benchmarks/mailauth_verify.py

Prints milliseconds of CPU per 4 KB message for each method and for all of them, with dkimpy's verification beside ours,
and then what long messages cost (reading a body once for its hash, header and key included). The name server behind the
resolver runs in this process, but is asked nothing while the clock runs.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import dkim as dkimpy
from support.dns_server import DnsServer

from pymx.config.model import Dns
from pymx.mail.address import Address
from pymx.mailauth.arc import verify as arc
from pymx.mailauth.dkim import keys, verify
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.dmarc.evaluate import evaluate
from pymx.mailauth.iprev import iprev
from pymx.mailauth.spf.check import check
from pymx.resolver.resolver import Resolver
from pymx.spool import Content, SpoolWriter

DOMAIN = "example.test"
NOW = 1_800_000_000.0
HEAD = (
    b"Received: from mail.example.test (mail.example.test [192.0.2.25]) by mx.example.com with ESMTPS id 4XyZ;\r\n"
    b"\tTue, 24 Nov 2026 10:00:01 +0000\r\n"
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\nSubject: figures of last week\r\n"
    b"From: Alice Example <alice@news.example.test>\r\nTo: Bob Example <bob@example.com>\r\n"
    b"Message-ID: <20261124100000.1234@example.test>\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: base64\r\n"
)


def message(octets: int, directory: Path, signer: Signer) -> Content:
    writer = SpoolWriter(directory)
    writer.feed(HEAD + b"\r\n" + base64.encodebytes(os.urandom(octets * 3 // 4)).replace(b"\n", b"\r\n"))
    content = writer.finish()
    return content.prepended(signer.sign(DOMAIN, content))


async def milliseconds(function: Callable[[], Awaitable[object]], times: int) -> float:
    await function()
    started = time.process_time()
    for _ in range(times):
        await function()
    return (time.process_time() - started) / times * 1000


def publish(server: DnsServer, key: keys.SigningKey) -> None:
    text = key.record
    server.add(key.record_name, "TXT", " ".join(f'"{text[i : i + 255]}"' for i in range(0, len(text), 255)))
    server.add(DOMAIN, "TXT", '"v=spf1 include:_spf.example.net mx -all"')
    server.add("_spf.example.net", "TXT", '"v=spf1 ip4:198.51.100.0/24 ip4:192.0.2.0/24 ip6:2001:db8::/32 ~all"')
    server.add(f"_dmarc.{DOMAIN}", "TXT", f'"v=DMARC1; p=reject; sp=quarantine; rua=mailto:d@{DOMAIN}"')
    server.add("25.2.0.192.in-addr.arpa", "PTR", f"mail.{DOMAIN}.")
    server.add(f"mail.{DOMAIN}", "A", "192.0.2.25")


async def measure(resolver: Resolver, directory: Path, signer: Signer, key: keys.SigningKey) -> None:
    content = message(4096, directory, signer)
    sender, ip = Address("alice", DOMAIN), "192.0.2.25"

    async def spf() -> object:
        return await check(resolver, ip=ip, mail_from=sender, helo=f"mail.{DOMAIN}")

    async def dkim() -> object:
        return await verify.verify(resolver, content.head, content.body_chunks(), now=NOW)

    async def whole() -> object:
        spf_result = await check(resolver, ip=ip, mail_from=sender, helo=f"mail.{DOMAIN}")
        hashes = verify.BodyHashes(content.head)
        for chunk in content.body_chunks():
            hashes.update(chunk)
        dkim_results = await verify.verify(resolver, content.head, hashes, now=NOW)
        result = await evaluate(resolver, header_from_domain=f"news.{DOMAIN}", spf=spf_result, dkim=dkim_results)
        assert result.result == "pass"
        assert result.aligned == ("spf", "dkim")
        return result

    async def everything() -> object:
        await iprev(resolver, ip)
        await arc.verify(resolver, content.head, content.body_chunks(), now=NOW)
        return await whole()

    wire, record = content.read(), key.record.encode()

    async def theirs() -> object:
        return dkimpy.verify(wire, dnsfunc=lambda name, timeout=5: record)

    rows = [("SPF", spf), ("DKIM", dkim), ("DKIM by dkimpy", theirs), ("SPF + DKIM + DMARC", whole)]
    for name, function in [*rows, ("… + iprev + ARC (none)", everything)]:
        best = min([await milliseconds(function, 300) for _ in range(3)])
        print(f"{name:<26} {best:7.3f} ms")
    for octets, times in ((51_200, 50), (1_048_576, 10), (10_485_760, 2)):
        content = message(octets, directory, signer)
        print(f"DKIM, {octets:>10} octets    {await milliseconds(dkim, times):7.3f} ms")


def main() -> None:
    server = DnsServer()
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            key = keys.generate(directory, DOMAIN, "s")
            publish(server, key)
            resolver = Resolver(Dns(nameservers=[server.spec]))
            asyncio.run(measure(resolver, directory, Signer(directory), key))
    finally:
        server.close()


if __name__ == "__main__":
    main()
