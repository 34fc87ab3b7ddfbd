"""What the most inquisitive message can make the server ask: so much for each check, and no more in all."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from pymx.checks.budget import Budget
from pymx.checks.build import build_pipeline
from pymx.checks.check import Facts
from pymx.checks.spf import MAX_QUESTIONS
from pymx.config.model import Checks, Config
from pymx.mail.address import Address
from pymx.mail.envelope import Listener, Origin, Recipient
from pymx.mailauth.arc.seal import Sealer
from pymx.mailauth.arc.verify import ArcResult
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.proto.smtp.reply import SmtpError
from pymx.resolver.answer import Answer, NoRecords, TemporaryDnsError
from pymx.spool import Content

DEEP = ".".join("abcdefghij")
HOPS = 40


class Endless:
    """A name system in which every answer leads to more questions. `asked` counts them by what asks."""

    def __init__(self, key: str = "") -> None:
        self.asked: Counter[str] = Counter()
        self.different: set[tuple[str, str]] = set()
        self._key = key.encode()

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.different.add((name, rdtype))
        kind = "arc" if ".hop" in name else "dkim" if "_domainkey" in name else name.split(".")[0]
        self.asked[kind if kind in ("arc", "dkim", "_dmarc") else rdtype] += 1
        if name.startswith("_dmarc."):
            raise NoRecords(name, rdtype, "the walk goes on")
        return Answer(name, name, rdtype, self._records(name, rdtype), 60, authenticated=False)

    def _records(self, name: str, rdtype: str) -> tuple[tuple[object, ...], ...]:
        match rdtype:
            case "PTR":
                return tuple((f"host-{i}.far.test",) for i in range(100))
            case "MX":
                return tuple((10, f"h{i}.{name}") for i in range(10))
            case "A" | "AAAA":
                return (("203.0.113.9" if rdtype == "A" else "2001:db8::9",),)
        if "_domainkey" in name:
            return ((self._key,),)
        return ((b"v=spf1 mx:a.test mx:b.test mx:c.test mx:d.test mx:e.test mx:f.test mx:g.test mx:h.test -all",),)


def greedy(directory: Path) -> tuple[bytes, str]:
    """A message signed by twelve, sealed by many forwarders, of thirty authors; and the key that is everybody's."""
    key = keys.generate(directory, "hop0.test", "k")
    message = b"From: " + b", ".join(b"x@%s.f%d.test" % (DEEP.encode(), i) for i in range(30)) + b"\r\n\r\nx\r\n"
    for name in [*(f"hop{i}.test" for i in range(1, HOPS)), *(f"{DEEP}.signer{i}.test" for i in range(12))]:
        shutil.copytree(directory / "hop0.test", directory / name)
    signer, sealer = Signer(directory), Sealer(directory)
    for i in range(12):
        message = signer.sign(f"{DEEP}.signer{i}.test", Content.from_bytes(message)) + message
    for i in range(HOPS):
        chain = ArcResult("pass" if i else "none")
        content = Content.from_bytes(message)
        message = sealer.seal(f"hop{i}.test", content, results="mx.test; none", chain=chain) + message
    return message, key.record


async def test_a_message_has_a_budget(tmp_path: Path) -> None:
    """As docs/checks.md has it, whatever strangers have written into their DNS."""
    message, key = greedy(tmp_path)
    world = Endless(key)
    config = Config(hostname="mx.example.test", checks=Checks(dnsbl=["bl.test=1"], trusted_sealers=["hop39.test"]))
    pipeline = build_pipeline(config, world)
    assert pipeline is not None
    origin = Origin(Listener.SMTP, "s", "192.0.2.7", "helo.far.test")
    to = [Recipient(Address("alice", "example.test"))]
    inspection = pipeline.begin(Facts(origin, "Q", Address("x", "far.test"), to))
    started = time.process_time()
    with contextlib.suppress(SmtpError):
        await inspection.message(Content.from_bytes(message))
    await pipeline.close()
    assert time.process_time() - started < 2
    facts = inspection.facts
    assert facts.arc is not None
    assert facts.arc.temporary  # forty keys are more than the chain may ask for
    asked = world.asked
    assert asked["arc"] <= 25
    assert 0 < asked["dkim"] <= 5
    assert 8 < asked["_dmarc"] <= 5 * 8
    assert asked["TXT"] + asked["MX"] + asked["A"] + asked["AAAA"] <= MAX_QUESTIONS + 10 + 2 + 1
    assert asked["PTR"] == 1
    assert len(world.different) < 150


async def test_beyond_it_nobody_knows() -> None:
    """A question too many is a temporary failure: never "no record", and it does not reach the resolver."""
    world = Endless()
    budget = Budget(world, 2)
    await budget.resolve("a.test", "A")
    await budget.resolve("a.test", "A")
    for _ in range(2):
        with pytest.raises(TemporaryDnsError):
            await budget.resolve("b.test", "A")
    assert world.asked["A"] == 2
