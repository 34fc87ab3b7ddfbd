"""ARC chains (RFC 8617): sealed by dkimpy and by hand, passed on, changed on the way, and broken in every way."""

from __future__ import annotations

import base64
import hashlib
import re
import time

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from dkim.canonicalization import Relaxed
from mailauth_samples import DOMAIN, HEAD, MESSAGE, NOW, Keys, handmade, head_of, parts, signer
from support.dns_server import DnsServer, Failure
from support.names import TIMEOUT, TableOfNames

from pymx.mailauth.arc.verify import ArcResult, verify
from pymx.mailauth.dkim.verify import BodyHashes
from pymx.mailauth.questions import Questions
from pymx.resolver.resolver import Resolver

AUTHSERV_ID = "lists.example.test"
KEY = f"s._domainkey.{DOMAIN}"


async def checked(names: Questions, message: bytes, **options: object) -> ArcResult:
    head, body = parts(message)
    return await verify(names, head, body, now=NOW, **options)  # type: ignore[arg-type]


def dkimpy_sealed(message: bytes, keys: Keys, results: str = "spf=pass smtp.mailfrom=example.org") -> bytes:
    """The message with one more ARC set, by dkimpy, which takes the results from an Authentication-Results field."""
    if b"ARC-Seal:" in message:
        results += "; arc=pass"
    field = f"Authentication-Results: {AUTHSERV_ID}; {results}\r\n".encode()
    sealer = dkim.ARC(field + message)
    fields = sealer.sign(b"s", DOMAIN.encode(), keys.pem(), AUTHSERV_ID.encode(), timestamp=NOW)
    return b"".join(fields) + message


def sealed(
    message: bytes,
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    *,
    instance: int = 1,
    results: str = "mx.example.net; spf=pass",
    signature: dict[str, str | None] | None = None,
    **tags: str | None,
) -> bytes:
    """One more ARC set by hand; `tags` replace those of the seal, `signature` those of the message signature."""
    aar = f"ARC-Authentication-Results: i={instance}; {results}\r\n".encode()
    ams_tags = {"v": None, "i": str(instance), **(signature or {})}
    whole = handmade(message, key, name=b"ARC-Message-Signature", **ams_tags)
    ams = whole[: len(whole) - len(message)]
    name = "s" if isinstance(key, rsa.RSAPrivateKey) else "ed"
    algorithm = "rsa-sha256" if name == "s" else "ed25519-sha256"
    cv = "none" if instance == 1 else "pass"
    values: dict[str, str | None] = {"i": str(instance), "a": algorithm, "cv": cv, "d": DOMAIN, "s": name, **tags}
    seal = "; ".join(f"{tag}={value}" for tag, value in values.items() if value is not None) + "; b="
    covered = b""
    earlier = head_of(message)
    for i in range(1, instance):
        for kind in (b"ARC-Authentication-Results", b"ARC-Message-Signature", b"ARC-Seal"):
            found = re.search(rb"(?m)^" + kind + rb": i=%d;(?:[^\r]|\r\n[ \t])*\r\n" % i, earlier)
            covered += relaxed(found[0]) if found else b""
    covered += relaxed(aar) + relaxed(ams) + relaxed(b"ARC-Seal: " + seal.encode() + b"\r\n").removesuffix(b"\r\n")
    value = base64.b64encode(signer(key)(covered))
    return b"ARC-Seal: " + seal.encode() + value + b"\r\n" + ams + aar + message


def relaxed(field: bytes) -> bytes:
    name, _, value = field.partition(b":")
    ((n, v),) = Relaxed.canonicalize_headers([(name, value)])
    return bytes(n + b":" + v)


async def test_message_without_chain_is_none(names: TableOfNames) -> None:
    """RFC 8617 s. 5.2 step 1."""
    assert (await checked(names, MESSAGE)).result == "none"
    assert names.asked == []


async def test_chains_of_dkimpy_pass(names: TableOfNames, keys: Keys) -> None:
    """One, two and three sealers; their results in order."""
    message = MESSAGE
    for count in (1, 2, 3):
        message = dkimpy_sealed(message, keys, f"spf=pass smtp.mailfrom=hop{count}.example")
        found = await checked(names, message)
        assert (found.result, found.oldest_pass, found.sealers) == ("pass", 0, (DOMAIN,) * count)
        assert [f"hop{i + 1}.example" in text for i, text in enumerate(found.authentication_results)] == [True] * count
        assert all(text.startswith(AUTHSERV_ID) for text in found.authentication_results)


async def test_chain_of_both_algorithms_passes(names: TableOfNames, keys: Keys) -> None:
    """RFC 8463 for ARC, and dkimpy agrees where it knows the algorithm."""
    message = sealed(MESSAGE, keys.rsa[1024])
    verdict, _, _ = dkim.arc_verify(message, dnsfunc=lambda name, timeout=5: keys.records[KEY].encode(), minkey=1024)
    assert verdict == dkim.CV_Pass
    message = sealed(message, keys.ed25519, instance=2)
    assert (await checked(names, message)).result == "pass"


async def test_body_hashed_while_it_arrived_is_taken(names: TableOfNames, keys: Keys) -> None:
    """The same object serves DKIM and ARC."""
    message = sealed(handmade(MESSAGE, keys.rsa[1024], form="simple/simple"), keys.rsa[1024])
    head, (rest,) = parts(message)
    hashes = BodyHashes(head)
    for i in range(len(rest)):
        hashes.update(rest[i : i + 1])
    assert (await verify(names, head, hashes, now=NOW)).result == "pass"


async def test_list_that_changes_the_message_before_it_seals_is_the_oldest_pass(
    names: TableOfNames, keys: Keys
) -> None:
    """s. 5.2: the message is as it was at instance 2, but not as at 1."""
    message = sealed(MESSAGE, keys.rsa[1024], results="one; spf=pass")
    message = sealed(message.replace(b"Hello", b"[list] Hello"), keys.rsa[1024], instance=2, results="two; arc=pass")
    message = sealed(message, keys.rsa[1024], instance=3, results="three; arc=pass")
    found = await checked(names, message)
    assert (found.result, found.oldest_pass) == ("pass", 2)
    assert found.authentication_results == ("one; spf=pass", "two; arc=pass", "three; arc=pass")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Hello", b"Holla", "arc-message-signature i=2: body hash"),
        (b"Subject:  a", b"Subject:  b", "arc-message-signature i=2: signature"),
        (b"one; spf=fail", b"one; spf=pass", "arc-seal i=1: signature"),
        (b"i=1; a=rsa-sha256; cv=none", b"i=1;  a=rsa-sha256; cv=none; t=1", "arc-seal"),
        (b"i=2; a=rsa-sha256; cv=pass", b"i=2; a=rsa-sha256; cv=fail", "sealer 2"),
        (b"i=2; a=rsa-sha256; cv=pass", b"i=2; a=rsa-sha256; cv=none", "cv=none"),
        (b"i=1; a=rsa-sha256; cv=none", b"i=1; a=rsa-sha256; cv=pass", "cv=pass"),
        (b"ARC-Seal: i=1;", b"X-Seal: i=1;", "complete"),
        (b"ARC-Authentication-Results: i=2;", b"ARC-Authentication-Results: i=3;", "complete"),
        (b"ARC-Authentication-Results: i=2;", b"ARC-Authentication-Results: i=1;", "two"),
        (b"ARC-Authentication-Results: i=2;", b"ARC-Authentication-Results: x=2;", "instance"),
        (b"ARC-Seal: i=2;", b"ARC-Seal: i=0;", "instance"),
        (b"ARC-Seal: i=2;", b"ARC-Seal: i=99;", "more than"),
        (b"ARC-Seal: i=2;", b"ARC-Seal: i=2; i=2;", "twice"),
        (b"ARC-Seal: i=2;", b"ARC-Seal: i=2; h=from;", "h="),
        (b"ARC-Seal: i=2; a=rsa-sha256", b"ARC-Seal: i=2; a=rsa-sha1", "algorithm"),
        (b"ARC-Seal: i=2; a=rsa-sha256; cv=pass; d=example.test", b"ARC-Seal: i=2; a=rsa-sha256; cv=pass", "d="),
        (b"h=from:", b"h=arc-seal:from:", "signs arc-seal"),
    ],
)
async def test_broken_chain_fails(names: TableOfNames, keys: Keys, old: bytes, new: bytes, reason: str) -> None:
    """Each step of s. 5.2."""
    message = sealed(MESSAGE, keys.rsa[1024], results="one; spf=fail")
    message = sealed(message, keys.rsa[1024], instance=2)
    assert (await checked(names, message)).result == "pass"
    assert old in message
    found = await checked(names, message.replace(old, new, 1))
    assert (found.result, found.temporary) == ("fail", False)
    assert reason in found.reason


async def test_seal_of_another_key_fails(names: TableOfNames, keys: Keys) -> None:
    """Everybody can write fields; only the sealer has the key."""
    found = await checked(names, sealed(sealed(MESSAGE, keys.other), keys.rsa[1024], instance=2))
    assert (found.result, "arc-seal i=1" in found.reason) == ("fail", True)


async def test_chain_grafted_onto_another_message_fails(names: TableOfNames, keys: Keys) -> None:
    """The seals are right, the newest message signature is not that of this message."""
    message = sealed(MESSAGE, keys.rsa[1024])
    graft = message[: len(message) - len(MESSAGE)] + HEAD + b"\r\nBuy!\r\n"
    assert (await checked(names, graft)).result == "fail"


async def test_unknown_key_is_temporary(names: TableOfNames, keys: Keys) -> None:
    """A key that can't be looked up now is not the message's fault."""
    message = sealed(MESSAGE, keys.ed25519, s="later")
    names.add(f"later._domainkey.{DOMAIN}", "TXT", TIMEOUT)
    found = await checked(names, message)
    assert (found.result, found.temporary) == ("fail", True)
    message = sealed(MESSAGE, keys.rsa[1024], signature={"s": "later"})
    assert (await checked(names, message)).temporary
    gone = await checked(names, sealed(MESSAGE, keys.rsa[1024], s="gone"))
    assert (gone.result, gone.temporary) == ("fail", False)


async def test_longest_chain_is_checked_in_linear_time(names: TableOfNames, keys: Keys) -> None:
    """Fifty sets (s. 4.2.1), with 100 KB of signed header below them."""
    ballast = b"Subject: " + b"x y " * 25_000 + b"\r\n"
    message = HEAD.replace(b"Subject:  a  folded \r\n subject\r\n", ballast) + b"\r\nbody\r\n"
    for i in range(1, 51):
        message = sealed(message, keys.rsa[1024], instance=i)
    started = time.process_time()
    found = await checked(names, message)
    assert time.process_time() - started < 0.5
    assert (found.result, found.oldest_pass, len(found.sealers)) == ("pass", 0, 50)
    assert (await checked(names, message, max_sets=49)).result == "fail"


async def test_through_a_real_name_server(dns_server: DnsServer, resolver: Resolver, keys: Keys) -> None:
    """The same with the resolver, and its failures."""
    message = dkimpy_sealed(MESSAGE, keys)
    assert (await checked(resolver, message)).result == "pass"
    dns_server.fail(KEY, Failure.SERVFAIL)
    resolver.forget()
    found = await checked(resolver, message)
    assert (found.result, found.temporary) == ("fail", True)


def test_sample_is_what_the_rfc_says(keys: Keys) -> None:
    """The hand-made sets hash the body as DKIM does."""
    field = re.search(rb"bh=([^;]+)", sealed(MESSAGE, keys.rsa[1024]))
    assert field
    assert base64.b64decode(field[1]) == hashlib.sha256(b"Hello Bob,\r\n\r\n.dots and tabs\r\n").digest()
