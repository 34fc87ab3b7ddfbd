"""Bare CR and LF, found and repaired (RFC 5321 s. 2.3.8)."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.proto.smtp.newlines import Newlines

pieces = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"x", b"\n\r", b"."]), max_size=20).map(b"".join)


def run(data: bytes, cuts: list[int], *, repair: bool) -> tuple[bytes, bool]:
    newlines = Newlines(repair=repair)
    edges = [0, *sorted(cuts), len(data)]
    out = b"".join(newlines.feed(data[a:b]) for a, b in itertools.pairwise(edges)) + newlines.finish()
    return out, newlines.bare


@pytest.mark.parametrize("data", [b"", b"x", b"\r\n", b"a\r\nb\r\n", b"\r\n\r\n"])
def test_crlf_alone_is_fine(data):
    assert run(data, [], repair=False) == (data, False)
    assert run(data, list(range(len(data))), repair=True) == (data, False)


@pytest.mark.parametrize("data", [b"\n", b"\r", b"a\nb", b"a\r\r\n", b"\n\r", b"\r\n\n", b"x\r"])
def test_bare_octets_are_found(data):
    assert run(data, [], repair=False) == (data, True)
    assert run(data, list(range(len(data))), repair=False) == (data, True)


@given(pieces, st.data())
def test_repair_makes_every_bare_octet_a_line_end(data, draw):
    """Each CR, LF or CRLF becomes one CRLF, however the data is cut, and nothing else changes."""
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    out, bare = run(data, cuts, repair=True)
    assert out == re.sub(rb"\r\n|\r|\n", b"\r\n", data)
    assert bare == (out != data)
    assert run(data, cuts, repair=False) == (data, bare)
