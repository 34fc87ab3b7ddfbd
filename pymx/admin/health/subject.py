"""What a check is given: the configuration, who the server is, and where to look for the rest of the world."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pymx.admin.health.activation import Activation
from pymx.admin.health.listening import Listening
from pymx.admin.zone import Domain, Server
from pymx.config.model import Config
from pymx.resolver.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Places:
    """Where the checks look; others only in tests.

    `big_domains` are domains whose mail servers must be reachable from here, `dated_hosts` web servers that tell the
    time, `signed_name` one that DNSSEC signs, `public_lists` what everybody is judged by (besides `[checks] dnsbl`).
    """

    big_domains: tuple[str, ...] = ("gmail.com", "outlook.com", "yahoo.com")
    dated_hosts: tuple[tuple[str, int], ...] = (("deb.debian.org", 80), ("www.google.com", 80), ("www.kernel.org", 80))
    signed_name: str = "org"
    public_lists: tuple[str, ...] = ("zen.spamhaus.org",)
    system_hostname: Callable[[], str] = socket.getfqdn
    statvfs: Callable[[str], os.statvfs_result] = os.statvfs
    meminfo: Path = Path("/proc/meminfo")
    units: Path = Path("/etc/systemd/system")
    systemctl: str = "systemctl"
    ca_file: str = ""  # trusted roots of live certificates; "" = the system's


@dataclass(frozen=True, slots=True)
class Subject:
    """`listening`: which program holds which port, looked up while we were still root. `running`: the server answers
    on its control socket. `activation`: what systemd listens at in its place. `now` is Unix time."""

    config: Config
    server: Server
    domains: tuple[Domain, ...]
    resolver: Resolver
    now: float
    listening: Listening
    running: bool
    began: float  # the event loop's time at `now`
    places: Places = field(default_factory=Places)
    activation: Activation = field(default_factory=Activation)

    @property
    def data_dir(self) -> Path:
        return Path(self.config.data_dir)
