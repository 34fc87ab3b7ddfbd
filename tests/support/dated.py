"""A web server's answers, with a clock of its own."""

from __future__ import annotations

import email.utils
import http.server
import time


class Dated(http.server.BaseHTTPRequestHandler):
    """Says what time it is, `offset_s` off."""

    offset_s = 0.0

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.formatdate(time.time() + self.offset_s, usegmt=True)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"pong\r\n")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def dated(offset_s: float) -> type[Dated]:
    """The handler for an offset."""
    return type("Handler", (Dated,), {"offset_s": offset_s})
