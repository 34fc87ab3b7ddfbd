"""How rspamd is spoken to over HTTP. This module loads aiohttp: import it only when rspamd is configured."""

from __future__ import annotations

import aiohttp


def open_session(*, connections: int, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """A session that adds nothing of its own to a request, and leaves answers as they come."""
    return aiohttp.ClientSession(
        # a connection that rspamd is just closing would fail the next message; a new one costs little here
        connector=aiohttp.TCPConnector(limit=connections, force_close=True),
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        auto_decompress=False,
    )
