"""Compressed attachments, unpacked piece by piece, with a limit on what comes out.

gzip (all its members), zip (its first file) and octets that are not compressed at all are told apart by how they begin:
media types and file names of reports are wrong too often. Nothing is unpacked beyond the limit, so a small attachment
can't fill the memory, and only deflate is understood.

Raises `ReportError` and nothing else.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from pymx.reports.error import ReportError

MAX_UNPACKED_OCTETS = 10 * 1024 * 1024
_PIECE = 65536
_MAX_MEMBERS = 100  # of gzip data: a report has one
_MAX_FILES = 10  # in a zip archive: a report is one


def unpack(data: bytes, *, limit: int = MAX_UNPACKED_OCTETS) -> bytes:
    """What is in `data`."""
    if data.startswith(b"\x1f\x8b"):
        return _gzip(data, limit)
    if data.startswith(b"PK"):
        return _zip(data, limit)
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _gzip(data: bytes, limit: int) -> bytes:
    out = bytearray()
    members = 0
    while data.startswith(b"\x1f\x8b"):
        members += 1
        if members > _MAX_MEMBERS:  # each costs a copy of what comes after it
            raise ReportError(f"gzip data of more than {_MAX_MEMBERS} members")
        # 31: a gzip header and trailer, whose checksum is verified
        member = zlib.decompressobj(31)
        pending = data
        while not member.eof:
            try:
                piece = member.decompress(pending, _PIECE)
            except zlib.error as e:
                raise ReportError(f"damaged gzip: {e}") from None
            out += piece
            if len(out) > limit:
                raise _too_large(limit)
            pending = member.unconsumed_tail
            if not piece and not pending and not member.eof:
                raise ReportError("the gzip data end too early")
        data = member.unused_data.lstrip(b"\0")
    return bytes(out)


def _zip(data: bytes, limit: int) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            if not files or len(files) > _MAX_FILES:
                raise ReportError(f"a zip archive of {len(files)} files")
            entry = files[0]
            if entry.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
                raise ReportError(f"zip compression {entry.compress_type} is not understood")
            with archive.open(entry) as file:
                # read() unpacks no more than it is asked for; the size in the directory may be a lie
                out = file.read(limit + 1)
    except ReportError:
        raise
    except (
        zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
        ValueError, OSError, IndexError, OverflowError,
    ) as e:  # fmt: skip
        # all of these have been seen from zipfile on damaged or encrypted archives
        raise ReportError(f"damaged zip: {e}") from None
    if len(out) > limit:
        raise _too_large(limit)
    return out


def _too_large(limit: int) -> ReportError:
    return ReportError(f"more than {limit // 1024} KB when unpacked")
