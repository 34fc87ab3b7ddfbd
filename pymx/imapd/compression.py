"""COMPRESS=DEFLATE (RFC 4978) of one connection: octets in, octets out, bounded in memory both ways.

What comes in is unpacked in pieces, so that a few octets can't become megabytes at once. What goes out is flushed each
time, with a window of 4 KB. A connection at rest (`rest`) gives both states back: a new compressor may go on in the
middle of the stream, since nothing it writes refers to what was before; and a new decompressor can where the peer has
just flushed, given the octets that came last, to which the peer may refer. Those are kept packed until then.
"""

from __future__ import annotations

import zlib

PIECE = 65_536
WINDOW = 32_768  # of the peer, who may use all that the format allows
_LEVEL = 4
_OUT_WINDOW_BITS = 12
_OUT_MEMORY = 5
_FLUSHED = b"\x00\x00\xff\xff"  # RFC 1951: an empty stored block, the end of Z_SYNC_FLUSH


class BrokenStream(Exception):
    """What came is not DEFLATE, or its end."""


class Compression:
    """Both directions of a connection."""

    __slots__ = ("_ends", "_history", "_in", "_more", "_out", "_packed", "_waiting")

    def __init__(self) -> None:
        self._in: zlib._Decompress | None = None
        self._out: zlib._Compress | None = None
        self._waiting = b""
        self._more = False  # the decompressor may have more to give
        self._history = b""
        self._packed = b""  # the history of a connection at rest
        self._ends = _FLUSHED  # the last octets that came

    def put(self, data: bytes) -> None:
        """Take what came from the network."""
        self._waiting += data
        self._ends = (self._ends + data[-4:])[-4:]

    @property
    def waiting_octets(self) -> int:
        """Octets that came and are not unpacked yet."""
        return len(self._waiting)

    def take(self) -> bytes:
        """The next unpacked octets, at most PIECE; none when more have to come. Raises BrokenStream."""
        if not self._waiting and not self._more:
            return b""
        if self._in is None:
            if self._packed:
                self._history, self._packed = zlib.decompress(self._packed, -_OUT_WINDOW_BITS), b""
            self._in = zlib.decompressobj(-zlib.MAX_WBITS, zdict=self._history)
        try:
            octets = self._in.decompress(self._waiting, PIECE)
        except zlib.error as error:
            raise BrokenStream(str(error)) from None
        if self._in.eof:
            raise BrokenStream("end of the compressed stream")
        self._waiting = self._in.unconsumed_tail
        self._more = len(octets) == PIECE
        if octets:
            self._history = (self._history + octets)[-WINDOW:]
        return octets

    def pack(self, data: bytes) -> bytes:
        """What to send for `data`; the peer can read all of it."""
        if self._out is None:
            self._out = _compressor()
        return self._out.compress(data) + self._out.flush(zlib.Z_SYNC_FLUSH)

    def rest(self) -> None:
        """Nothing will happen for a while: give memory back."""
        self._out = None
        if not self._waiting and not self._more and self._ends == _FLUSHED:
            self._in = None
            if self._history:
                packer = _compressor()
                self._packed, self._history = packer.compress(self._history) + packer.flush(), b""


def _compressor() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, -_OUT_WINDOW_BITS, _OUT_MEMORY)
