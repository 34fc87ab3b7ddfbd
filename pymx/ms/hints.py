"""Who wants to know that a mailbox changed, in this process and in the others.

After each commit one datagram `account NUL guid NUL modseq` goes to the socket of every other process in the runtime
directory, never waiting. A full socket gets an overflow mark instead next time, which means "look at everything that is
open". Hints may be lost; a poll stands behind them (`pymx.ms.watch`), so they are never needed for correctness.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from pymx import log

Key = tuple[str, str]  # account, mailbox GUID
# In place of a GUID: any mailbox of the account; the names and subscriptions; what METADATA has.
ANY, FOLDERS, ATTRIBUTES = "", "folders", "attributes"
_PREFIX = "ms-"
_OVERFLOW = b"*"
_log = log.get("ms")


class Hints:
    """Subscriptions of this process and its socket. `publish` may be called from any thread, the rest in the loop."""

    def __init__(self, runtime_dir: Path | None) -> None:
        self._directory = runtime_dir
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callbacks: dict[Key, set[Callable[[], None]]] = {}
        self._latest: dict[Key, int] = {}  # the highest modseq each was told of
        self._pending: set[Key] = set()
        self._mutex = threading.Lock()
        self._socket: socket.socket | None = None
        self._path: Path | None = None
        self._peers: list[str] = []
        self._peers_mtime = -1
        self._overflowed: set[str] = set()

    def start(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        if self._directory is None:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = self._directory / f"{_PREFIX}{name}.sock"
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # Made under a name nobody looks for, so that it is 0600 before anybody can send to it.
        before = os.umask(0o177)
        try:
            self._socket.bind(os.fspath(self._path))
        finally:
            os.umask(before)
        loop.add_reader(self._socket.fileno(), self._received)

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._callbacks.clear()
        self._loop = None

    def subscribe(self, key: Key, callback: Callable[[], None]) -> None:
        self._callbacks.setdefault(key, set()).add(callback)

    def unsubscribe(self, key: Key, callback: Callable[[], None]) -> None:
        there = self._callbacks.get(key)
        if there is not None:
            there.discard(callback)
            if not there:
                del self._callbacks[key]
                self._latest.pop(key, None)

    def publish(self, account: str, guid: str, modseq: int) -> None:
        """A mailbox changed; from any thread."""
        self._mark((account, guid), modseq)
        if self._socket is not None:
            self._send(f"{account}\0{guid}\0{modseq}".encode())

    def missed(self, key: Key, modseq: int) -> None:
        """A mailbox is found to be at `modseq`: tell it here unless that is known; from any thread."""
        if modseq > self._latest.get(key, 0):
            self._mark(key, modseq)

    def _mark(self, key: Key, modseq: int) -> None:
        self._mark_one(key, modseq)
        self._mark_one((key[0], ANY), modseq)

    def _mark_one(self, key: Key, modseq: int) -> None:
        loop = self._loop
        if loop is None or key not in self._callbacks:
            return
        with self._mutex:
            self._latest[key] = max(modseq, self._latest.get(key, 0))
            first = not self._pending
            self._pending.add(key)
        if first:
            try:
                loop.call_soon_threadsafe(self._notify)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell

    def _notify(self) -> None:
        with self._mutex:
            keys, self._pending = self._pending, set()
        for key in keys:
            for callback in list(self._callbacks.get(key, ())):
                callback()

    def notify_all(self) -> None:
        for callbacks in list(self._callbacks.values()):
            for callback in list(callbacks):
                callback()

    def _send(self, message: bytes) -> None:
        sock = self._socket
        if sock is None:
            return
        for peer in self._others():
            try:
                if peer in self._overflowed:
                    sock.sendto(_OVERFLOW, peer)
                    self._overflowed.discard(peer)
                else:
                    sock.sendto(message, peer)
            except BlockingIOError:
                self._overflowed.add(peer)
            except (ConnectionRefusedError, FileNotFoundError):
                self._bury(peer)
            except OSError as error:
                self._overflowed.add(peer)
                _log.debug("hint_not_sent", path=peer, error=str(error))

    def _others(self) -> list[str]:
        directory = os.fspath(self._directory or "")
        try:
            mtime = os.stat(directory).st_mtime_ns
        except FileNotFoundError:
            return []
        if mtime != self._peers_mtime:
            own = self._path.name if self._path else ""
            self._peers = [
                os.path.join(directory, name)
                for name in os.listdir(directory)
                if name.startswith(_PREFIX) and name != own
            ]
            self._peers_mtime = mtime
        return self._peers

    def _bury(self, peer: str) -> None:
        """Its process is gone: nobody listens, so the name goes too."""
        try:
            if stat.S_ISSOCK(os.stat(peer).st_mode):
                os.unlink(peer)
        except FileNotFoundError:
            pass

    def _received(self) -> None:
        sock = self._socket
        for _ in range(256):
            if sock is None:
                return
            try:
                message = sock.recv(4096)
            except BlockingIOError:
                return
            if message == _OVERFLOW:
                self.notify_all()
                continue
            parts = message.decode("utf-8", "replace").split("\0")
            if len(parts) == 3 and parts[2].isdecimal():
                self._mark((parts[0], parts[1]), int(parts[2]))
