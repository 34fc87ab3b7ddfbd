"""The view through which a search reads messages: the names of their files are looked up for many at once.

What is not where its row said, is compressed or large is read by the view behind it, which looks everywhere.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence

from pymx.ms import packed, reading
from pymx.ms.box import Box
from pymx.ms.measure import to_wire
from pymx.ms.rows import select
from pymx.ms.search import SearchView

_AT_ONCE = 500
_LARGE_OCTETS = 1_048_576


class Ahead:
    """As `view`, for somebody who asks for messages among `uids` (ascending) in their order."""

    def __init__(self, view: SearchView, box: Box, low: int, uids: Sequence[int], stopped: Callable[[], bool]) -> None:
        self.uids = view.uids
        self.first_recent = view.first_recent
        self.rows = view.rows
        self.keyword_bit = view.keyword_bit
        self._view = view
        self._box = box
        self._low = low
        self._wanted = uids
        self._stopped = stopped
        self._last = -1  # up to which UID names were looked up
        self._files: dict[int, tuple[int, int, bytes]] = {}  # wire octets, in_new, name

    def header(self, uid: int) -> bytes | None:
        _, path = self._find(uid)
        try:
            fd = packed.open_plain(path) if path else -1
        except FileNotFoundError:
            fd = -1
        if fd < 0:
            return self._view.header(uid)
        try:
            return reading.header_of(fd)
        finally:
            os.close(fd)

    def message(self, uid: int) -> bytes | None:
        octets, path = self._find(uid)
        if path and octets <= _LARGE_OCTETS:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return self._view.message(uid)
            try:
                data = to_wire(os.read(fd, octets + 1))
            finally:
                os.close(fd)
            if len(data) == octets and not packed.kind(data):
                return data
        return self._view.message(uid)

    def _find(self, uid: int) -> tuple[int, bytes]:
        """Octets in wire form and path, which is empty where the row is not known."""
        octets, in_new, name = self._file(uid)
        if not name or self._stopped():
            return 0, b""
        return octets, os.path.join(self._box.new if in_new else self._box.cur, name)

    def _file(self, uid: int) -> tuple[int, int, bytes]:
        if uid > self._last:
            start = bisect_left(self._wanted, uid)
            portion = self._wanted[start : start + _AT_ONCE]
            with self._box.home.index.read() as db:
                found = select(db, self._low, portion, columns="id & 4294967295, octets, in_new, name")
            self._files = {row[0]: row[1:] for row in found}
            self._last = max(uid, portion[-1]) if portion else uid
        return self._files.get(uid, (0, 0, b""))
