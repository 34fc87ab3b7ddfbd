"""ENVELOPE and BODYSTRUCTURE (RFC 3501 s. 7.4.2): values, and legal whatever comes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imap_grammar import read_body, read_envelope
from mime_corpus import corpus, wire

from pymx.mail.address_list import addresses
from pymx.mail.mime import parse
from pymx.proto.imap import envelope as envelope_module
from pymx.proto.imap.bodystructure import bodystructure
from pymx.proto.imap.envelope import envelope
from pymx.proto.imap.render import render

MEGABYTE = 1 << 20
SOON_S = 1.0


def test_the_example_of_the_standard() -> None:
    """RFC 3501 s. 7.4.2 and the sample session of s. 8."""
    header = (
        b"Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\r\n"
        b"From: Terry Gray <gray@cac.washington.edu>\r\n"
        b"Subject: IMAP4rev1 WG mtg summary and minutes\r\n"
        b"To: imap@cac.washington.edu\r\n"
        b"cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>\r\n"
        b"Message-Id: <B27397-0100000@cac.washington.edu>\r\n"
    )
    gray = b'(("Terry Gray" NIL "gray" "cac.washington.edu"))'
    assert envelope(header) == (
        b'("Wed, 17 Jul 1996 02:23:25 -0700 (PDT)" "IMAP4rev1 WG mtg summary and minutes" '
        + b" ".join([gray] * 3)
        + b' ((NIL NIL "imap" "cac.washington.edu")) ((NIL NIL "minutes" "CNRI.Reston.VA.US")'
        b'("John Klensin" NIL "KLENSIN" "MIT.EDU")) NIL NIL "<B27397-0100000@cac.washington.edu>")'
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a@b", [(None, None, b"a", b"b")]),
        (b"A B <a@b>", [(b"A B", None, b"a", b"b")]),
        (b"A  B <a@b>", [(b"A B", None, b"a", b"b")]),
        (b'"A, B" <a@b>,c@d', [(b"A, B", None, b"a", b"b"), (None, None, b"c", b"d")]),
        (b'"A \\"x\\"" <a@b>', [(b'A "x"', None, b"a", b"b")]),
        (b"a@b (A B)", [(b"A B", None, b"a", b"b")]),
        (b"<@x,@y:a@b>", [(None, b"@x,@y", b"a", b"b")]),
        (
            b"G: a@b, C <c@d>;",
            [(None, None, b"G", None), (None, None, b"a", b"b"), (b"C", None, b"c", b"d"), (None,) * 4],
        ),
        (b"G:;", [(None, None, b"G", None), (None,) * 4]),
        (b"G: a@b", [(None, None, b"G", None), (None, None, b"a", b"b"), (None,) * 4]),
        (b"G:;, x@y", [(None, None, b"G", None), (None,) * 4, (None, None, b"x", b"y")]),
        (b"root", [(None, None, b"root", b"MISSING_DOMAIN")]),
        (b"John Doe", [(b"John Doe", None, b"MISSING_MAILBOX", b"MISSING_DOMAIN")]),
        (b"John john@x.example", [(b"John", None, b"john", b"x.example")]),
        (b"<>", []),
        (b",,,", []),
        (b"", []),
        (b"a@[1.2.3.4]", [(None, None, b"a", b"[1.2.3.4]")]),
        (b'"a b"@c', [(None, None, b"a b", b"c")]),
        (b'"@"@b', [(None, None, b"@", b"b")]),
        (b"a@b <c@d>", [(b"a@b", None, b"c", b"d")]),
        (b"a@b c@d, e@f", [(None, None, b"a", b"b"), (None, None, b"e", b"f")]),
        (b"A <a@b, c@d", [(b"A", None, b"a", b"b"), (None, None, b"c", b"d")]),
        (b"A <a@b>>, c@d", [(b"A", None, b"a", b"b"), (None, None, b"c", b"d")]),
    ],
)
def test_address_lists(value: bytes, expected: object) -> None:
    """RFC 5322 s. 3.4 and 4.4, and what is none of it."""
    assert list(addresses(value)) == expected


@given(st.lists(st.sampled_from([b"a@b", b"A B <c@d>", b'"x, y" <e@f>', b"<g@h>"]), max_size=8))
def test_the_short_cut_and_the_full_reader_agree(members: list[bytes]) -> None:
    value = b", ".join(members)
    assert list(addresses(value)) == list(addresses(b" \t" + value))


def test_eight_bit_octets_and_control_characters_go_as_literals() -> None:
    """RFC 3501 s. 4.3: a quoted string is 7-bit text without CR and LF; no string holds NUL."""
    subject = read_envelope(envelope("Subject: gr\u00fcn\0\x07\r\n".encode()))[1]
    assert subject == "gr\u00fcn\ufffd\x07".encode()


def test_fields_in_the_envelope_are_unfolded() -> None:
    assert read_envelope(envelope(b"Subject: a\r\n b\r\n\tc\rd\r\n"))[1] == b"a b\tc d"


def test_very_long_values_are_cut() -> None:
    subject = read_envelope(envelope(b"Subject: " + b"x" * MEGABYTE))[1]
    assert subject == b"x" * envelope_module.MAX_STRING
    many = b"To: " + b"a@b," * (envelope_module.MAX_ADDRESSES + 10)
    assert len(read_envelope(envelope(many))[5]) == envelope_module.MAX_ADDRESSES


def test_multipart_without_parts_shows_one_empty_text_part() -> None:
    """The grammar asks for at least one body in a multipart."""
    part = parse(b"Content-Type: multipart/mixed; boundary=x\r\n\r\nnothing\r\n")
    assert (
        bodystructure(part, extended=False) == b'(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 0 0) "mixed")'
    )


def test_types_that_cannot_be_read_are_plain_text() -> None:
    """RFC 2045 s. 5.2."""
    part = parse(b"Content-Type: foo\r\n\r\nx\r\n")
    assert bodystructure(part, extended=False) == b'("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 3 1)'


@pytest.mark.parametrize("name", sorted(corpus()))
def test_the_corpus_is_rendered_legally_at_any_length(name: str) -> None:
    """Each message whole and cut at every place: a half-written message must not break a session."""
    message = wire(corpus()[name])
    step = max(len(message) // 60, 1)
    for end in (*range(0, len(message), step), len(message)):
        _legal(message[:end])


def _legal(message: bytes) -> None:
    one, structure, _ = render(message)
    read_envelope(one)
    read_body(structure, extended=True)
    read_body(bodystructure(parse(message), extended=False), extended=False)


_FRAGMENTS = st.sampled_from(
    [
        *(
            b"Content-Type: ",
            b"multipart/mixed; boundary=b\r\n",
            b"message/rfc822\r\n",
            b"text/plain; charset=\xff\r\n",
        ),
        *(
            b"--b\r\n",
            b"--b--\r\n",
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b"\xff\xfe",
            b"From: ",
            b"To: ",
            b"Sender: ",
            b"Subject: ",
        ),
        *(
            b"a@b",
            b"<",
            b">",
            b",",
            b";",
            b":",
            b"(",
            b")",
            b'"',
            b"\\",
            b"[",
            b"]",
            b"@",
            b".",
            b" ",
            b"\t",
            b"=?utf-8?q?",
        ),
        *(
            b"Content-Disposition: ",
            b"Content-Language: ",
            b"Content-ID: ",
            b"attachment",
            b"; a*0*=",
            b"{5}\r\n",
            b"NIL",
        ),
        *(b"Date: ", b"Message-ID: ", b"Content-MD5: ", b"Content-Transfer-Encoding: ", b"Content-Description: "),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_FRAGMENTS, max_size=60).map(b"".join) | st.binary(max_size=200))
def test_any_bytes_are_rendered_legally(message: bytes) -> None:
    _legal(message)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(corpus())), st.data())
def test_mutated_messages_are_rendered_legally(name: str, data: st.DataObject) -> None:
    message = bytearray(wire(corpus()[name])[:3000])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(message)))
        message[at : at + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=6))
    _legal(bytes(message))


PATTERNS = (
    *(
        b"(",
        b")",
        b'"',
        b",",
        b"=?",
        b"<",
        b"@",
        b"\\",
        b":",
        b";",
        b"[",
        b"a b ",
        b'"\\',
        b"<@a,",
        b"(\\",
        b"a@b,",
        b". ",
    ),
    *(b"a:", b"x:;", b"a@b(", b"\xff", b"\0", b"\r", b" ", b"\t"),
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_a_hostile_megabyte_is_rendered_in_well_under_a_second(pattern: bytes) -> None:
    fields = (b"To: ", b"Subject: ", b"Content-Type: text/plain; ", b"Content-Disposition: ", b"Content-Language: ")
    header = b"".join(name + pattern * (MEGABYTE // 5 // len(pattern)) + b"\r\n" for name in fields)
    whole_field = b"To: " + pattern * (MEGABYTE // len(pattern))
    behind_many_words = b"To: " + b"a " * (MEGABYTE // 16) + b"@ " + pattern * (MEGABYTE // 2 // len(pattern))
    for message in (header, whole_field, behind_many_words):
        started = time.process_time()
        render(message)
        assert time.process_time() - started < SOON_S
