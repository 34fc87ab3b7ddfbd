"""BINARY (RFC 3516): parts without their transfer encoding, and literal8 in APPEND."""

from __future__ import annotations

import asyncio
import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imap_rig import Client, Rig

from pymx.mail.mime import parse
from pymx.proto.imap.binary import UnknownEncoding, extract_binary, in_lines

DATA = bytes(range(256)) * 3
ENCODED = base64.encodebytes(DATA).replace(b"\n", b"\r\n")
MESSAGE = (
    b"Subject: binary\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\ncaf=C3=A9 =\r\nau lait\r\n"
    b"--b\r\nContent-Type: application/octet-stream\r\ncontent-transfer-encoding:\r\n base64\r\n\r\n"
    + ENCODED
    + b"\r\n"
    b"--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: x-strange\r\n\r\n???\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: inner\r\nContent-Transfer-Encoding: base64\r\n\r\naW5uZXI=\r\n"
    b"--b--\r\n"
)
KNOWN = MESSAGE.replace(b"x-strange", b"8bit")


async def _answer(client: Client, command: str, size: int) -> bytes:
    """The answer with its one literal of `size` octets, which may hold anything."""
    client.send(f"x {command}\r\n".encode())
    async with asyncio.timeout(10):
        data = await client.reader.readuntil(b"{%d}\r\n" % size)
        data += await client.reader.readexactly(size)
        return data + await client.reader.readuntil(b"\r\nx OK Fetch completed.\r\n")


async def test_parts_come_decoded_as_literal8_when_they_hold_nul(rig: Rig) -> None:
    """RFC 3516 s. 4.2, 4.3."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    assert await client.ok("FETCH 1 BINARY.PEEK[1]") == [
        "* 1 FETCH (BINARY[1] {13}\r\ncafé au lait)".encode(),
        b"OK Fetch completed.",
    ]
    text = await _answer(client, "UID FETCH 1 BINARY.PEEK[2]", len(DATA))
    assert text.startswith(b"* 1 FETCH (UID 1 BINARY[2] ~{%d}\r\n%b)\r\n" % (len(DATA), DATA))
    assert (await client.ok("FETCH 1 (BINARY.SIZE[2] BINARY.SIZE[1])"))[
        0
    ] == b"* 1 FETCH (BINARY.SIZE[2] %d BINARY.SIZE[1] 13)" % len(DATA)
    assert (await client.ok("FETCH 1 BINARY.PEEK[2]<65.4>"))[0] == b"* 1 FETCH (BINARY[2]<65> {4}\r\nABCD)"
    assert (await client.ok("FETCH 1 BINARY.PEEK[9]"))[0] == b"* 1 FETCH (BINARY[9] NIL)"
    assert not any(b"Seen" in line for line in await client.ok("FETCH 1 FLAGS"))
    assert b"\\Seen" in (await client.ok("FETCH 1 BINARY[1]"))[0]
    await client.close()


async def test_unknown_encoding_is_refused_with_its_code(rig: Rig) -> None:
    """RFC 3516 s. 4.3: NO [UNKNOWN-CTE], and nothing half written before it."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    for item in ("BINARY.PEEK[3]", "(BODY.PEEK[HEADER] BINARY.SIZE[3])", "BINARY.PEEK[]"):
        assert await client.ask(f"FETCH 1 {item}") == [b"NO [UNKNOWN-CTE] The part's encoding is not known"]
    for item in ("BINARY[HEADER]", "BINARY[1.MIME]", "BINARY.SIZE[1]<0.5>"):
        assert (await client.ask(f"FETCH 1 {item}"))[-1].startswith(b"BAD")
    await client.close()


async def test_literal8_is_stored_when_it_is_lines_of_text(rig: Rig) -> None:
    """RFC 3516 s. 4.4: what a Maildir would change, and is not said to be binary, is refused with UNKNOWN-CTE."""
    client = await rig.select()
    assert (await client.ok(b"APPEND INBOX (\\Seen) ~{14+}\r\nSubject: x\r\n\r\n"))[-1].startswith(b"OK [APPENDUID")
    for bad in (b"Subject: x\r\n\r\nNUL\x00", b"Subject: x\r\n\r\none\ntwo"):
        lines = await client.ask(b"APPEND INBOX ~{%d+}\r\n%b" % (len(bad), bad))
        assert lines[-1].startswith(b"NO [UNKNOWN-CTE]")
    assert (await client.ask(b"SEARCH SUBJECT ~{1+}\r\nx"))[-1].startswith(b"BAD")
    await client.close()


async def test_binary_parts_are_stored_in_base64_and_come_back(rig: Rig) -> None:
    """RFC 3516 s. 4.4: the server may change the encoding, but nothing may be lost."""
    client = await rig.select()
    data = DATA + b"\n--c\nlike a delimiter, and a bare LF"
    message = MESSAGE.replace(b"\r\n base64\r\n\r\n" + ENCODED, b"\r\n BINARY\r\n\r\n" + data)
    assert message != MESSAGE
    lines = await client.ok(b"APPEND INBOX (\\Seen) ~{%d+}\r\n%b" % (len(message), message))
    assert lines[-1].startswith(b"OK [APPENDUID")
    assert data in await _answer(client, "FETCH 1 BINARY.PEEK[2]", len(data))
    text = (await client.ok("FETCH 1 BODY.PEEK[]"))[0]
    before, after = text.split(b"Content-Transfer-Encoding: base64\r\n\r\n", 1)
    assert message.startswith(before.partition(b"}\r\n")[2])
    assert b"\x00" not in text
    assert b"\r\n\r\n--b" not in after.partition(b"--b")[0] + b"--b"
    single = b"Content-Transfer-Encoding: binary\r\n\r\n" + DATA
    await client.ok(b"APPEND INBOX ~{%d+}\r\n%b" % (len(single), single))
    assert DATA in await _answer(client, "FETCH 2 BINARY.PEEK[1]", len(DATA))
    await client.close()


@given(st.binary(max_size=200), st.sampled_from([b"", b"--b--\r\n"]))
def test_what_is_encoded_for_storing_is_the_same_when_decoded(data: bytes, end: bytes) -> None:
    """Round trip, of a part with a delimiter behind it and one that ends with the message."""
    message = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        + data.replace(b"-", b"")
        + (b"\r\n" + end if end else b"")
    )
    stored = b"".join(in_lines(message))
    assert stored.isascii()
    assert extract_binary(stored, (1,)) == extract_binary(message, (1,))
    assert stored.endswith(end)


def test_whole_message_has_every_part_decoded_and_says_so() -> None:
    """RFC 3516 s. 4.2: an empty section is the whole message; the headers fit what follows them."""
    whole = extract_binary(KNOWN, ())
    assert whole is not None
    assert len(re.findall(rb"\r\nContent-Transfer-Encoding: binary\r\n", whole)) == 3
    assert b"base64" not in whole
    assert DATA in whole
    assert whole.endswith(b"Subject: inner\r\nContent-Transfer-Encoding: binary\r\n\r\ninner\r\n--b--\r\n")
    plain = b"Subject: x\r\n\r\ntext\r\n"
    assert extract_binary(plain, ()) == plain


@pytest.mark.parametrize(
    ("path", "expected"),
    [((1,), "café au lait".encode()), ((2,), DATA), ((3,), b"???"), ((4, 1), b"inner"), ((5,), None), ((1, 1), None)],
)
def test_sections_are_part_numbers(path: tuple[int, ...], expected: bytes | None) -> None:
    """RFC 3516 s. 6, RFC 3501 s. 6.4.5."""
    assert extract_binary(KNOWN, path) == expected
    assert extract_binary(KNOWN, path, parse(KNOWN)) == expected


@given(st.binary(max_size=500), st.lists(st.integers(1, 3), max_size=3))
def test_any_octets_can_be_asked_for(message: bytes, path: list[int]) -> None:
    """Never anything but UnknownEncoding."""
    try:
        extract_binary(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + message, tuple(path))
    except UnknownEncoding:
        pass
