"""Messages made to hurt a DKIM verifier: each takes time linear in its length and none gets past it.

The first part has every defect found in dkimpy's verification, which is why it is not used on mail from outside.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mailauth_samples import DOMAIN, HEAD, MESSAGE, NOW, Keys, handmade, parts, pieces
from support.names import TableOfNames

from pymx.mailauth.arc import verify as arc
from pymx.mailauth.dkim.record import RecordError, parse_record
from pymx.mailauth.dkim.tags import TagError, parse_tags
from pymx.mailauth.dkim.verify import BodyHashes, DkimResult, verify

MB = 1_000_000
RESULTS = {"none", "pass", "fail", "policy", "neutral", "permerror", "temperror"}


async def only(names: TableOfNames, message: bytes) -> DkimResult:
    head, body = parts(message)
    results = await verify(names, head, body, now=NOW)
    assert len(results) == 1
    return results[0]


def der_length(n: int) -> bytes:
    if n < 128:
        return bytes([n])
    octets = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([128 + len(octets)]) + octets


def der_integer(n: int) -> bytes:
    octets = n.to_bytes(n.bit_length() // 8 + 1, "big")
    return b"\x02" + der_length(len(octets)) + octets


def hostile_key(modulus_bits: int, exponent_bits: int) -> str:
    """An RSAPublicKey with an odd modulus and exponent of these sizes."""
    numbers = der_integer((1 << (modulus_bits - 1)) | 1) + der_integer((1 << (exponent_bits - 1)) | 1)
    return base64.b64encode(b"\x30" + der_length(len(numbers)) + numbers).decode()


@pytest.mark.parametrize(
    ("modulus", "exponent"),
    [
        (512, 17),
        (768, 17),
        (2048, 2000),
        (3072, 3000),
        (4096, 4000),
        (4096, 4096),
        (8192, 17),
        (16384, 16384),
        (32768, 32768),
    ],
)
async def test_hostile_key_costs_nothing(names: TableOfNames, keys: Keys, modulus: int, exponent: int) -> None:
    """A 16,384-bit modulus and exponent hold a pure Python verifier for 8 s; weak keys prove nothing (RFC 8301)."""
    names.table.clear()
    names.add(f"s._domainkey.{DOMAIN}", "TXT", "p=" + hostile_key(modulus, exponent))
    message = handmade(MESSAGE, keys.rsa[1024])
    started = time.process_time()
    result = await only(names, message)
    assert time.process_time() - started < 0.1
    assert result.result in ("policy", "permerror")


async def test_4096_bit_key_is_fine(names: TableOfNames) -> None:
    """RFC 8301 s. 3.2: verifiers must be able to take up to 4,096 bits."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    names.add(f"four._domainkey.{DOMAIN}", "TXT", "p=" + base64.b64encode(spki).decode())
    assert (await only(names, handmade(MESSAGE, key, s="four"))).result == "pass"


@pytest.mark.parametrize(
    "head",
    [
        b" From: a@example.test\r\n",  # begins with a space
        b"\r\n",
        b"DKIM-Signature:\r\n",
        b"DKIM-Signature: \xff\xfe=\x80\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.test; s=\xc3\xbc\xff; h=from; bh=AAAA; b=AAAA\r\n",
        "DKIM-Signature: v=1; a=rsa-sha256; d=example.test; s=ü; h=from; bh=AAAA; b=AAAA\r\n".encode(),
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.test; s=s; i=nodomain; h=from; bh=AAAA; b=AAAA\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.test; s=s; i=@; h=from; bh=AAAA; b=AAAA\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=; s=; h=:; bh=; b=\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=.; s=.; h=from; bh=AAAA; b=AAAA; l=" + b"9" * 5000 + b"\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.test; s=s; h=from; bh=AAAA; b=AAAA; x=\xd9\xa1\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=" + b"a." * 200 + b"test; s=s; h=from; bh=AAAA; b=AAAA\r\n",
        b"ARC-Seal: i=\xd9\xa1; a=x\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1;\r\n",
        b"ARC-Seal: i=0\r\n",
        b"ARC-Seal\r\n:",
    ],
)
async def test_broken_fields_are_results_not_exceptions(names: TableOfNames, head: bytes) -> None:
    """dkimpy answers several of these with IndexError, UnicodeDecodeError or ValueError."""
    for one in await verify(names, head + HEAD, [b"\r\nbody\r\n"], now=NOW):
        assert one.result in ("none", "permerror", "fail")
    assert (await arc.verify(names, head + HEAD, [b"\r\nbody\r\n"], now=NOW)).result in ("none", "fail")


def big_heads() -> Iterator[tuple[str, bytes]]:
    def signature(names: bytes = b"from", more: bytes = b"") -> bytes:
        return (
            b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.test; s=s; h=" + names + b"; "
            b"bh=" + base64.b64encode(hashlib.sha256(b"").digest()) + b"; b=AAAA" + more + b"\r\n"
        )

    five = signature(b"from:a") * 5
    yield "tags", b"DKIM-Signature: " + b"".join(b"a%d=;" % i for i in range(MB // 8)) + b"\r\n"
    yield "semicolons", b"DKIM-Signature: " + b";" * MB + b"\r\n"
    yield "names in h=", signature(b"from:" + b"a:" * (MB // 2))
    yield "repeated names", signature(b":".join([b"from"] * 1000)) * 5 + b"From: a@example.test\r\n" * (MB // 24)
    yield "fields", five + b"a:\r\n" * (MB // 4)
    yield "fields of many names", five + b"".join(b"a%d:\r\n" % i for i in range(MB // 9))
    yield "white space", five + b"a:" + b" a" * (MB // 2) + b"\r\n"
    yield "tabs", five + b"a:" + b" \t" * (MB // 2) + b"\r\n"
    yield "folding", five + b"a:" + b"\r\n " * (MB // 3) + b"\r\n"
    yield "base64", signature(more=b"A" * MB)
    yield "base64 with blanks", signature(more=b"A " * (MB // 2))
    yield "i= of wide letters", signature(more=b"; i=@" + "ü".encode() * (MB // 2))
    yield "signatures", signature() * (MB // 150)
    yield "empty signatures", b"DKIM-Signature:\r\n" * (MB // 17)
    yield "empty lines", b"DKIM-Signature:" + b"\n" * MB
    yield "comments", b"ARC-Authentication-Results: " + b"(" * MB + b"\r\n"
    yield "seals", b"ARC-Seal: i=1;\r\n" * (MB // 16)
    yield "octets that are nothing", b"\0" * MB
    yield "carriage returns", b"\r" * MB
    yield "spaces", b" " * MB


@pytest.mark.parametrize("head", [pytest.param(head, id=kind) for kind, head in big_heads()])
async def test_huge_header_takes_less_than_a_second_per_megabyte(names: TableOfNames, head: bytes) -> None:
    """Each kind of field a verifier reads, repeated or stretched to 1 MB."""
    started = time.process_time()
    results = await verify(names, head + HEAD, [b"\r\n"], now=NOW)
    chain = await arc.verify(names, head + HEAD, [b"\r\n"], now=NOW)
    assert time.process_time() - started < 2 * (len(head) + MB // 10) / MB  # two verifiers
    assert {r.result for r in results} <= {"none", "fail", "permerror", "policy"}
    assert chain.result in ("none", "fail")


BODIES = {
    "spaces without CRLF": b" " * MB,
    "lines of 990 spaces": (b" " * 990 + b"\r\n") * (MB // 992),
    "CRLFs": b"\r\n" * (MB // 2),
    "bare CRs": b"\r" * MB,
    "bare LFs": b" \n" * (MB // 2),
    "tabs": b" \t" * (MB // 2),
    "double spaces": b"a  " * (MB // 3),
    "blanks before CRLF": b" \r\n" * (MB // 3),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("size", [1, 100, 65536])
def test_body_is_hashed_in_linear_time(keys: Keys, kind: str, size: int) -> None:
    """80 KB of spaces hold a regular expression for 12 s, bare CRs a verifier that waits for the line's end."""
    message = handmade(MESSAGE, keys.rsa[1024], form="simple/simple")
    message = handmade(message, keys.rsa[1024], form="relaxed/relaxed")
    body = BODIES[kind][: MB if size > 1 else MB // 5]
    hashes = BodyHashes(parts(message)[0])
    started = time.process_time()
    hashes.update(b"\r\n")
    for piece in pieces(body, size):
        hashes.update(piece)
    hashes.finish()
    assert time.process_time() - started < len(body) / MB
    if size < 65536:
        whole = BodyHashes(parts(message)[0])
        whole.update(b"\r\n" + body)
        whole.finish()
        assert [hashes.digest(f) for f in ("simple", "relaxed")] == [whole.digest(f) for f in ("simple", "relaxed")]


async def test_many_different_lengths_share_one_pass(names: TableOfNames, keys: Keys) -> None:
    """Sixty signatures, each with an l= of its own, above 1 MB."""
    body = b"0123456789\r\n" * (MB // 12)
    message = HEAD + b"\r\n" + body
    signed = handmade(message, keys.rsa[1024], l="1000")
    field = signed[: signed.index(b"Received:")]
    more = b"".join(field.replace(b"l=1000", b"l=%d" % (i * 10_000)) for i in range(60))
    started = time.process_time()
    results = await verify(names, more + HEAD, [b"\r\n" + body], now=NOW)
    assert time.process_time() - started < len(message) / MB
    assert len(results) == 6


@pytest.mark.parametrize("sizes", [[100, 5000], [5000, 100, 1], [4095, 4096], [4097, 1, 4000]])
def test_small_and_large_pieces_keep_their_order(sizes: list[int]) -> None:
    """Small ones are collected; l= ends in the middle of a piece."""
    head = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; c=simple; d=a.b; s=s; h=from; bh=AAAA; b=AAAA; l=%d\r\n" % length
        for length in (4500, 9001)
    )
    body = b"".join(b"line %d\r\n" % i for i in range(3000))
    hashes, position = BodyHashes(head), 0
    hashes.update(b"\r\n")
    while position < len(body):
        for size in sizes:
            hashes.update(body[position : position + size])
            position += size
    hashes.finish()
    assert hashes.digest("simple") == hashlib.sha256(body).digest()
    for length in (4500, 9001):
        assert hashes.digest("simple", length) == hashlib.sha256(body[:length]).digest()


@given(
    st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"\r", b"\n", b"a", b"ab  ", b"\r\n\r\n"]), max_size=60), st.data()
)
def test_pieces_never_change_the_hash(parts_of_body: list[bytes], data: st.DataObject) -> None:
    """RFC 6376 s. 3.4.3 and 3.4.4 say nothing about where TCP cuts a body."""
    head = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; c=simple/" + form + b"; d=a.b; s=s; h=from; bh=AAAA; b=AAAA; l=9\r\n"
        for form in (b"simple", b"relaxed")
    )
    body = b"\r\n" + b"".join(parts_of_body)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    cut, whole = BodyHashes(head), BodyHashes(head)
    whole.update(body)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        cut.update(body[start:end])
    for hashes in (cut, whole):
        hashes.finish()
    for form in ("simple", "relaxed"):
        assert cut.octets(form) == whole.octets(form)
        for length in (None, 9):
            assert cut.digest(form, length) == whole.digest(form, length)


FRAGMENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"DKIM-Signature:", b"ARC-Seal: i=1;", b"ARC-Message-Signature:", b"ARC-Authentication-Results: i=1;", b"\r\n",
         b"\r\n\r\n", b" v=1;", b" a=rsa-sha256;", b" d=example.test;", b" s=s;", b" h=from:", b" bh=AAAA;", b" b=AAAA",
         b" c=relaxed/simple;", b" l=5;", b" x=1;", b" i=1;", b" cv=none;", b"From: a@example.test\r\n", b";", b"="]
    ),
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=40).map(b"".join), st.lists(st.binary(max_size=50), max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
async def test_no_octets_make_it_raise(head: bytes, body: list[bytes]) -> None:
    """Whatever comes in is a result."""
    names = TableOfNames()
    names.add(f"s._domainkey.{DOMAIN}", "TXT", (head[:50],))  # type: ignore[arg-type]
    assert {r.result for r in await verify(names, head, body, now=NOW)} <= RESULTS
    assert (await arc.verify(names, head, body, now=NOW)).result in ("none", "pass", "fail")


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_octet_of_what_is_signed_can_be_changed(keys: Keys, data: st.DataObject) -> None:
    """simple/simple: any change of a signed field, of the signature or of the body is noticed."""
    names = TableOfNames()
    for name, record in keys.records.items():
        names.add(name, "TXT", record)
    message = handmade(MESSAGE.rstrip(b"\r\n") + b"\r\n", keys.rsa[1024], form="simple/simple")
    start = message.index(b"From:")
    position = data.draw(st.integers(start, len(message) - 3))
    octet = data.draw(st.integers(0, 255))
    changed = message[:position] + bytes([octet]) + message[position + 1 :]
    before, after = message[: message.index(b"\r\n\r\n")], changed.partition(b"\r\n\r\n")[0]
    unsigned = re.search(rb"Message-ID:[^\r]*", before)
    assert unsigned
    if changed == message or unsigned.start() - 2 <= position < unsigned.end() + 2 or len(before) != len(after):
        return
    assert (await only(names, changed)).result != "pass"


@given(st.binary(max_size=300))
@example(b"p=" + b"A" * 100)
@example(b"k=ed25519; p=AAAA")
def test_no_key_record_makes_it_raise(text: bytes) -> None:
    """Anything but a key is a RecordError."""
    for one in (text, b"v=DKIM1; p=" + base64.b64encode(text), b"k=ed25519;p=" + base64.b64encode(text)):
        try:
            record = parse_record(one)
        except RecordError as e:
            assert e.result in ("permerror", "policy")  # noqa: PT017
        else:
            assert record.verify(text, hashlib.sha256(text).digest()) is False


NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUE = st.text(st.characters(exclude_characters=";", exclude_categories=["Cs", "Cc"]), max_size=20).map(
    lambda text: text.strip(" \t\r\n")
)


@given(st.dictionaries(NAME, VALUE, min_size=1, max_size=8), st.sampled_from(["", ";", " ; ", "\r\n\t"]))
def test_written_tags_are_read_back(tags: dict[str, str], end: str) -> None:
    """RFC 6376 s. 3.2."""
    text = ";\r\n ".join(f"{name} = {value}" for name, value in tags.items()) + end
    assert parse_tags(text.encode()) == tags


@pytest.mark.parametrize("text", [b"a", b"a=1;;b=2", b"=1", b"1a=2", b"a b=1", b"a=1; a=2", b"\xff=1", b"a=\xc0"])
def test_what_is_no_tag_list_is_refused(text: bytes) -> None:
    """RFC 6376 s. 3.2."""
    with pytest.raises(TagError):
        parse_tags(text)
