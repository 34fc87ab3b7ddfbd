"""An HTTPS server whose answer to every path the test decides, e.g. the policy host of MTA-STS.

with PolicyServer(tls_files.server_context()) as web:
    web.answer = Page(b"version: STSv1 ...")
"""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(frozen=True)
class Page:
    """A response; `chunked` sends it without a length."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/plain"})
    chunked: bool = False
    stall: bool = False  # never answers


class PolicyServer:
    """`requests` are (Host, path) as they came; `connections` counts what reached it, TLS or not."""

    def __init__(self, tls: ssl.SSLContext, address: str = "127.0.0.1", port: int = 0) -> None:
        self._address = (address, port)
        self.answer = Page(b"", 404)
        self.requests: list[tuple[str, str]] = []
        self.connections = 0
        self._tls = tls
        self._stopped = threading.Event()

    def __enter__(self) -> PolicyServer:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 20
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.headers["Host"].partition(":")[0], self.path))
                outer._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on standard error."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = True

            def get_request(self) -> tuple[socket.socket, object]:
                connection, address = super().get_request()
                outer.connections += 1
                connection.settimeout(20)
                # the handshake comes with the first read, in the connection's own thread
                return outer._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that does not like the certificate hangs up."""

        self._server = Server(self._address, Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="policy-server")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        page = self.answer
        if page.stall:
            self._stopped.wait(20)
        handler.close_connection = True
        handler.send_response(page.status)
        for name, value in page.headers.items():
            handler.send_header(name, value)
        if page.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(page.body)))
        handler.end_headers()
        if not page.chunked:
            handler.wfile.write(page.body)
            return
        for start in range(0, len(page.body), 4096):
            piece = page.body[start : start + 4096]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")
