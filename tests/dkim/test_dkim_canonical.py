"""Canonical forms (RFC 6376 s. 3.4): against the RFC's examples and against dkimpy."""

from __future__ import annotations

import hashlib
import itertools
import time

import dkim.canonicalization as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mailauth.dkim.canonical import RelaxedBody, SimpleBody, relaxed_field


class Collect:
    def __init__(self) -> None:
        self.data = b""

    def update(self, data: bytes, /) -> None:
        self.data += data


def canonical(kind: type[RelaxedBody] | type[SimpleBody], pieces: list[bytes]) -> bytes:
    out = Collect()
    body = kind(out)
    for piece in pieces:
        body.update(piece)
    body.finish()
    return out.data


RELAXED = [
    (b"", b""),
    (b"\r\n", b""),
    (b" \r\n\t\r\n\r\n", b""),
    (b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),  # RFC 6376 s. 3.4.5
    (b"no line end", b"no line end\r\n"),
    (b"blank at the end \t", b"blank at the end\r\n"),
    (b"a\r\n\r\n \r\nb\r\n", b"a\r\n\r\n\r\nb\r\n"),
    (b"\r\n\r\n x\r\n", b"\r\n\r\n x\r\n"),
    (b"a" + b"\r\n" * 5000 + b"b\r\n" + b" \t\r\n" * 5000, b"a" + b"\r\n" * 5000 + b"b\r\n"),
    (b"a" + b" " * 5000 + b"b" + b"\t" * 5000 + b"\r\n", b"a b\r\n"),
]
SIMPLE = [
    (b"", b"\r\n"),
    (b"\r\n\r\n", b"\r\n"),
    (b" C \r\nD \t E\r\n\r\n\r\n", b" C \r\nD \t E\r\n"),
    (b"no line end", b"no line end\r\n"),
    (b"a" + b"\r\n" * 5000 + b"b" + b"\r\n" * 5000, b"a" + b"\r\n" * 5000 + b"b\r\n"),
]


@pytest.mark.parametrize(("body", "expected"), RELAXED)
def test_relaxed_body(body: bytes, expected: bytes) -> None:
    """RFC 6376 s. 3.4.4, whole and octet by octet."""
    assert canonical(RelaxedBody, [body]) == expected
    assert canonical(RelaxedBody, [body[i : i + 1] for i in range(len(body))]) == expected


@pytest.mark.parametrize(("body", "expected"), SIMPLE)
def test_simple_body(body: bytes, expected: bytes) -> None:
    """RFC 6376 s. 3.4.3, whole and octet by octet."""
    assert canonical(SimpleBody, [body]) == expected
    assert canonical(SimpleBody, [body[i : i + 1] for i in range(len(body))]) == expected


PIECES = st.lists(
    st.sampled_from([b"\r\n", b" ", b"\t", b"x", b"yz", b"  ", b"\r\n\r\n", b" \r\n", b"\xe9"]), max_size=60
)


@given(PIECES, st.lists(st.integers(0, 120), max_size=8))
def test_bodies_agree_with_dkimpy_however_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    """Any body in wire form, in any pieces, hashes as dkimpy has it."""
    body = b"".join(parts)
    edges = sorted({0, len(body), *(c for c in cuts if c < len(body))})
    pieces = [body[a:b] for a, b in itertools.pairwise(edges)]
    ended = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    assert canonical(RelaxedBody, pieces) == oracle.Relaxed.canonicalize_body(ended).removesuffix(
        b"\r\n" if not ended else b""
    )
    assert canonical(SimpleBody, pieces) == oracle.Simple.canonicalize_body(ended)


@given(st.binary(max_size=80).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), PIECES)
def test_fields_agree_with_dkimpy(start: bytes, folds: list[bytes]) -> None:
    """RFC 6376 s. 3.4.2."""
    value = start + b"".join(f for f in folds if b"\r" not in f) + b"\r\n\tfolded  here\r\n"
    name, canonical_value = oracle.Relaxed.canonicalize_headers([(b"Subject ", value)])[0]
    assert relaxed_field(b"Subject :" + value).split(b":", 1)[0] == name
    assert relaxed_field(b"Subject :" + value).split(b":", 1)[1].strip() == canonical_value.strip()


@pytest.mark.parametrize("filler", [b" ", b"\r\n", b"\t\r\n", b" \r\n\r\n", b"a ", b"a  "])
def test_hostile_white_space_costs_linear_time(filler: bytes) -> None:
    """Two megabytes of white space take no longer than a fraction of a second, in pieces of any size."""
    body = RelaxedBody(hashlib.sha256())
    piece = filler * (4096 // len(filler))
    started = time.process_time()
    for _ in range(512):
        body.update(piece)
    body.finish()
    assert time.process_time() - started < 2
