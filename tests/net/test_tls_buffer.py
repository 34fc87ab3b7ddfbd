"""asyncio's TLS, the fallback where uvloop is missing, must not keep 256 KB for each connection."""

from __future__ import annotations

import subprocess
import sys

MEASURE = """
import asyncio, asyncio.sslproto, ssl
from pymx.net.tls import apply_asyncio_tls_buffer

async def octets():
    protocol = asyncio.sslproto.SSLProtocol(
        asyncio.get_running_loop(), asyncio.Protocol(), ssl.create_default_context(), None
    )
    return len(protocol._ssl_buffer)

before = asyncio.run(octets())
apply_asyncio_tls_buffer()
print(before, asyncio.run(octets()))
"""


def test_a_connection_has_a_buffer_of_one_record() -> None:
    """A TLS record has 16 KB at most (RFC 8446 s. 5.1). In a process of its own: it changes asyncio's class."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, done.stdout.split())
    assert after == 16_384 < before
