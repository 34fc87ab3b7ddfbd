"""The public pages, wired: they run in the runner."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pymx.app.rooms import Rooms
from pymx.certs.files import challenges_directory
from pymx.net.listener import Caps, handshake_caps


async def open_pages(stack: contextlib.AsyncExitStack, rooms: Rooms) -> None:
    """Serve on `[web] listen` and `listen_tls`, where there are any."""
    site, config = rooms.site, rooms.config
    if not any(site.sockets.get(name) for name in ("http", "https")):
        return
    # with XML and what that brings along
    from pymx.web.http import HttpServer
    from pymx.web.public import MAX_BODY_OCTETS, PublicPages

    def key_pair() -> tuple[Path, Path]:
        found = site.certificates.find(config.hostname)
        return found.certificate, found.private_key

    pages = PublicPages(
        config, rooms.directory.is_local, challenges=challenges_directory(site.data_dir), key_pair=key_pair
    )
    for name, tls in (("http", None), ("https", site.certificates)):
        sockets = site.sockets.get(name, ())
        if sockets:
            server = HttpServer(
                name, sockets, pages.respond,
                caps=Caps(config.web.max_connections, config.web.max_connections_per_ip, config.limits.trusted),
                max_body_octets=MAX_BODY_OCTETS,
                tls=tls.context() if tls is not None else None,
                handshakes=handshake_caps(config.tls, config.limits.trusted),
            )  # fmt: skip
            stack.push_async_callback(server.close)
            await server.start()
