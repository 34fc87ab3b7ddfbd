"""Decoding of headers and bodies, and folding for search (RFC 2047, RFC 2045 s. 6, RFC 5051)."""

from __future__ import annotations

import time
from email.header import Header

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymx.mail.mime import parse
from pymx.mail.text import decode_base64, decode_body, decode_header, fold, html_to_text

MEGABYTE = 1 << 20
SOON_S = 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # RFC 2047 s. 8
        (b"=?ISO-8859-1?Q?a?=", "a"),
        (b"=?ISO-8859-1?Q?a?= b", "a b"),
        (b"=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a?=\r\n    =?ISO-8859-1?Q?b?=", "ab"),
        (b"=?ISO-8859-1?Q?a_b?=", "a b"),
        (b"=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=", "a b"),
        (b"=?utf-8?q?J=C3=B6rg?= <j@x>", "Jörg <j@x>"),
        (b"x =?utf-8?b?w7Y=?= y", "x ö y"),
        (b"=?utf-8?b?w7Y?=", "ö"),
        (b"=?utf-8?b?w7Y=w7Y=?=", "ö"),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=B6?=", "ö"),
        (b"=?utf-8?q?=E4?=", "ä"),
        (b"=?x-unknown-9?q?=C3=B6?=", "ö"),
        (b"=?zlib?b?eJw=?=", "x\x9c"),
        (b"=?utf-8*de?q?=C3=B6?=", "ö"),
        (b"=?utf-8?q?with space?=", "with space"),
        (b"=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
        (b"=?utf-8?q?unclosed", "=?utf-8?q?unclosed"),
        (b"=?utf-8?q??=", ""),
        (b"a=?utf-8?q?b?=c", "abc"),
        (b"=?gb2312?b?xOO6ww==?=", "你好"),
        (b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?windows-1252?q?=80?=", "€"),
        (b"=?iso-8859-1?q?=80?=", "€"),
        ("grün".encode(), "grün"),
        ("grün".encode("latin-1"), "grün"),
        ("already grün", "already grün"),
        (b"one\r\n two", "one two"),
        (b"=?utf-8?q?a=ZZ?=", "a=ZZ"),
    ],
)
def test_header_values(value: bytes | str, expected: str) -> None:
    assert decode_header(value) == expected


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1, max_size=60)
)
def test_what_the_standard_library_encodes_is_decoded(text: str) -> None:
    assert decode_header(Header(text, "utf-8").encode()) == text


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from([b"=?", b"?=", b"?q?", b"?b?", b"utf-8", b"=C3", b"_", b" ", b"\n", b"utf-16"]), max_size=30
    ).map(b"".join)
)
def test_no_header_value_raises(value: bytes) -> None:
    decode_header(value).encode("utf-8")
    decode_header(value.decode("utf-8", "surrogateescape") + "\ud800")


@pytest.mark.parametrize(
    "charset",
    [
        "idna",
        "punycode",
        "zlib",
        "bz2",
        "rot13",
        "utf-7",
        "undefined",
        "hex",
        "unicode_escape",
        "base64",
        "mbcs",
        "utf-16",
        "utf-32",
        "iso-2022-jp",
        "hz",
        "big5",
        "cp037",
    ],
)
@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_no_charset_raises(charset: str, data: bytes) -> None:
    part = parse(b"Content-Type: text/plain; charset=%s\r\n\r\n%s" % (charset.encode(), data))
    assert isinstance(
        decode_body(part, b"Content-Type: text/plain; charset=%s\r\n\r\n%s" % (charset.encode(), data)), str
    )


@pytest.mark.parametrize(
    ("header", "body", "expected"),
    [
        (b"", b"plain", "plain"),
        (b"", "grün".encode(), "grün"),
        (b"", "grün".encode("latin-1"), "grün"),
        (b"Content-Type: text/plain; charset=iso-8859-15", b"\xa4", "€"),
        (b"Content-Type: text/plain; charset=nope", b"x", "x"),
        (b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: base64', b"Z3LD\r\nvG4=", "grün"),
        (b"Content-Transfer-Encoding: BASE64 (sure)", b"Z3J1*en!", "gruz"),
        (b"Content-Transfer-Encoding: quoted-printable", b"gr=C3=BCn so=\r\nft =3D =zz", "grün soft = =zz"),
        (b"Content-Transfer-Encoding: x-unknown", b"as it is", "as it is"),
        (b"Content-Transfer-Encoding: x-uuencode", b"begin 644 a\r\n#86)C\r\n`\r\nend\r\n", "abc"),
    ],
)
def test_bodies(header: bytes, body: bytes, expected: str) -> None:
    message = header + (b"\r\n" if header else b"") + b"\r\n" + body
    assert decode_body(parse(message), message) == expected


@given(st.binary(max_size=100))
def test_base64_never_raises(data: bytes) -> None:
    decode_base64(data)


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("a<b>b</b>c", "abc"),
        ("<p>one</p><p>two</p>", " one  two "),
        ("x<!-- no -->y", "x y"),
        ("<script>var a = '<p>';</script >z", " z"),
        ("<STYLE>p {}</style>z", " z"),
        ("<script>never closed", " "),
        ("&lt;b&gt; &auml;&#246; &nope;", "<b> äö &nope;"),
        ("1 < 2 and 3 > 2", "1   2"),
    ],
)
def test_html_to_text(markup: str, expected: str) -> None:
    assert html_to_text(markup) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HELLO", "hello"),
        ("STRASSE", "straße"),
        ("ÉTÉ", "été"),
        ("ﬁn", "fin"),
        ("Ａ", "a"),
        ("e\u0301", "é"),
        ("Σας", "σασ"),
        ("K", "k"),
    ],
)
def test_fold_makes_one_of_what_differs_only_in_case_or_form(one: str, other: str) -> None:
    """RFC 5051 s. 2.3."""
    assert fold(one) == fold(other)


@pytest.mark.parametrize("pattern", ["\u0301\u0323", "\u0323\u0301", "\ufdfa", "\u0130", "\u4f60", "\uac00", "\u1ecb "])
def test_a_hostile_megabyte_is_folded_in_well_under_a_second(pattern: str) -> None:
    """Sorting combining marks is quadratic in the length of their run (UAX #15 s. 13)."""
    started = time.process_time()
    fold("a" + pattern * (MEGABYTE // len(pattern.encode())))
    fold("a" + "\u0301" * (MEGABYTE // 4) + "\u0323" * (MEGABYTE // 4))
    assert time.process_time() - started < SOON_S


@given(st.text(max_size=50))
def test_fold_is_stable(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(st.text(max_size=30))
def test_fold_does_not_know_upper_from_lower(text: str) -> None:
    assert fold(text.casefold()) == fold(text)


@pytest.mark.parametrize(
    "pattern", [b"=?", b"=?utf-8?q?", b"=?utf-8?q?x?= ", b"=?utf-8?b?w7Y=?=", b"?=", b"\r\n ", b"=?a?b?"]
)
def test_a_hostile_megabyte_of_header_is_decoded_in_well_under_a_second(pattern: bytes) -> None:
    started = time.process_time()
    decode_header(pattern * (MEGABYTE // len(pattern) // 2))
    assert time.process_time() - started < SOON_S


@pytest.mark.parametrize(
    "pattern",
    ["<", "<!--", "<script>", "</script ", "<script></script ", "<a ", "&", "&#", "&amp", ">", "<s", "<style "],
)
def test_a_hostile_megabyte_of_html_is_stripped_in_well_under_a_second(pattern: str) -> None:
    started = time.process_time()
    html_to_text(pattern * (MEGABYTE // len(pattern)))
    assert time.process_time() - started < SOON_S
