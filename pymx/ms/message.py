"""One message as a session reads it: a file in wire form, whole or in pieces, each piece read in a thread."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from pymx.ms.measure import to_wire, wire_chunks

if TYPE_CHECKING:
    from pymx.ms.store import Store


class StoredMessage:
    """One message: its file, open, or its octets if they are few."""

    __slots__ = ("_data", "_fd", "_store", "octets")

    def __init__(self, store: Store, octets: int, *, fd: int = -1, data: bytes | None = None) -> None:
        self._fd = fd
        self._data = data
        self._store = store
        self.octets = octets

    async def read(self) -> bytes:
        """The whole message in wire form."""
        if self._data is not None:
            return self._data
        return await self._store.in_thread(self._read)

    def _read(self) -> bytes:
        size = os.fstat(self._fd).st_size
        parts = []
        position = 0
        while position < size and (piece := os.pread(self._fd, size - position, position)):
            parts.append(piece)
            position += len(piece)
        return to_wire(b"".join(parts))

    async def chunks(self) -> AsyncIterator[bytes]:
        """The message in wire form, in pieces."""
        if self._data is not None:
            yield self._data
            return
        pieces = wire_chunks(self._fd)
        while (piece := await self._store.in_thread(lambda: next(pieces, None))) is not None:
            yield piece

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
