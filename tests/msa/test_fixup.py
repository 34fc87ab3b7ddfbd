"""What submission changes in a message, and what it leaves alone (RFC 6409 s. 8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymx.config.model import Submission
from pymx.mail.address import Address
from pymx.msa.fixup import FixUp, Refused
from pymx.spool import Content, SpoolWriter

ALICE = Address("alice", "example.test")
NOW = 1_795_514_400.0  # Tue, 24 Nov 2026 10:00:00 +0000
WHOLE = "From: alice@example.test\nDate: Tue, 24 Nov 2026 09:00:00 +0000\nMessage-ID: <1@example.test>\n"


def wire(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def fixed(text: str, *, repair: bool = True, smtputf8: bool = False, strip: list[str] | None = None) -> bytes:
    return fix(Content.from_bytes(wire(text)), repair=repair, smtputf8=smtputf8, strip=strip).read()


def fix(content: Content, *, repair: bool = True, smtputf8: bool = False, strip: list[str] | None = None) -> Content:
    fix_up = FixUp(strip_fields=Submission().strip_fields if strip is None else strip, repair=repair)
    return fix_up(content, mail_from=ALICE, now=NOW, message_id="made@example.test", smtputf8=smtputf8).content


def test_a_whole_message_stays_as_it_is() -> None:
    text = WHOLE + "Subject:  odd   spacing \n\tfolded\nX-Thing:y\n\nbody \t\n\n"
    assert fixed(text) == wire(text)


def test_missing_fields_are_added() -> None:
    assert fixed("Subject: x\n\nbody\n") == wire(
        "Subject: x\nFrom: <alice@example.test>\nDate: Tue, 24 Nov 2026 10:00:00 +0000\n"
        "Message-ID: <made@example.test>\n\nbody\n"
    )


def test_fields_that_must_not_leave_us_are_removed() -> None:
    """Where a user is and whom else they wrote to is nobody's business."""
    private = (
        "Received: from laptop ([10.0.0.1])\n\tby x; y\nBCC: secret@x.test\nbcc:\n\tmore@x.test\nResent-Bcc: x@y.test\n"
        "X-Originating-IP: [10.0.0.1]\nReturn-Path: <x@y.test>\nUser-Agent: Thunderbird\n"
    )
    assert fixed(private + WHOLE + "\nbody\n") == wire(WHOLE + "\nbody\n")


def test_the_list_of_removed_fields_is_a_setting() -> None:
    text = WHOLE + "Bcc: x@y.test\nX-Secret: 1\n\n"
    assert fixed(text, strip=["X-Secret"]) == wire(WHOLE + "Bcc: x@y.test\n\n")


def test_a_text_without_a_header_gets_one() -> None:
    out = fixed("Just a line\nand another\n")
    assert out.startswith(b"From: <alice@example.test>\r\n")
    assert out.endswith(b"\r\n\r\nJust a line\r\nand another\r\n")


def test_the_header_ends_where_a_line_is_no_field() -> None:
    """As other servers and clients will read it."""
    out = fixed(WHOLE + "no field here\nBcc: stays@x.test\n\nbody\n")
    assert out == wire(WHOLE + "\nno field here\nBcc: stays@x.test\n\nbody\n")


def test_an_mbox_line_goes() -> None:
    assert fixed("From alice Tue Nov 24 10:00:00 2026\n" + WHOLE + "\nx\n") == wire(WHOLE + "\nx\n")


def test_8bit_headers_are_encoded_unless_smtputf8_was_declared() -> None:
    """RFC 6531 s. 3.4."""
    text = WHOLE + "Subject: Grüße\n\nbody\n"
    assert fixed(text) == wire(WHOLE + "Subject: =?utf-8?b?R3LDvMOfZQ==?=\n\nbody\n")
    assert fixed(text, smtputf8=True) == wire(text)


def test_long_lines_are_mended() -> None:
    out = fixed(WHOLE + f"Subject: {'x' * 2000}\n\n{'y' * 2000}\n")
    assert max(map(len, out.split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WHOLE + "Subject: ü\n\n", "outside ASCII without SMTPUTF8"),
        (WHOLE + f"Subject: {'x ' * 600}\n\n", "more than 998 octets"),
        (WHOLE + f"\n{'x ' * 600}\n", "more than 998 octets"),
    ],
)
def test_without_repair_these_are_refused(text: str, reason: str) -> None:
    assert fixed(text)
    with pytest.raises(Refused, match=reason):
        fixed(text, repair=False)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE + "To: jü@x.test\n\n",
        WHOLE + "Subject: a\0b\n\n",
        WHOLE + f"In-Reply-To: <{'x' * 1200}@y>\n\n",
        WHOLE + f"MIME-Version: 1.0\nContent-Type: multipart/signed; boundary=b\n\n--b\n\n{'x' * 1200}\n--b--\n",
    ],
)
def test_what_can_not_be_mended_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        fixed(text)


def test_a_spooled_body_is_not_read_into_memory(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, memory_octets=1000)
    writer.feed(wire("Bcc: x@y.test\n" + WHOLE + "\n") + b"line\r\n" * 50_000)
    content = writer.finish()
    out = fix(content)
    assert not out.in_memory
    assert out.read() == wire(WHOLE + "\n") + b"line\r\n" * 50_000


SIGNED = """\
MIME-Version: 1.0
Content-Type: multipart/signed; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

ü
--b--
"""


@pytest.mark.parametrize(
    ("text", "body", "is_eight_bit"),
    [
        ("\nmit freundlichen Grüßen\n", b"\r\nmit freundlichen Gr=C3=BC=C3=9Fen\r\n", False),
        ("\nПривет\n", b"\r\n0J/RgNC40LLQtdGCDQo=\r\n", False),
        ("\nplain = plain\n", b"\r\nplain = plain\r\n", False),
        (SIGNED, wire(SIGNED).partition(b"\r\n\r\n")[2], True),
    ],
)
def test_8bit_bodies_are_encoded_before_they_are_signed(text: str, body: bytes, is_eight_bit: bool) -> None:
    """RFC 6376 s. 5.3; what the user signed (RFC 1847) stays, and needs 8BITMIME."""
    fix_up = FixUp(strip_fields=[], repair=True)
    content = Content.from_bytes(wire(WHOLE + text))
    result = fix_up(content, mail_from=ALICE, now=NOW, message_id="m@x", smtputf8=False)
    assert result.is_eight_bit is is_eight_bit
    assert result.content.read().endswith(body)
    assert (b"Content-Transfer-Encoding" in result.content.head) is (not text.isascii() and not is_eight_bit)
