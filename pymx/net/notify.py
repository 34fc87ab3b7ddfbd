"""What systemd is told (sd_notify(3)): READY, RELOADING, STOPPING, and the watchdog's heartbeat.

Without $NOTIFY_SOCKET every call does nothing. A message that can't be sent is dropped: the service manager's timeouts
are the reaction to that, not an error here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def ready() -> None:
    """The service is up (or has finished reloading)."""
    _send("READY=1")


def reloading() -> None:
    """A reload has begun; `ready` ends it."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    _send("STOPPING=1")


def status(text: str) -> None:
    """The line that `systemctl status` shows."""
    _send(f"STATUS={text}")


def heartbeat() -> None:
    """To be sent every `heartbeat_interval_s`, by the loop whose life it proves."""
    _send("WATCHDOG=1")


def heartbeat_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Half the watchdog's time, as sd_watchdog_enabled(3) recommends; None when there is no watchdog for us."""
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or int(usec) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2_000_000


def forget() -> None:
    """Say nothing more from this process: for a forked child, whose parent speaks for the service."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as s:
        try:
            s.sendto(state.encode(), address)
        except OSError:
            return
