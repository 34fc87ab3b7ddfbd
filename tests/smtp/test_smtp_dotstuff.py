"""Dot transparency, whole, byte by byte and in random pieces (RFC 5321 s. 4.5.2)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.proto.smtp.dotstuff import DotDecoder, DotEncoder

CASES = [
    # (what the peer sends, the message, what follows)
    (b".\r\n", b"", b""),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"x\r\n.\r\n", b"x\r\n", b""),
    (b"x\r\n.\r\nQUIT\r\n", b"x\r\n", b"QUIT\r\n"),
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"..x\r\n...\r\n.\r\n", b".x\r\n..\r\n", b""),
    (b".x\r\n.\r\n", b"x\r\n", b""),  # a lone leading dot goes, whoever put it there
    (b"a.b\r\n.\r\n", b"a.b\r\n", b""),
    (b"\n.\n\r\n.\r\n", b"\n.\n\r\n", b""),
    (b"\n.\r\n\r\n.\r\n", b"\n.\r\n\r\n", b""),
    (b"a\r\n.\n\r\n.\r\n", b"a\r\n\n\r\n", b""),
    (b"\r.\r\r\n.\r\n", b"\r.\r\r\n", b""),
    (b"\r.\r\n\r\n.\r\n", b"\r.\r\n\r\n", b""),
    (b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n", b""),
    (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n", b""),
    (b"\r\r\n.\r\n", b"\r\r\n", b""),
    (b"\x00\xff\r\n.\r\n", b"\x00\xff\r\n", b""),
]

pieces = st.lists(
    st.sampled_from([b"\r\n", b".", b"..", b"\r", b"\n", b"x", b"\r\n.", b"yy", b"\x00"]), max_size=30
).map(b"".join)


def decode(stream: bytes, cuts: list[int]) -> tuple[bytes, bytes, bool]:
    decoder = DotDecoder()
    out = b""
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        if decoder.done:
            return out, decoder.rest + stream[start:], True
        out += decoder.feed(stream[start:end])
    return out, decoder.rest, decoder.done


@pytest.mark.parametrize(("stream", "message", "rest"), CASES)
@pytest.mark.parametrize("trailing", [b"", b"MAIL FROM:<x@y.example>\r\n"])
def test_end_of_data_is_crlf_dot_crlf_only(stream, message, rest, trailing):
    """Whole and octet by octet, with and without commands behind it."""
    expected = (message, rest + trailing, True)
    assert decode(stream + trailing, []) == expected
    assert decode(stream + trailing, list(range(1, len(stream + trailing)))) == expected


@given(pieces, st.data())
def test_cutting_the_stream_changes_nothing(stream, data):
    """Any cut gives what the whole gives, but for at most 4 octets held back."""
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert decode(stream, cuts) == decode(stream, [])


def reference(stream: bytes) -> tuple[bytes, bytes]:
    """RFC 5321 s. 4.5.2 line by line, a line being what ends in CRLF."""
    out = b""
    while True:
        line, _, stream = stream.partition(b"\r\n")
        if line == b".":
            return out, stream
        out += line.removeprefix(b".") + b"\r\n"


@given(pieces, st.sampled_from([b"", b"QUIT\r\n"]))
def test_decoder_agrees_with_the_rule_line_by_line(body, rest):
    """The fast way and the book's way."""
    stream = body + b"\r\n.\r\n" + rest
    out, left, done = decode(stream, [])
    assert done
    assert (out, left) == reference(stream)


@given(pieces, st.data())
def test_what_is_stuffed_comes_out_unstuffed(message, data):
    """Encoder and decoder are inverse, however both are cut; a missing last CRLF is put in."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=8)))
    encoder = DotEncoder()
    edges = [0, *cuts, len(message)]
    stream = b"".join(encoder.feed(message[a:b]) for a, b in itertools.pairwise(edges)) + encoder.finish()
    whole = message if not message or message.endswith(b"\r\n") else message + b"\r\n"
    assert decode(stream + b"rest", []) == (whole, b"rest", True)
