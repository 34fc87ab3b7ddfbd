"""Stands between a client and a real SMTP server, and breaks the connection at a place that the test chooses.

with CuttingProxy(postfix.port) as proxy:
    proxy.cut_at = 3          # the fourth reply (0 = the greeting) is not passed on, the connection ends instead
    proxy.cut_content = 5000  # or: it ends after so many octets of the content
    proxy.offer = ("DSN",)    # or: what the server's reply to EHLO says besides

One connection at a time is cut as told; `cut_at` and `cut_content` are then forgotten, so that the next one passes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class CuttingProxy:
    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.cut_at: int | None = None
        self.cut_content: int | None = None
        self.offer: tuple[str, ...] = ()
        self._stopped = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> CuttingProxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            _shut(connection)
        for thread in self._threads[1:]:
            thread.join()
        for connection in self._open:
            connection.close()

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name="cutting-proxy")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            client.settimeout(None)
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._open += [client, server]
            in_content = threading.Event()
            self._start(self._replies, server, client, in_content)
            self._start(self._commands, client, server, in_content)

    def _replies(self, server: socket.socket, client: socket.socket, in_content: threading.Event) -> None:
        """Line by line, since several may come at once."""
        number = 0
        with contextlib.suppress(OSError), server.makefile("rb") as lines:
            for line in lines:
                last = line[3:4] != b"-"
                if number == self.cut_at:
                    if not last:
                        continue
                    self.cut_at = None
                    break
                if line.startswith(b"354"):
                    in_content.set()
                if number == 1 and last and self.offer:
                    line = b"250-" + line[4:] + b"".join(b"250-%s\r\n" % word.encode() for word in self.offer[:-1])
                    line += b"250 %s\r\n" % self.offer[-1].encode()
                client.sendall(line)
                number += last
        _shut(client)
        _shut(server)

    def _commands(self, client: socket.socket, server: socket.socket, in_content: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if in_content.is_set() and self.cut_content is not None:
                    server.sendall(data[: self.cut_content])
                    self.cut_content = None
                    break
                server.sendall(data)
        _shut(client)
        _shut(server)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
