"""Message files that Dovecot's zlib plugin compressed: served as if they were not, and never written.

A file is known by its first octets. gzip and zstd are unpacked into an unnamed file in memory (or in the temporary
directory, beyond MEMORY_OCTETS), which then stands for the message; S= and W= in the name are of the unpacked message.
What is broken, or larger than MAX_OCTETS, or of another kind, is served as it lies on disk. zstd needs the package
`zstandard`, loaded at the first such file: without it Missing is raised, so that nothing wrong is remembered.
"""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator

from pymx import log

MEMORY_OCTETS = 4 * 1024 * 1024
MAX_OCTETS = 1024 * 1024 * 1024
_CHUNK = 262_144
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_ZSTD_INPUT = 256  # 4 octets may become 128 KiB, and no limit for the output can be given
_MAX_WINDOW = 128 * 1024 * 1024
_log = log.get("ms")


class Missing(OSError):
    """Such a file is there, and the package that reads it is not."""

    def __init__(self) -> None:
        super().__init__(errno.ENOPKG, "zstd-compressed messages need the package zstandard: pip install 'pymx[zstd]'")


class _Broken(Exception):
    """Not what its first octets say."""


def kind(head: bytes) -> str:
    """ "gzip", "zstd", or "" for what is served as it is."""
    return "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else ""


def open_plain(path: bytes, *, flags: int = os.O_NOFOLLOW) -> int:
    """Open a message file; if it is compressed, what is in it. Raises OSError."""
    return plain(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags), path)


def plain(fd: int, path: bytes) -> int:
    """The same descriptor, or if its file is compressed one of the unpacked message, with the same mtime."""
    how = kind(os.pread(fd, 4, 0))
    if not how:
        return fd
    try:
        return _unpacked(fd, how)
    except _Broken as error:
        _log.warning("packed_message_broken", path=os.fsdecode(path), reason=f"{how}: {error}")
        fd, kept = -1, fd
        return kept
    finally:
        if fd >= 0:
            os.close(fd)


def is_whole(path: bytes) -> bool:
    """Whether a compressed file can be unpacked. Raises Missing, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for _ in _pieces(fd, kind(os.pread(fd, 4, 0))):
            pass
    except _Broken:
        return False
    finally:
        os.close(fd)
    return True


def _unpacked(fd: int, how: str) -> int:
    out = os.memfd_create("message", os.MFD_CLOEXEC)
    total = 0
    try:
        for piece in _pieces(fd, how):
            if total <= MEMORY_OCTETS < total + len(piece):
                out = _moved_to_disk(out)
            total += len(piece)
            _write(out, piece)
        found = os.fstat(fd)
        os.utime(out, ns=(found.st_atime_ns, found.st_mtime_ns))
        os.lseek(out, 0, os.SEEK_SET)
    except BaseException:
        os.close(out)
        raise
    return out


def _moved_to_disk(fd: int) -> int:
    with tempfile.TemporaryFile() as file:
        out = os.dup(file.fileno())
    try:
        position = 0
        while piece := os.pread(fd, _CHUNK, position):
            _write(out, piece)
            position += len(piece)
    except BaseException:
        os.close(out)
        raise
    os.close(fd)
    return out


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pieces(fd: int, how: str) -> Iterator[bytes]:
    total = 0
    for piece in _gzip(fd) if how == "gzip" else _zstd(fd):
        total += len(piece)
        if total > MAX_OCTETS:
            raise _Broken(f"more than {MAX_OCTETS} octets when unpacked")
        if piece:
            yield piece


def _file(fd: int) -> Iterator[bytes]:
    position = 0
    while data := os.pread(fd, _CHUNK, position):
        position += len(data)
        yield data


def _gzip(fd: int) -> Iterator[bytes]:
    """Members one after the other (RFC 1952 s. 2.2), up to _CHUNK octets at once."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    ended = False
    try:
        for data in _file(fd):
            while data:
                if ended:
                    unpacker, ended = zlib.decompressobj(zlib.MAX_WBITS | 16), False
                yield unpacker.decompress(data, _CHUNK)
                ended = unpacker.eof
                data = unpacker.unused_data if ended else unpacker.unconsumed_tail
    except zlib.error as error:
        raise _Broken(str(error)) from error
    if not ended:
        raise _Broken("it ends too early")


def _zstd(fd: int) -> Iterator[bytes]:
    """Frames one after the other (RFC 8878 s. 3)."""
    try:
        import zstandard
    except ModuleNotFoundError:
        raise Missing from None
    ended = True
    unpacker = None
    try:
        for piece in _file(fd):
            data = piece
            while data:
                if unpacker is None:
                    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
                part = data[:_ZSTD_INPUT]
                yield unpacker.decompress(part)
                ended = unpacker.eof
                data = data[len(part) - len(unpacker.unused_data) :]
                if ended:
                    unpacker = None
    except zstandard.ZstdError as error:
        raise _Broken(str(error)) from error
    if not ended:
        raise _Broken("it ends too early")
