"""Free ports on 127.0.0.1 for servers that can't be told to take any."""

from __future__ import annotations

import random
import socket

# below the range that the system takes for outgoing connections: between here and the server's bind nobody takes it
_LOWEST, _HIGHEST = 10_000, 32_000
# not the seeded generator of the tests: two runs beside each other must not walk the same way
_next = random.SystemRandom().randrange(_LOWEST, _HIGHEST)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody had a moment ago; never the same one twice in a row."""
    global _next
    for _ in range(_HIGHEST - _LOWEST):
        _next = _next + 1 if _next + 1 < _HIGHEST else _LOWEST
        with socket.socket(socket.AF_INET, kind) as s:
            try:
                s.bind(("127.0.0.1", _next))
            except OSError:
                continue
            return _next
    raise AssertionError("no free port on 127.0.0.1")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Does something accept connections there?"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        return s.connect_ex((host, port)) == 0
