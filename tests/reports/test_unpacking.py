"""Attachments are unpacked up to a limit, and damaged ones refused: bombs, lies, torn files."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.reports.error import ReportError
from pymx.reports.unpack import MAX_UNPACKED_OCTETS, unpack

TEXT = b"<feedback>" + b"x" * 3000 + b"</feedback>"


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        gzip.compress(TEXT),
        gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),  # RFC 1952 s. 2.2: members one after the other
        gzip.compress(TEXT) + b"\0" * 20,
        zipped(("report.xml", TEXT)),
        zipped(("report.xml", TEXT), method=zipfile.ZIP_STORED),
        zipped(("dir/", b""), ("report.xml", TEXT)),
    ],
    ids=lambda _: "packed",
)
def test_what_was_packed_comes_out(data: bytes) -> None:
    """gzip, zip, and no compression."""
    assert unpack(data) == TEXT


def _lying_zip() -> bytes:
    """The directory says 10 octets; there are 20 million."""
    data = zipped(("bomb.xml", b"\0" * 20_000_000))
    directory = data.index(b"PK\x01\x02")
    size = (10).to_bytes(4, "little")
    return data[:22] + size + data[26 : directory + 24] + size + data[directory + 28 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"\0" * 200_000_000), "more than 10240 KB"),
        (gzip.compress(b"\0" * 6_000_000) * 2, "more than 10240 KB"),
        (zipped(("bomb.xml", b"\0" * 50_000_000)), "more than 10240 KB"),
        (b"x" * (MAX_UNPACKED_OCTETS + 1), "more than 10240 KB"),
        (_lying_zip(), "zip|more"),
        (zipped(*((f"{i}.xml", b"") for i in range(11))), "11 files"),
        (zipped(), "0 files"),
        (zipped(("a.xml", TEXT), method=zipfile.ZIP_LZMA), "not understood"),
        (gzip.compress(TEXT)[:-4], "too early"),
        (gzip.compress(TEXT)[:30], "too early"),
        (b"\x1f\x8b", "too early"),
        (gzip.compress(TEXT)[:-8] + b"\0" * 8, "damaged gzip"),
        (b"PK\x03\x04", "damaged zip"),
        (zipped(("a.xml", TEXT))[:-30], "damaged zip"),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else value,  # gzip data have the time in them
)
def test_bombs_and_damage_are_refused(data: bytes, reason: str) -> None:
    """Refused at the limit, with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ReportError, match=reason):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@given(st.sampled_from([gzip.compress(TEXT), zipped(("a.xml", TEXT))]), st.data())
def test_any_damage_is_unpacked_or_refused(packed: bytes, data: st.DataObject) -> None:
    """Never anything but our error."""
    damaged = bytearray(packed)
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        assert len(unpack(bytes(damaged))) <= MAX_UNPACKED_OCTETS
    except ReportError:
        pass


@given(st.sampled_from([b"", b"\x1f\x8b\x08", b"PK\x03\x04", b"PK\x05\x06"]), st.binary(max_size=200))
def test_any_octets_are_unpacked_or_refused(start: bytes, data: bytes) -> None:
    """Never anything but our error."""
    try:
        unpack(start + data)
    except ReportError:
        pass


def test_gzip_data_of_thousands_of_members_are_refused() -> None:
    """Empty ones never reach the limit of what comes out, and each costs a copy of all that follow: minutes."""
    with pytest.raises(ReportError, match="members"):
        unpack(gzip.compress(b"") * 200_000)
