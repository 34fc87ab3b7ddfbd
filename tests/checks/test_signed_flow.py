"""Signatures and seals end to end: who signed with what, who forwarded, and what DMARC makes of it."""

from __future__ import annotations

import re
import smtplib

import dkim
import pytest
from checks_rig import ALICE, OTHER_IP, Rig, Start, letter, results
from support.dns_server import Failure

from pymx.config.model import Checks
from pymx.mailauth.dkim import keys

SEALER = "list.test"


@pytest.mark.parametrize("algorithm", ["rsa", "ed25519"])
async def test_both_algorithms(algorithm: str, rig: Rig) -> None:
    await rig.send(rig.sign("good.test", letter(), algorithm=algorithm), peer=OTHER_IP)
    found = results(rig.only())
    assert f"dkim=pass header.d=good.test header.i=@good.test header.s={algorithm} header.a={algorithm}-sha256" in found
    assert "dmarc=pass" in found


async def test_a_wrong_key_fails(rig: Rig) -> None:
    message = rig.sign("good.test", letter(), publish=False)
    other = keys.generate(rig.directory / "other", "good.test", selector="rsa", algorithm="rsa")
    rig.dns.add(other.record_name, "TXT", " ".join(f'"{other.record[i : i + 200]}"' for i in range(0, 600, 200)))
    assert (await rig.send(message, peer=OTHER_IP))[0] == 550
    assert "dkim=fail" in rig.lines("message_checked")[0]["check"]


async def test_a_missing_key_is_a_permerror(rig: Rig) -> None:
    assert (await rig.send(rig.sign("good.test", letter(), publish=False)))[0] == 250
    assert 'dkim=permerror reason="no key record"' in results(rig.only())


async def test_an_expired_signature_does_not_count(rig: Rig) -> None:
    """RFC 6376 s. 3.5, x=."""
    message = rig.sign("good.test", letter())
    # looked at before the signature itself, which this breaks
    expired = re.sub(rb"\bt=\d+;", b"t=1000000000; x=1000000001;", message, count=1)
    assert expired != message
    assert (await rig.send(expired))[0] == 250
    assert 'dkim=permerror reason="signature expired"' in results(rig.only())


async def test_a_key_that_can_not_be_looked_up_is_a_temperror(rig: Rig) -> None:
    message = rig.sign("good.test", letter(), publish=False)
    rig.dns.fail("rsa._domainkey.good.test", Failure.SERVFAIL)
    assert (await rig.send(message, peer=OTHER_IP))[0] == 250
    found = results(rig.only())
    assert "dkim=temperror" in found
    assert "dmarc=temperror" in found


async def test_a_signature_of_somebody_else_does_not_align(rig: Rig) -> None:
    code, _ = await rig.send(rig.sign("plain.test", letter()), peer=OTHER_IP)
    assert code == 550
    assert "dkim=pass" in rig.lines("message_checked")[0]["check"]


def sealed(rig: Rig, message: bytes, seen: str) -> bytes:
    """`message` with an ARC set of list.test, which saw `seen`."""
    directory = rig.directory / "arc"
    pem = directory / SEALER / "arc.pem"
    if not pem.exists():
        key = keys.generate(directory, SEALER, selector="arc", algorithm="rsa")
        rig.dns.add(key.record_name, "TXT", " ".join(f'"{key.record[i : i + 200]}"' for i in range(0, 600, 200)))
    noted = f"Authentication-Results: {SEALER}; {seen}\r\n".encode() + message
    fields = dkim.arc_sign(
        noted, b"arc", SEALER.encode(), pem.read_bytes(), SEALER.encode(),
        include_headers=[b"from", b"to", b"subject", b"date", b"message-id"],
    )  # fmt: skip
    return b"".join(fields) + noted


PASSED = "dmarc=pass header.from=good.test"
FAILED = "spf=fail; dmarc=fail header.from=good.test"


def from_a_list(rig: Rig, seen: str = PASSED) -> bytes:
    """A list has put a footer below a signed message: the signature is broken, the list vouches."""
    return sealed(rig, rig.sign("good.test", letter()).replace(b"Hello", b"Hello\r\n-- \r\nThe List"), seen)


async def test_a_trusted_list_gets_a_message_through_dmarc(checked: Start) -> None:
    """RFC 8617."""
    async with checked(checks=Checks(trusted_sealers=[SEALER])) as rig:
        assert (await rig.send(from_a_list(rig), peer=OTHER_IP))[0] == 250
        found = results(rig.only())
        assert "dkim=fail" in found
        assert "arc=pass smtp.remote-ip=127.0.0.9" in found
        assert 'dmarc=fail reason="trusted sealer list.test" header.from=good.test policy.dmarc=none' in found
        assert "list.test vouches for it" in rig.lines("message_checked")[0]["reason"]


@pytest.mark.parametrize("trusted", [[], ["other.test"]])
async def test_an_unknown_list_does_not(trusted: list[str], checked: Start) -> None:
    async with checked(checks=Checks(trusted_sealers=trusted)) as rig:
        assert (await rig.send(from_a_list(rig), peer=OTHER_IP))[0] == 550
        assert "arc=pass" in rig.lines("message_checked")[0]["check"]


async def test_a_list_that_took_a_forged_message_does_not(checked: Start) -> None:
    """It is honest: it says that DMARC failed already when the message came to it."""
    async with checked(checks=Checks(trusted_sealers=[SEALER])) as rig:
        assert (await rig.send(from_a_list(rig, FAILED), peer=OTHER_IP))[0] == 550


async def test_a_chain_that_was_tampered_with_does_not(checked: Start) -> None:
    async with checked(checks=Checks(trusted_sealers=[SEALER])) as rig:
        message = from_a_list(rig).replace(b"The List", b"The Lust")
        assert (await rig.send(message, peer=OTHER_IP))[0] == 550
        assert "arc=fail" in rig.lines("message_checked")[0]["check"]


async def test_a_chain_that_can_not_be_checked_now_defers(checked: Start) -> None:
    """What a trusted list sent is not refused for good because its key can't be had at the moment."""
    async with checked(checks=Checks(trusted_sealers=[SEALER])) as rig:
        message = from_a_list(rig)
        rig.dns.fail(f"arc._domainkey.{SEALER}", Failure.SERVFAIL)
        assert (await rig.send(message, peer=OTHER_IP))[0] == 451


async def test_mail_over_lmtp_is_not_checked(rig: Rig) -> None:
    def deliver() -> dict[str, tuple[int, bytes]]:
        with smtplib.LMTP("127.0.0.1", rig.flow.ports["lmtp"], "client.test") as client:
            return client.sendmail("x@good.test", [ALICE], letter())

    assert await rig.flow.blocking(deliver) == {}
    assert rig.only()["Authentication-Results"] is None
    assert rig.lines("message_checked") == []
