"""Messages in seven bits (RFC 2045 s. 6, RFC 6152 s. 3): nothing but the encoding changes, or nothing at all."""

from __future__ import annotations

import email
import email.message
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.transfer import CannotEncodePart, seven_bit


def wire(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def leaves(message: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded body of each part, as the standard library reads them."""
    parsed = email.message_from_bytes(message, policy=email.policy.SMTP)
    found = []
    for part in parsed.walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            found.append((part.get_content_type(), payload.replace(b"\r\n", b"\n").rstrip(b"\n")))
    return found


NESTED = """\
From: a@b.test
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer
Content-Transfer-Encoding: 8bit

preamble
--outer
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

schön, mostly ASCII
--outer
Content-Type: text/plain; charset=koi8-r
Content-Transfer-Encoding: 8bit

Привет
--outer
Content-Type: text/plain

plain = plain
--outer
Content-Type: application/octet-stream
Content-Transfer-Encoding: binary

ÿþ
--outer
Content-Type: message/rfc822
Content-Transfer-Encoding: 8bit

From: c@d.test
Subject: inner
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: 8bit

<p>größer</p>
--outer--
epilogue
"""


def test_every_8bit_part_is_encoded_and_nothing_else_is_touched() -> None:
    """RFC 2045 s. 6.4: composite parts say 7bit."""
    before = wire(NESTED)
    after = seven_bit(before)
    assert after.isascii()
    assert leaves(after) == leaves(before)
    assert [p["Content-Transfer-Encoding"] for p in email.message_from_bytes(after).walk()] == [
        "7bit", "quoted-printable", "base64", None, "base64", "7bit", "base64",
    ]  # fmt: skip
    assert b"\r\nplain = plain\r\n--outer" in after
    assert after.endswith(b"--outer--\r\nepilogue\r\n")


def test_a_message_without_mime_gets_what_makes_it_valid() -> None:
    """RFC 2045 s. 4: MIME-Version, and the charset as far as it can be known."""
    after = seven_bit(wire("From: a@b.test\n\nschön, mostly ASCII, and more of it\n"))
    parsed = email.message_from_bytes(after, policy=email.policy.default)
    assert isinstance(parsed, email.message.EmailMessage)
    assert parsed["MIME-Version"] == "1.0"
    assert parsed.get_content().rstrip() == "schön, mostly ASCII, and more of it"


@pytest.mark.parametrize(
    "text",
    [
        NESTED.replace("multipart/mixed", "multipart/signed"),
        NESTED.replace("multipart/mixed", "multipart/encrypted"),
        NESTED.replace("preamble", "prämbel"),
        NESTED.replace("Subject: inner", "Subject: innér"),
        NESTED.replace("Content-Type: text/plain\n", "Content-Type: text/plain; name=ü\n"),
        NESTED.replace("Content-Transfer-Encoding: binary", "Content-Transfer-Encoding: x-own"),
        NESTED.replace("message/rfc822", "message/partial"),
    ],
)
def test_what_may_not_be_changed_or_can_not_is_refused(text: str) -> None:
    """RFC 1847 s. 2.1; 8-bit octets outside of bodies have no encoding."""
    with pytest.raises(CannotEncodePart):
        seven_bit(wire(text))


@given(st.binary(max_size=400))
def test_any_octets_are_encoded_or_refused(data: bytes) -> None:
    """Never anything but our error, and never an octet above 127."""
    for head in (b"", b"Content-Type: multipart/mixed; boundary=x\r\n", b"Content-Type: message/rfc822\r\n"):
        try:
            assert seven_bit(head + b"\r\n" + data).partition(b"\r\n\r\n")[2].isascii()
        except CannotEncodePart:
            pass


@given(st.text(st.characters(exclude_characters="\r\x85\u2028\u2029", exclude_categories=["Cs"]), max_size=300))
def test_text_comes_out_as_it_went_in(text: str) -> None:
    """Read back by the standard library."""
    head = "From: a@b.test\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
    before = wire(head + "Content-Transfer-Encoding: 8bit\n\n" + text + "\n")
    ((kind, after),) = leaves(seven_bit(before))
    assert (kind, after.decode()) == ("text/plain", text.rstrip("\n"))
