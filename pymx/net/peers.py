"""Short notices between the processes of one server: datagrams on Unix sockets in the runtime directory.

Each process owns `peer.<pid>.sock` (0600) and may `broadcast` a word to all the others. Notices are droppable: a full
or dead socket loses one, so nothing may depend on them for correctness (a cache also expires by itself). Sockets of
processes that are gone are removed by whoever meets them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pymx import log

_MAX_OCTETS = 1024


class Peers:
    """This process's end: `on_notice` is called in the event loop with each word that arrives."""

    def __init__(self, directory: Path, on_notice: Callable[[str], None]) -> None:
        self._directory = directory
        self._path = directory / f"peer.{os.getpid()}.sock"
        self._on_notice = on_notice
        self._socket: socket.socket | None = None
        self._log = log.get("net")

    def start(self) -> None:
        """Open the socket and listen in the running loop. Raises OSError."""
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                notice = self._socket.recv(_MAX_OCTETS)
            except BlockingIOError:
                return
            self._on_notice(notice.decode("utf-8", "replace"))

    def broadcast(self, notice: str) -> None:
        """Tell every other process; never blocks."""
        if self._socket is None:
            return
        for path in self._directory.glob("peer.*.sock"):
            if path == self._path:
                continue
            try:
                self._socket.sendto(notice.encode(), str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)  # its process was killed
            except OSError as e:
                self._log.warning("peer_notice_dropped", path=path, reason=e.strerror)

    def close(self) -> None:
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._path.unlink(missing_ok=True)
