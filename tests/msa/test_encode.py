"""8-bit and overlong header fields made fit to travel (RFC 2047, RFC 2231, RFC 5322 s. 2.1.1)."""

from __future__ import annotations

import email
import email.header
import email.policy
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.authors import AuthorError, mailboxes
from pymx.mail.header import Field, iter_fields
from pymx.msa.encode import CannotEncode, folded, needs_folding, seven_bit


def field(raw: str | bytes) -> Field:
    data = raw.encode() if isinstance(raw, str) else raw
    return next(iter_fields(data + b"\r\n"))


def decoded(raw: bytes, name: str) -> str:
    """What Python's email package reads."""
    value = email.message_from_bytes(raw + b"\r\n", policy=email.policy.default)[name]
    return str(value)


UNSTRUCTURED = ["Grüße", "Hello Wörld, again", "plain then ünd plain", "日本語" * 40, "a" * 50 + "é", "é  é"]


@pytest.mark.parametrize("text", UNSTRUCTURED)
def test_a_subject_reads_the_same_afterwards(text: str) -> None:
    raw = seven_bit(field(f"Subject: {text}"))
    assert raw.isascii()
    assert all(len(line) <= 78 for line in raw.split(b"\r\n"))
    assert decoded(raw, "subject") == text


def test_text_that_is_not_utf8_is_taken_for_windows_1252() -> None:
    assert decoded(seven_bit(field(b"Subject: Gr\xfc\xdfe \x80 5")), "subject") == "Grüße € 5"


ADDRESSES = [
    ("Jürgen <j@example.test>", [("Jürgen", "j@example.test")]),
    (
        '"Müller, Jürgen" <j@example.test>, bob@example.test',
        [("Müller, Jürgen", "j@example.test"), ("", "bob@example.test")],
    ),
    ("Ann <a@example.test>,Jü <j@example.test>", [("Ann", "a@example.test"), ("Jü", "j@example.test")]),
    ("j@bücher.test, Ann <a@bücher.test>", [("", "j@xn--bcher-kva.test"), ("Ann", "a@xn--bcher-kva.test")]),
]


@pytest.mark.parametrize(("text", "expected"), ADDRESSES)
def test_display_names_are_encoded_and_addresses_kept(text: str, expected: list[tuple[str, str]]) -> None:
    """RFC 2047 s. 5 (3)."""
    raw = seven_bit(field(f"To: {text}"))
    assert raw.isascii()
    parsed = email.utils.getaddresses([field(raw.removesuffix(b"\r\n")).value.decode()])
    readable = [(str(email.header.make_header(email.header.decode_header(name))), a) for name, a in parsed]
    assert readable == expected


def test_comments_are_encoded_inside_their_parentheses() -> None:
    assert seven_bit(field("To: a@example.test (Jü)")) == b"To: a@example.test (=?utf-8?b?SsO8?=)\r\n"


def test_file_names_become_rfc_2231_parameters() -> None:
    raw = seven_bit(field('Content-Disposition: attachment; filename="Übersicht.pdf"; size=5'))
    assert raw == b"Content-Disposition: attachment; filename*=utf-8''%C3%9Cbersicht.pdf; size=5\r\n"


@pytest.mark.parametrize("text", ["To: jü@example.test", "To: X <jü@example.test>", "Message-ID: <ü@x>", "Date: März"])
def test_what_has_no_7bit_form_is_refused(text: str) -> None:
    """RFC 6531: such mail needs SMTPUTF8."""
    with pytest.raises(CannotEncode):
        seven_bit(field(text))


@given(st.sampled_from(["Subject", "To", "From", "Content-Type", "X-A"]), st.binary(max_size=60))
def test_encoding_never_fails_otherwise_and_gives_one_field(name: str, value: bytes) -> None:
    raw = name.encode() + b": " + value.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    try:
        out = seven_bit(next(iter_fields(raw)))
    except CannotEncode:
        return
    assert out.isascii()
    assert [f.name for f in iter_fields(out)] == [name.lower()]


@given(st.text(alphabet='aé<>",@ ;:()\\.', max_size=40))
def test_encoding_does_not_move_anybody_into_from(value: str) -> None:
    """The mailboxes of an encoded From are those of the original."""
    try:
        before = mailboxes(value.strip())
    except AuthorError:
        return
    try:
        raw = seven_bit(field(f"From: {value}"))
    except CannotEncode:
        return
    assert [a.ascii_domain for a in mailboxes(field(raw[:-2]).value.decode())] == [a.ascii_domain for a in before]


LONG = [
    b"To: " + b",".join(b"user%d@a-long-name.example.test" % i for i in range(90)),
    b'To: "Last, First" <a@b.test>,' + b",".join(b"<user%d@example.test>" % i for i in range(90)),
    b"References: " + b" ".join(b"<%d@example.test>" % i for i in range(200)),
    b"Subject: " + b"x" * 3000,
    b"Subject: " + b"word " * 600,
    b"X-Thing: " + b"\xc3\xa9" * 1000,
]


@pytest.mark.parametrize("raw", LONG)
def test_long_lines_are_folded(raw: bytes) -> None:
    out = folded(field(raw))
    assert not needs_folding(out)
    before, after = field(raw), field(out[:-2])
    if before.name == "to":
        assert mailboxes(after.value.decode()) == mailboxes(before.value.decode())
    else:
        assert decoded(out, before.name).split() == before.value.decode().split()


def test_a_long_line_without_a_break_is_refused() -> None:
    with pytest.raises(CannotEncode, match="no place to fold"):
        folded(field(b"Message-ID: <" + b"x" * 1200 + b"@y>"))


HOSTILE = ['"', '\\"', "(", "\\(", "()", "<", "<>", '("', ",", ":", ";a=", ';a="', ';a="\\"', " ", "é", "é ", "\\"]


@pytest.mark.parametrize("name", ["From", "Subject", "Content-Type"])
@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_fields_are_encoded_in_linear_time(unit: str, name: str) -> None:
    """Half a megabyte of any of these is over in a moment."""
    hostile = field(f'{name}: é"({unit * (500_000 // len(unit.encode()))}')
    started = time.process_time()
    for encode in (seven_bit, folded):
        try:
            encode(hostile)
        except CannotEncode:
            pass
    assert time.process_time() - started < 3
