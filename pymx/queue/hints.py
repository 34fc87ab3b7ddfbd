"""Hints from the processes that take mail to the runner that something new waits: datagrams that may be lost.

The other end is `Queue.wake` of a process without the runner.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path


async def listen(path: Path | None, wake: Callable[[], None]) -> None:
    """Call `wake` for what comes to the socket, until cancelled. Nothing comes without a path."""
    if path is None:
        return
    loop = asyncio.get_running_loop()
    with _bound(path) as hints:
        loop.add_reader(hints, _read, hints, wake)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(hints)


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        hints.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        hints.close()
        raise
    return hints


def _read(hints: socket.socket, wake: Callable[[], None]) -> None:
    try:
        while True:
            hints.recv(16)
    except BlockingIOError:
        wake()
