"""Which program listens at which TCP port, as the kernel says (/proc). Other users' programs have no name for us
unless we are root."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]\Z")


@dataclass(frozen=True, slots=True)
class Holder:
    """A listening socket. `program` is "" when it can't be told, `pid` then 0."""

    address: str
    port: int
    program: str
    pid: int
    command: str


Listening = tuple[Holder, ...]


def listening(proc: Path = Path("/proc")) -> Listening:
    """All listening TCP sockets."""
    found = [
        (inode, address, port) for name in ("tcp", "tcp6") for inode, address, port in _sockets(proc / "net" / name)
    ]
    owners = _owners(proc, {inode for inode, _, _ in found})
    return tuple(Holder(address, port, *owners.get(inode, ("", 0, ""))) for inode, address, port in found)


def at(held: Listening, host: str, port: int) -> list[Holder]:
    """Who would be in the way of a listener there."""
    wanted = ipaddress.ip_address(host)
    return [h for h in held if h.port == port and _overlap(wanted, ipaddress.ip_address(h.address))]


def _overlap(
    one: ipaddress.IPv4Address | ipaddress.IPv6Address, other: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> bool:
    # a socket at :: often has IPv4 as well
    if other.version == 6 and other.is_unspecified:
        return True
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def _sockets(path: Path) -> Iterator[tuple[str, str, int]]:
    try:
        lines = path.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTEN:
            host, _, port = words[1].partition(":")
            yield words[9], _address(host), int(port, 16)


def _address(text: str) -> str:
    """The kernel writes each 32 bits in the machine's byte order."""
    octets = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(octets) == 4 else socket.AF_INET6, octets)


def _owners(proc: Path, inodes: set[str]) -> dict[str, tuple[str, int, str]]:
    """Program, process and command by socket."""
    found: dict[str, tuple[str, int, str]] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            links = [os.readlink(path) for path in (folder / "fd").iterdir()]
        except OSError:  # it has ended, or is not ours to see
            continue
        for link in links:
            match = _SOCKET.match(link)
            if match and match[1] in inodes:
                found.setdefault(match[1], _described(folder))
    return found


def _described(folder: Path) -> tuple[str, int, str]:
    try:
        program = (folder / "comm").read_text().strip()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return "", 0, ""
    return program, int(folder.name), command
