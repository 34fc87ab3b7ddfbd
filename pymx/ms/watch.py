"""Noticing what foreign programs do to a mailbox somebody looks at.

One inotify instance per process watches `cur/` and `new/` of each; after a short quiet spell the mailbox is compared
with its index in a thread, and only a real difference is told to the sessions. Behind it every watched mailbox is
looked at each 30 s, and each second where inotify is not to be had.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Awaitable, Callable

from pymx import log
from pymx.ms.box import Box

_IN_CREATE, _IN_DELETE, _IN_MOVED_FROM, _IN_MOVED_TO = 0x100, 0x200, 0x40, 0x80
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x01000000
_MASK = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_HEADER = struct.Struct("iIII")
_QUIET_S = 0.2
_POLL_S = 30
_ACCOUNTS_AT_ONCE = 8
_log = log.get("ms")

Look = Callable[[list[Box]], Awaitable[None]]


class Watch:
    """The watched mailboxes of a process. All methods in the event loop."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._boxes: dict[Box, int] = {}  # users
        self._descriptors: dict[int, set[Box]] = {}  # a renamed mailbox has two for a while
        self._of_box: dict[Box, list[int]] = {}
        self._dirty: set[Box] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._read)
        self._ticker = loop.call_later(1.0, self._tick)

    async def close(self) -> None:
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        if self._fd >= 0 and self._loop is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._loop = None
        if self._task is not None:
            await asyncio.wait([self._task])

    def add(self, box: Box) -> None:
        self._boxes[box] = self._boxes.get(box, 0) + 1
        if self._boxes[box] > 1 or self._fd < 0:
            return
        descriptors = [_libc().inotify_add_watch(self._fd, path, _MASK) for path in (box.cur, box.new)]
        if min(descriptors) < 0:
            _log.warning("inotify_limit", path=os.fsdecode(box.path), reason="polled each second instead")
            for descriptor in descriptors:
                if descriptor >= 0 and descriptor not in self._descriptors:
                    _libc().inotify_rm_watch(self._fd, descriptor)
            return
        self._of_box[box] = descriptors
        for descriptor in descriptors:
            self._descriptors.setdefault(descriptor, set()).add(box)

    def remove(self, box: Box) -> None:
        left = self._boxes.get(box, 0) - 1
        if left > 0:
            self._boxes[box] = left
            return
        self._boxes.pop(box, None)
        self._dirty.discard(box)
        for descriptor in self._of_box.pop(box, []):
            left_there = self._descriptors.get(descriptor)
            if left_there is None:
                continue
            left_there.discard(box)
            if not left_there:
                del self._descriptors[descriptor]
                _libc().inotify_rm_watch(self._fd, descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            descriptor, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            if descriptor == -1:  # IN_Q_OVERFLOW
                self._dirty.update(self._boxes)
            self._dirty |= self._descriptors.get(descriptor, set())
            if mask & 0x8000:  # IN_IGNORED: the directory is gone
                self._descriptors.pop(descriptor, None)
        self._schedule()

    def _schedule(self) -> None:
        if self._dirty and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_QUIET_S, self._run)

    def _tick(self) -> None:
        if self._loop is None:
            return
        self._ticks += 1
        everything = self._ticks % _POLL_S == 0
        self._dirty.update(box for box in self._boxes if everything or box not in self._of_box)
        self._schedule()
        self._ticker = self._loop.call_later(1.0, self._tick)

    def _run(self) -> None:
        self._timer = None
        if self._loop is None:
            return
        if self._task is not None and not self._task.done():
            self._timer = self._loop.call_later(_QUIET_S, self._run)
            return
        boxes, self._dirty = list(self._dirty), set()
        self._task = self._loop.create_task(self._one_look(boxes))

    async def _one_look(self, boxes: list[Box]) -> None:
        """Of a few accounts at a time: what is opened for all of them at once would stay in memory, 150 KB each."""
        of_account: dict[str, list[Box]] = {}
        for box in boxes:
            of_account.setdefault(box.home.email, []).append(box)
        emails = list(of_account)
        for start in range(0, len(emails), _ACCOUNTS_AT_ONCE):
            await self._look([box for email in emails[start : start + _ACCOUNTS_AT_ONCE] for box in of_account[email]])


def _libc() -> ctypes.CDLL:
    return _LIBC


_LIBC = ctypes.CDLL(None, use_errno=True)
