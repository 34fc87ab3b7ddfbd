"""Signatures (RFC 6376 s. 5, RFC 8463) verified by dkimpy and by `cryptography`."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pymx.mail.header import iter_fields
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.canonical import relaxed_field
from pymx.mailauth.dkim.sign import Signer
from pymx.spool import Content, SpoolWriter

DOMAIN = "example.test"
MESSAGE = (
    b"Received: from here by there; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"From: Alice <alice@example.test>\r\n"
    b"To: bob@example.com,\r\n\tcarol@example.com\r\n"
    b"Subject:  a  folded \r\n subject\r\n"
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <1@example.test>\r\n"
    b"\r\n"
    b"Hello  Bob, \t\r\n\r\n.dots\r\n\r\n\r\n"
)


@pytest.fixture(scope="module")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dkim")
    keys.generate(directory, DOMAIN, "rsa1")
    return directory


def records(directory: Path) -> dict[bytes, bytes]:
    return {
        f"{key.record_name}.".encode(): key.record.encode()
        for folder in directory.iterdir()
        for key in keys.load_all(directory, folder.name)
    }


def verifies(message: bytes, directory: Path) -> bool:
    known = records(directory)
    return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: known.get(name)))


def signed(message: bytes, directory: Path) -> bytes:
    content = Content.from_bytes(message)
    return content.prepended(Signer(directory).sign(DOMAIN, content)).read()


def test_dkimpy_verifies_a_signature(key_directory: Path) -> None:
    message = signed(MESSAGE, key_directory)
    assert message.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.test; s=rsa1;")
    assert verifies(message, key_directory)
    assert all(len(line) <= 78 for line in message.split(b"\r\n\r\n")[0].split(b"\r\n") if b"h=" not in line)


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 65537, 300_000])
def test_a_spooled_message_signs_as_one_in_memory(size: int, key_directory: Path, tmp_path: Path) -> None:
    """The body is read in pieces; where they are cut does not matter."""
    body = (b"a \t b\r\n" * (size // 7 + 1))[:size].rstrip(b"\r")
    message = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    writer = SpoolWriter(tmp_path, memory_octets=1000)
    writer.feed(message)
    content = writer.finish()
    fields = Signer(key_directory).sign(DOMAIN, content)
    assert verifies(fields + message + (b"" if message.endswith(b"\r\n") else b"\r\n"), key_directory)


INJECTED = [b"From: x@y", b"Subject: x", b"To: x@y", b"Cc: x@y", b"Reply-To: x@y", b"Content-Type: text/html"]
INJECTED += [b"Date: now", b"MIME-Version: 1.0", b"In-Reply-To: <x@y>", b"References: <x@y>"]
OF_LISTS = [b"Sender: l@x", b"List-Id: <l.x>", b"List-Unsubscribe: <https://x/u>", b"List-Unsubscribe-Post: One-Click"]


@pytest.mark.parametrize("field", INJECTED)
def test_an_added_field_breaks_the_signature(field: bytes, key_directory: Path) -> None:
    """RFC 6376 s. 8.15: fields are over-signed."""
    assert not verifies(field + b"\r\n" + signed(MESSAGE, key_directory), key_directory)


def test_what_mailing_lists_add_breaks_nothing(key_directory: Path) -> None:
    """A list that only adds its own fields passes the author's signature on."""
    assert verifies(b"\r\n".join(OF_LISTS) + b"\r\n" + signed(MESSAGE, key_directory), key_directory)


@pytest.mark.parametrize("field", OF_LISTS)
def test_fields_of_a_newsletter_are_covered(field: bytes, key_directory: Path) -> None:
    """RFC 8058 s. 4: List-Unsubscribe and List-Unsubscribe-Post must be in h=; here nobody can change or add one."""
    name = field.partition(b":")[0]
    message = signed(field + b"\r\n" + MESSAGE, key_directory)
    assert message.split(b"bh=")[0].lower().replace(b"\r\n\t", b"").count(name.lower()) >= 2
    assert verifies(message, key_directory)
    assert not verifies(message.replace(field, field + b"x"), key_directory)
    assert not verifies(message.replace(field + b"\r\n", b""), key_directory)
    assert not verifies(field + b"\r\n" + message, key_directory)


def test_a_changed_or_longer_body_breaks_the_signature(key_directory: Path) -> None:
    message = signed(MESSAGE, key_directory)
    assert not verifies(message + b"more\r\n", key_directory)
    assert not verifies(message.replace(b"Hello", b"hello"), key_directory)


def test_fields_above_the_signature_may_be_added(key_directory: Path) -> None:
    message = b"Received: x\r\nReturn-Path: <>\r\nX-Spam: no\r\n" + signed(MESSAGE, key_directory)
    assert verifies(message, key_directory)


def test_no_key_no_signature(key_directory: Path) -> None:
    content = Content.from_bytes(MESSAGE)
    assert Signer(key_directory).sign("other.test", content) == b""
    assert Signer(key_directory).sign("..", content) == b""
    assert Signer(key_directory).sign("", content) == b""


NAME = st.sampled_from(
    [b"From", b"to", b"Cc", b"SUBJECT", b"Subject", b"X-Other", b"Date", b"Reply-To", b"Content-Type"]
)
VALUE = st.lists(st.sampled_from([b" ", b"  ", b"\t", b"word", b"\r\n ", b"\r\n\t", b"a:b", b"=", b";"]), max_size=12)
BODY = st.lists(st.sampled_from([b"\r\n", b" ", b"\t", b"x", b"y z", b"  "]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(fields=st.lists(st.tuples(NAME, VALUE), max_size=10), body=BODY)
def test_every_message_verifies(
    fields: list[tuple[bytes, list[bytes]]], body: list[bytes], key_directory: Path
) -> None:
    """Any fields, doubled and folded in any way, with any body."""
    head = b"From: a@example.test\r\n" if not any(name == b"From" for name, _ in fields) else b""
    # a continuation line of nothing but white space ends the header for some readers (RFC 5322 s. 3.2.2)
    head += b"".join(name + b":v" + b"".join(value).rstrip() + b"end\r\n" for name, value in fields)
    message = head + b"\r\n" + b"".join(body) + b"\r\n"
    assert verifies(signed(message, key_directory), key_directory)


def test_a_domain_with_two_kinds_of_key_signs_twice(tmp_path: Path) -> None:
    """RFC 8463: an Ed25519 signature beside the RSA one, over the same body hash."""
    keys.generate(tmp_path, DOMAIN, "r")
    ed = keys.generate(tmp_path, DOMAIN, "e", algorithm="ed25519")
    content = Content.from_bytes(MESSAGE)
    fields = list(iter_fields(Signer(tmp_path).sign(DOMAIN, content)))
    tags = [dict(re.findall(r"(\w+)=\s*([^;]*)", field.value.decode())) for field in fields]
    assert [t["a"] for t in tags] == ["rsa-sha256", "ed25519-sha256"]
    assert tags[0]["bh"] == tags[1]["bh"]
    assert verifies(fields[0].raw + MESSAGE, tmp_path)

    by_name: dict[str, list[bytes]] = {}
    for field in iter_fields(content.head):
        by_name.setdefault(field.name, []).append(field.raw)
    data = b"".join(
        relaxed_field(by_name[name].pop()) + b"\r\n"
        for name in re.sub(r"\s", "", tags[1]["h"]).split(":")
        if by_name.get(name)
    )
    unsigned = re.sub(rb"b=[A-Za-z0-9+/= \t\r\n]*\Z", b"b=", fields[1].raw)
    data += relaxed_field(unsigned)
    signature = base64.b64decode(tags[1]["b"])
    Ed25519PublicKey.from_public_bytes(ed.public).verify(signature, hashlib.sha256(data).digest())
