"""What systemd listens at for the server: its socket units, which start pymx.service when somebody connects.

Asked of systemctl, as any user. Where there is none, or systemd does not run, there is no such socket.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SERVICE = "pymx.service"
_PROPERTIES = "Id,ActiveState,FileDescriptorName,Listen,Triggers"
_TIMEOUT_S = 10.0
_STREAM = " (Stream)"


@dataclass(frozen=True, slots=True)
class Held:
    """One address that systemd listens at. `service` is the unit's FileDescriptorName=."""

    unit: str
    service: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Activation:
    """`state` is that of pymx.service (inactive, failed, active, …), "" when nobody knows."""

    held: tuple[Held, ...] = ()
    state: str = ""

    @property
    def units(self) -> list[str]:
        return sorted({held.unit for held in self.held})

    @property
    def waits(self) -> bool:
        """Would the next connection start the server?"""
        return bool(self.held) and self.state == "inactive"

    def unit_at(self, host: str, port: int) -> str:
        """Which unit has exactly that socket; "" for none."""
        return next((held.unit for held in self.held if (held.host, held.port) == (host, port)), "")

    def endpoints(self, service: str) -> list[tuple[str, int]]:
        """Where a service is handed over, in place of what its setting says."""
        return [(held.host, held.port) for held in self.held if held.service == service]


def activation(systemctl: str = "systemctl") -> Activation:
    """As it is now. Blocking."""
    try:
        done = subprocess.run(  # noqa: S603
            [systemctl, "show", f"--property={_PROPERTIES}", _SERVICE, "*.socket"],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return Activation()
    return parse(done.stdout)


def parse(text: str) -> Activation:
    """Of what `systemctl show` prints: units with empty lines between them, a name=value for each value."""
    held: list[Held] = []
    state = ""
    for block in text.split("\n\n"):
        pairs = [line.partition("=")[::2] for line in block.splitlines()]
        facts = dict(pairs)
        if facts.get("Id") == _SERVICE:
            state = facts.get("ActiveState", "")
        elif facts.get("ActiveState") == "active" and _SERVICE in facts.get("Triggers", "").split():
            listens = [value for name, value in pairs if name == "Listen"]
            held += [Held(facts["Id"], facts.get("FileDescriptorName", ""), *where) for where in _addresses(listens)]
    return Activation(tuple(held), state)


def _addresses(listens: Sequence[str]) -> Iterable[tuple[str, int]]:
    for listen in listens:
        host, _, port = listen.removesuffix(_STREAM).rpartition(":")
        if listen.endswith(_STREAM) and host and port.isdecimal():  # others are sockets in the file system
            yield host.strip("[]"), int(port)
