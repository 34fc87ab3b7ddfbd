"""BODY[section] (RFC 3501 s. 6.4.5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mime_corpus import corpus, wire

from pymx.mail.mime import parse
from pymx.proto.imap.section import Section, extract

MESSAGE = wire(
    b"Subject: outer\nX-Fold: a\n b\nContent-Type: multipart/mixed; boundary=o\n\npreamble\n"
    b"--o\nContent-Type: text/plain\nX-Part: 1\n\none\n"
    b"--o\nContent-Type: message/rfc822\n\nSubject: inner\nContent-Type: multipart/mixed; boundary=i\n\n"
    b"--i\n\nalpha\n--i\nContent-Type: text/html\n\nbeta\n--i--\n\n"
    b"--o\nContent-Type: message/rfc822\n\nSubject: plain inner\n\ngamma\n--o--\n"
)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ((1,), "", b"one"),
        ((1,), "MIME", b"Content-Type: text/plain\r\nX-Part: 1\r\n\r\n"),
        ((1,), "TEXT", None),
        ((1,), "HEADER", None),
        ((1, 1), "", None),
        ((2, 1), "", b"alpha"),
        ((2, 1), "MIME", b"\r\n"),
        ((2, 2), "", b"beta"),
        ((2, 2), "MIME", b"Content-Type: text/html\r\n\r\n"),
        ((2, 3), "", None),
        ((3,), "", b"Subject: plain inner\r\n\r\ngamma"),
        ((3,), "HEADER", b"Subject: plain inner\r\n\r\n"),
        ((3,), "TEXT", b"gamma"),
        ((3, 1), "", b"gamma"),
        ((3, 1), "MIME", b"Subject: plain inner\r\n\r\n"),
        ((3, 1, 1), "", None),
        ((3, 2), "", None),
        ((4,), "", None),
        ((0,), "", None),
        ((), "MIME", None),
        ((), "HEADER", MESSAGE[: MESSAGE.index(b"preamble")]),
        ((), "TEXT", MESSAGE[MESSAGE.index(b"preamble") :]),
        ((), "", MESSAGE),
    ],
)
def test_parts_by_number(path: tuple[int, ...], text: str, expected: bytes | None) -> None:
    assert extract(MESSAGE, Section(path, text)) == expected
    assert extract(MESSAGE, Section(path, text), parse(MESSAGE)) == expected


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("HEADER.FIELDS", (b"SUBJECT", b"x-fold"), b"Subject: outer\r\nX-Fold: a\r\n b\r\n\r\n"),
        ("HEADER.FIELDS", (b"none",), b"\r\n"),
        ("HEADER.FIELDS.NOT", (b"x-fold", b"content-type"), b"Subject: outer\r\n\r\n"),
    ],
)
def test_chosen_fields_keep_their_octets_and_end_with_a_blank_line(
    text: str, fields: tuple[bytes, ...], expected: bytes
) -> None:
    assert extract(MESSAGE, Section((), text, fields)) == expected


def test_the_body_of_a_message_that_is_not_multipart_is_part_one() -> None:
    message = b"Subject: x\r\n\r\nbody"
    assert extract(message, Section((1,))) == b"body"
    assert extract(message, Section((1,), "MIME")) == b"Subject: x\r\n\r\n"
    assert extract(message, Section((2,))) is None


def test_the_part_that_a_multipart_without_parts_shows_is_empty() -> None:
    message = b"Content-Type: multipart/mixed\r\n\r\nx"
    assert extract(message, Section((1,))) == b""
    assert extract(message, Section((1, 1))) is None


def test_a_header_without_blank_line_is_all_of_it() -> None:
    assert extract(b"Subject: x", Section((), "HEADER")) == b"Subject: x"
    assert extract(b"Subject: x", Section((), "HEADER.FIELDS", (b"subject",))) == b"Subject: x\r\n\r\n"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(corpus())),
    st.integers(0, 400),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(["", "HEADER", "TEXT", "MIME", "HEADER.FIELDS", "HEADER.FIELDS.NOT"]),
)
def test_any_section_of_a_torn_message_gives_octets_or_nothing(
    name: str, cut: int, path: tuple[int, ...], text: str
) -> None:
    message = wire(corpus()[name])[:cut]
    section = Section(path, text, (b"Subject",))
    found = extract(message, section)
    assert found == extract(message, section, parse(message))
    assert found is None or text.startswith("HEADER.FIELDS") or found in message
