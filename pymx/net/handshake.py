"""TLS from the first octet: accepting connections and their handshakes, before a session begins.

The event loops can do this themselves, but then nobody counts the connections that never finish their handshake: one
peer could hold all file descriptors with them. Here they are capped, in all and per address, before TLS has cost
anything; one too many is closed without a word, for there is no way to say one.

When the process runs out of file descriptors, accepting pauses for a second.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from pymx import log, metrics
from pymx.net.tls import HANDSHAKE_TIMEOUT_S, why

if TYPE_CHECKING:
    from pymx.net.listener import Caps

_ACCEPTS_AT_ONCE = 32
_PAUSE_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = log.get("net")


class TlsAcceptor:
    """Accepts on one socket; `factory` makes the session when a handshake is done."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        caps: Caps,
    ) -> None:
        self._name = name
        self._sock = sock
        self._factory = factory
        self._context = context
        self._caps = caps
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Stop accepting and give up the handshakes that are not done."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in self._tasks:
            task.cancel()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in _EXHAUSTED:
                    raise
                _log.error("accept_failed", listener=self._name, error=e.strerror)
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_PAUSE_S, self._listen)
                return
            connection.setblocking(False)
            ip = str(peer[0]) if isinstance(peer, tuple) else ""
            if not self._caps.enter(ip):
                metrics.add("tls_handshakes_refused")
                _log.info("handshake_refused", listener=self._name, peer_ip=ip)
                connection.close()
                continue
            task = self._loop.create_task(self._shake_hands(connection, ip))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, connection: socket.socket, ip: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, RuntimeError) as e:  # the latter is the loops' way of saying that the transport is closed
            metrics.add("tls_handshakes_failed")
            _log.info("handshake_failed", listener=self._name, peer_ip=ip, reason=why(e))
        finally:
            self._caps.leave(ip)
