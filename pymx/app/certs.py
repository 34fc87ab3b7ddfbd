"""Certificates, wired: the runner renews them and says when they expire."""

from __future__ import annotations

import contextlib
import sys

from pymx.app.rooms import INVALIDATE, Rooms
from pymx.app.tasks import run_until_closed
from pymx.certs.expiry import watch
from pymx.certs.renewal import Renewal


def look_after_certificates(stack: contextlib.AsyncExitStack, rooms: Rooms) -> None:
    """In the runner."""
    site, config = rooms.site, rooms.config
    if site.certificates.configured:
        run_until_closed(stack, watch(site.certificates.in_use))
    if config.acme.enabled:
        command = (sys.executable, "-m", "pymx.admin.ctl", "--config", str(site.path), "--json")
        renewal = Renewal(config.acme, (*command, "cert", "renew", "--patient"))
        rooms.notices.on(INVALIDATE, lambda _argument: renewal.poke())
        run_until_closed(stack, renewal.run())
