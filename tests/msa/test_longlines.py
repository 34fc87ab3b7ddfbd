"""Body lines over 998 octets (RFC 5322 s. 2.1.1): found in any cutting, mended by encoding their part."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.msa.longlines import CannotMend, has_long_line, mended

LONG = "wörd " * 300


@pytest.mark.parametrize("cut", [1, 7, 997, 998, 999, 1000, 1001, 65536])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", False),
        (b"x" * 998, False),
        (b"x" * 999, True),
        (b"x" * 998 + b"\r\n", False),
        (b"x" * 999 + b"\r\n", True),
        ((b"x" * 998 + b"\r\n") * 5, False),
        (b"\r\n" * 3000, False),
        (b"a\r\n" * 700 + b"x" * 999 + b"\r\nb", True),
        (b"a\r\n" * 700 + b"x" * 998 + b"\r\nb", False),
        (b"a\r\n" * 700 + b"x" * 1500, True),
    ],
)
def test_the_limit_is_998_octets_wherever_the_text_is_cut(text: bytes, expected: bool, cut: int) -> None:
    assert has_long_line(text[i : i + cut] for i in range(0, len(text), cut)) is expected


@given(st.lists(st.integers(0, 1100), max_size=12), st.integers(1, 1500))
def test_it_agrees_with_looking_at_every_line(lengths: list[int], cut: int) -> None:
    text = b"\r\n".join(b"x" * n for n in lengths)
    assert has_long_line(text[i : i + cut] for i in range(0, len(text), cut)) == any(n > 998 for n in lengths)


def message(head: str, body: str) -> bytes:
    return (head + "\n" + body).replace("\n", "\r\n").encode()


def parsed(data: bytes) -> email.message.EmailMessage:
    out = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(out, email.message.EmailMessage)
    return out


def test_a_plain_text_becomes_quoted_printable() -> None:
    out = mended(message("From: a@b.test\nSubject: x\n", f"first\n{LONG}\nlast\n"))
    assert not has_long_line([out])
    read = parsed(out)
    assert read["MIME-Version"] == "1.0"
    assert read["Content-Transfer-Encoding"] == "quoted-printable"
    assert read.get_content().replace("\r\n", "\n") == f"first\n{LONG}\nlast\n"


MULTIPART = """\
From: a@b.test
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=outer

preamble
--outer
Content-Type: multipart/alternative; boundary="inner"

--inner
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

short ü
--inner
Content-Type: text/html; charset=utf-8
content-transfer-encoding: 8BIT

<p>{long}</p>
--inner--
--outer
Content-Type: application/json

{{"a": "{long}"}}
--outer
Content-Type: application/octet-stream
Content-Transfer-Encoding: base64

{base64}
--outer--
epilogue
"""


def test_only_the_parts_with_long_lines_are_touched() -> None:
    before = message("", MULTIPART.format(long=LONG, base64="QUJD" * 400))[2:]
    out = mended(before)
    assert not has_long_line([out])
    old, new = parsed(before), parsed(out)
    parts = list(zip(old.walk(), new.walk(), strict=True))
    assert [b["Content-Transfer-Encoding"] for _, b in parts] == [
        None, None, "8bit", "quoted-printable", "base64", "base64",
    ]  # fmt: skip
    for a, b in parts:
        if not a.is_multipart():
            assert a.get_payload(decode=True) == b.get_payload(decode=True)
    assert b"short \xc3\xbc\r\n--inner" in out
    assert out.startswith(before[: before.index(b"--outer")])
    assert out.endswith(b"--outer--\r\nepilogue\r\n")


@pytest.mark.parametrize("kind", ["signed", "encrypted"])
def test_a_signed_message_is_left_alone(kind: str) -> None:
    """RFC 1847 s. 2.1: what is signed is treated as opaque."""
    data = message("", MULTIPART.format(long=LONG, base64="").replace("multipart/mixed", f"multipart/{kind}"))[2:]
    with pytest.raises(CannotMend):
        mended(data)


def test_an_attached_message_is_left_alone() -> None:
    head = "From: a@b.test\nMIME-Version: 1.0\nContent-Type: message/rfc822\n"
    with pytest.raises(CannotMend):
        mended(message(head, f"From: c@d.test\n\n{LONG}\n"))


def test_long_lines_outside_of_parts_are_left_alone() -> None:
    with pytest.raises(CannotMend):
        mended(message("", MULTIPART.format(long="x", base64="").replace("preamble", LONG))[2:])


def test_a_part_whose_header_has_a_line_that_is_no_field_is_left_alone() -> None:
    """Where its body begins is read in two ways, so a field put behind that line could become text."""
    with pytest.raises(CannotMend):
        mended(message("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n", f"--b\nü\n\n{LONG}\n--b--\n"))


def test_an_unknown_encoding_is_left_alone() -> None:
    with pytest.raises(CannotMend):
        mended(message("From: a@b.test\nContent-Transfer-Encoding: x-uuencode\n", f"{LONG}\n"))


def test_a_quoted_printable_part_with_long_lines_is_wrapped_anew() -> None:
    head = "From: a@b.test\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n"
    out = mended(message(head, "=C3=BC and = 3D" + "x" * 1200 + "\n"))
    assert not has_long_line([out])


@given(st.lists(st.sampled_from(["x" * 999, "--b", "--b--", "", "Content-Type: text/html", "ü", "a b "]), max_size=12))
def test_any_message_is_mended_or_refused(lines: list[str]) -> None:
    data = message("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n", "\n".join(lines))
    try:
        out = mended(data)
    except CannotMend:
        return
    assert not has_long_line([out.partition(b"\r\n\r\n")[2]])
    for a, b in zip(parsed(data).walk(), parsed(out).walk(), strict=True):
        if not a.is_multipart():
            assert (a.get_payload(decode=True) or b"").rstrip() == (b.get_payload(decode=True) or b"").rstrip()
