"""Message content in memory and in a file."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.spool import Content, HeaderTooLong, SpoolWriter

MESSAGES = [
    b"A: 1\r\nB: 2\r\n\r\nbody\r\n",
    b"\r\nno header\r\n",
    b"A: 1\r\n",
    b"",
    b"A: 1\r\n\r\n",
    b"x" * 5000 + b"\r\n\r\n" + b"y\r\n" * 5000,
]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("memory", [10, 1_000_000])
def test_what_is_fed_in_any_pieces_is_read_back(message: bytes, step: int, memory: int, tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, memory_octets=memory)
    for i in range(0, len(message), step):
        writer.feed(message[i : i + step])
    content = writer.finish()
    assert content.read() == message
    assert content.size_octets == len(message)
    assert content.head == Content.from_bytes(message).head
    assert b"".join(content.disk_chunks()) == message.replace(b"\r\n", b"\n")


def test_large_body_leaves_memory_and_nothing_in_the_directory(tmp_path: Path) -> None:
    """An unnamed file: a killed process leaves no litter."""
    writer = SpoolWriter(tmp_path, memory_octets=1000)
    writer.feed(b"A: 1\r\n\r\n" + b"x" * 10_000)
    content = writer.finish()
    assert not content.in_memory
    assert list(tmp_path.iterdir()) == []
    assert content.prepended(b"R: 1\r\n").read() == b"R: 1\r\nA: 1\r\n\r\n" + b"x" * 10_000


def test_header_without_end_is_refused_at_the_limit(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, max_header_octets=100)
    writer.feed(b"A: 1\r\n" * 16)
    with pytest.raises(HeaderTooLong):
        writer.feed(b"A: 1\r\n")


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"b" * 70_000]), max_size=8))
def test_disk_form_has_lf_for_every_crlf_across_chunks(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    content = Content(b"A: 1\r\n", b"\r\n" + body)
    assert b"".join(content.disk_chunks()) == (b"A: 1\r\n\r\n" + body).replace(b"\r\n", b"\n")


def test_octets_that_drip_in_take_no_more_memory_than_others(tmp_path: Path) -> None:
    """The limit in memory is one of octets, however small the pieces are that a peer sends them in."""
    writer = SpoolWriter(tmp_path, memory_octets=262_144)
    writer.feed(b"A: b\r\n\r\n")
    tracemalloc.start()
    try:
        for _ in range(100_000):
            writer.feed(bytes(bytearray(b"x")))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 300_000
    content = writer.finish()
    assert content.in_memory
    assert content.read() == b"A: b\r\n\r\n" + b"x" * 100_000
