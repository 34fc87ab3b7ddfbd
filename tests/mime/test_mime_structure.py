"""The MIME scanner: offsets, defaults, limits, and what it does to hostile input (RFC 2045, RFC 2046)."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mime_corpus import corpus, wire

from pymx.mail import mime
from pymx.mail.mime import Part, parse, parse_content_type, scan_fields, strip_comments

MEGABYTE = 1 << 20
SOON_S = 1.0  # for a megabyte; quadratic work would take minutes


def _body(message: bytes, part: Part) -> bytes:
    return message[part.body_start : part.body_end]


def test_a_body_part_ends_before_the_line_end_of_its_delimiter() -> None:
    """RFC 2046 s. 5.1.1: the CRLF preceding the delimiter line is part of the delimiter."""
    message = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\npre\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n\r\n--b--\r\nepi"
    )
    root = parse(message)
    assert [_body(message, child) for child in root.children] == [b"one", b"two\r\n"]
    assert [child.lines for child in root.children] == [0, 1]
    assert root.body_end == len(message)


def test_bare_line_feeds_are_read_like_crlf() -> None:
    message = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b--\n"
    assert [_body(message, child) for child in parse(message).children] == [b"one"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"text/html", (b"text", b"html", [])),
        (b"TEXT / HTML ;charset = x", (b"TEXT", b"HTML", [(b"charset", b"x")])),
        (b"(c) text (d) / (e) html (f); (g) a=b", (b"text", b"html", [(b"a", b"b")])),
        (b'a/b; x="1;2\\"3"; y=4', (b"a", b"b", [(b"x", b'1;2"3'), (b"y", b"4")])),
        (b'a/b; x="unclosed', (b"a", b"b", [(b"x", b"unclosed")])),
        (b"a/b; name=my file.pdf; y=4", (b"a", b"b", [(b"name", b"my file.pdf"), (b"y", b"4")])),
        (b"text", (b"text", b"", [])),
        (b"", (b"", b"", [])),
        (b";x=y", (b"", b"", [(b"x", b"y")])),
        (b"a/b;;; x=y;", (b"a", b"b", [(b"x", b"y")])),
        (b'a/b; n*1="2"; n*0="1"', (b"a", b"b", [(b"n", b"12")])),
        (b"a/b; n*0*=utf-8''%41; n*1=b%c", (b"a", b"b", [(b"n*", b"utf-8''%41b%25c")])),
        (b"a/b; n*0=x; n*2=y", (b"a", b"b", [(b"n*0", b"x"), (b"n*2", b"y")])),
        (b"a/b; n*0=x; n*0=y; n*1=z", (b"a", b"b", [(b"n*0", b"x"), (b"n*0", b"y"), (b"n*1", b"z")])),
        (b"a/b; n*=utf-8''x", (b"a", b"b", [(b"n*", b"utf-8''x")])),
    ],
)
def test_content_type_values(value: bytes, expected: object) -> None:
    """RFC 2045 s. 5.1, RFC 2231 s. 3 and 4."""
    assert parse_content_type(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a (b) c", b"a   c"),
        (b"a (b (c) d) e", b"a   e"),
        (b'"(x)" (y)', b'"(x)"  '),
        (b"a (unclosed", b"a  "),
        (b"a \\(b", b"a \\(b"),
        (b"a (\\)) b", b"a   b"),
        (b"a ) b", b"a ) b"),
    ],
)
def test_comments_become_spaces(value: bytes, expected: bytes) -> None:
    assert strip_comments(value) == expected


def test_parts_of_a_digest_are_messages() -> None:
    """RFC 2046 s. 5.1.5."""
    root = parse(wire(corpus()["whole: digest"]))
    assert [(child.type, child.message is not None) for child in root.children] == [
        (b"message", True),
        (b"text", False),
    ]


def test_what_lies_deeper_than_the_limit_is_one_opaque_part() -> None:
    message = b"Content-Type: message/rfc822\r\n\r\n" * 100 + b"Subject: core\r\n\r\nx"
    part, depth = parse(message), 0
    while part.message is not None:
        part, depth = part.message, depth + 1
    assert depth == mime.MAX_DEPTH
    assert (part.type, part.subtype) == (b"application", b"octet-stream")
    assert part.body_end == len(message)


def test_parts_beyond_the_limit_are_not_listed() -> None:
    message = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 5000
    assert len(parse(message).children) == mime.MAX_PARTS - 1


def test_fields_beyond_the_limit_are_not_read() -> None:
    header = b"X: y\r\n" * (mime.MAX_FIELDS + 1) + b"Subject: late\r\n"
    assert scan_fields(header, frozenset({b"subject"})) == {}


def test_a_header_of_many_megabytes_is_not_copied_whole() -> None:
    message = b"Subject: x\r\n" + b"X: y\r\n" * (8 * MEGABYTE // 6)
    tracemalloc.start()
    try:
        parse(message)
        assert tracemalloc.get_traced_memory()[1] < 6 * MEGABYTE
    finally:
        tracemalloc.stop()


def _nested_multiparts(levels: int) -> bytes:
    out = b""
    for level in range(levels):
        out += b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n" % ((b"b" * (level + 1),) * 2)
    return out


def _fill(pattern: bytes) -> bytes:
    return pattern * (MEGABYTE // len(pattern))


HOSTILE = {
    "boundary starts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + _fill(b"\n--"),
    "delimiters": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + _fill(b"--b\r\n"),
    "close delimiters": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + _fill(b"--b--\r\n"),
    "nested, then boundary starts": _nested_multiparts(40) + _fill(b"\n--b"),
    "nested, then long near misses": _nested_multiparts(40) + _fill(b"\n--" + b"b" * 20 + b"c"),
    "nested, not closed": _fill(_nested_multiparts(40)),
    "parts without blank line": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + _fill(b"--b\r\nX: y\r\n"),
    "multiparts in parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + _fill(b"--b\r\nContent-Type: multipart/mixed; boundary=never\r\n\r\n"),
    "messages in messages": _fill(b"Content-Type: message/rfc822\r\n\r\n"),
    "one long header": _fill(b"X"),
    "many fields": _fill(b"A:\r\n"),
    "many lines that are no fields": _fill(b"\n\n\n"),
    "many content types": _fill(b"Content-Type: text/plain; a=b\r\n"),
    "folding": b"To: x" + _fill(b"\r\n "),
    "comments in type": b"Content-Type: text/plain; x=(" + _fill(b"("),
    "parameters": b"Content-Type: text/plain" + _fill(b"; a*0=b"),
    "spaces between parameters": b"Content-Type: text/plain" + _fill(b";" + b" " * 50),
    "quotes in parameters": b"Content-Type: text/plain; x=" + _fill(b'"'),
    "backslashes in parameters": b'Content-Type: text/plain; x="' + _fill(b"\\"),
    "line feeds": b"\r\n" + _fill(b"\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_takes_well_under_a_second(name: str) -> None:
    started = time.process_time()
    parse(HOSTILE[name])
    assert time.process_time() - started < SOON_S


def _check(message: bytes, part: Part, low: int, high: int) -> int:
    """Offsets are in order and inside the parent; returns how many parts there are."""
    assert low <= part.header_start <= part.header_end <= part.body_start <= part.body_end <= high
    assert 0 <= part.lines <= message.count(b"\n", part.body_start, part.body_end)
    count = 1
    for child in part.children:
        count += _check(message, child, part.body_start, part.body_end)
        low = child.body_end
    if part.message is not None:
        count += _check(message, part.message, part.body_start, max(part.body_end, part.body_start))
    return count


fragments = st.sampled_from(
    [
        *(
            b"--b",
            b"--b--",
            b"--bb",
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b"\xff",
            b"(",
            b")",
            b'"',
            b"\\",
            b";",
            b",",
            b"=",
            b"*",
        ),
        *(b"Content-Type: ", b"multipart/mixed; boundary=b", b"multipart/digest; boundary=bb", b"message/rfc822"),
        *(
            b"text/plain",
            b"; charset=x",
            b"Content-Disposition: attachment; filename*0=a",
            b"Subject: ",
            b"From: ",
            b" ",
            b"x",
        ),
        *(b"Content-Transfer-Encoding: base64", b"Content-Language: ", b"a@b", b"<", b">", b":", b"=?utf-8?q?x?="),
    ]
)
soup = st.lists(fragments, max_size=60).map(b"".join) | st.binary(max_size=300)


@settings(max_examples=400, deadline=None)
@given(soup)
def test_any_bytes_have_a_structure_with_sound_offsets(message: bytes) -> None:
    root = parse(message)
    assert root.header_start == 0
    assert root.body_end == len(message)
    assert _check(message, root, 0, len(message)) <= mime.MAX_PARTS + 1
