"""Listening sockets: bound or adopted from systemd, served, and capped.

`bind` raises `BindError`, whose text is for the administrator: address, port, setting and what to do.

When a process runs out of file descriptors, accepting stops and is tried again by the loop (asyncio waits a second,
libuv accepts with a reserved descriptor and closes): the loop does not spin, and a connection is turned away.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pymx.config.model import Tls
from pymx.mail.peer import Networks, counted_network, site_network
from pymx.net.handshake import TlsAcceptor

BACKLOG = 512
_SITE_SHARES = 4  # an IPv6 /48, which one customer often has, counts as so many addresses
_FIRST_ADOPTED_FD = 3  # sd_listen_fds(3)
_UNIX_MODE = 0o666  # as Dovecot's LMTP socket; the directory decides who gets there


class BindError(Exception):
    """A socket can't be had. The text says which, why, and what to do."""


def bind(spec: str, setting: str) -> socket.socket:
    """A listening socket for "127.0.0.1:25", "[::1]:25" or "unix:/path". Raises BindError."""
    if spec.startswith("unix:"):
        return _bind_unix(Path(spec.removeprefix("unix:")), setting)
    host, port = _host_and_port(spec, setting)
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # one family per socket, so that 0.0.0.0:25 and [::]:25 may stand side by side
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(host), port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        raise BindError(f"can't listen on {spec} ({setting}): {_advice(e, port)}") from None
    return sock


def _host_and_port(spec: str, setting: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    text, _, port = spec.rpartition(":")
    bracketed = text.startswith("[") and text.endswith("]")
    try:
        host = ipaddress.ip_address(text[1:-1] if bracketed else text)
        if bracketed != (host.version == 6) or not port.isascii() or not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise BindError(f"{setting}: {spec!r} is not ADDRESS:PORT, [IPV6]:PORT or unix:PATH") from None
    return host, int(port)


def _advice(e: OSError, port: int) -> str:
    if e.errno == errno.EADDRINUSE:
        return (
            f"another program is listening there; stop it (ss -ltnp 'sport = :{port}' shows it) or change the setting"
        )
    if e.errno == errno.EACCES:
        return "permission denied; ports below 1024 need root, CAP_NET_BIND_SERVICE or a systemd socket"
    if e.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{e.strerror}; this machine has no such address (ip addr shows what it has)"
    return e.strerror or str(e)


def _bind_unix(path: Path, setting: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(_UNIX_MODE)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        reason = e.strerror or str(e)
        if e.errno == errno.EADDRINUSE:
            reason = "another program is listening there; stop it or change the setting"
        elif e.errno == errno.ENOENT:
            reason = f"its directory {path.parent} does not exist; create it"
        raise BindError(f"can't listen on unix:{path} ({setting}): {reason}") from None
    return sock


def _remove_stale(path: Path) -> None:
    """Unlink a socket that a dead server left behind; leaves everything else alone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def adopted_sockets(environ: Mapping[str, str]) -> dict[str, list[socket.socket]]:
    """The sockets that systemd passed to this process, by name (sd_listen_fds_with_names(3)); {} without any."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    adopted: dict[str, list[socket.socket]] = {}
    for i in range(count):
        sock = socket.socket(fileno=_FIRST_ADOPTED_FD + i)
        sock.set_inheritable(False)
        sock.setblocking(False)
        name = names[i] if i < len(names) and names[i] else "unknown"
        adopted.setdefault(name, []).append(sock)
    return adopted


def peer_of(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """Address and port of the other side; ("", 0) on a Unix socket.

    None when it has reset the connection before we looked: uvloop asks the system, which does not know any more. Such a
    connection may still hold what the peer sent, and without an address it would pass for one of this machine.
    """
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return str(peer[0]), int(peer[1])
    return None if isinstance(transport.get_extra_info("sockname"), tuple) else ("", 0)


class Caps:
    """How many connections at the same time: in all, from one address (IPv6: one /64), and from one IPv6 /48."""

    def __init__(self, max_connections: int, max_per_ip: int, trusted: Sequence[str]) -> None:
        self._max = max_connections
        self._max_per_ip = max_per_ip
        self._trusted = Networks(trusted)
        self._by_ip: dict[str, int] = {}  # and by /48
        self.count = 0

    def enter(self, ip: str) -> bool:
        """Count a connection in; False when it is one too many (it is not counted then)."""
        if self.count >= self._max:
            return False
        key = self._key(ip)
        if key:
            site = site_network(key)
            n, in_site = self._by_ip.get(key, 0), self._by_ip.get(site, 0)
            if n >= self._max_per_ip or in_site >= self._max_per_ip * _SITE_SHARES:
                return False
            self._by_ip[key] = n + 1
            if site:
                self._by_ip[site] = in_site + 1
        self.count += 1
        return True

    def leave(self, ip: str) -> None:
        """Count out a connection for which `enter` said True."""
        self.count -= 1
        key = self._key(ip)
        for counted in filter(None, (key, site_network(key))):
            n = self._by_ip[counted] - 1
            if n:
                self._by_ip[counted] = n
            else:
                del self._by_ip[counted]

    def _key(self, ip: str) -> str:
        """What connections are counted under; "" = not per address (Unix socket, trusted)."""
        return "" if not ip or ip in self._trusted else counted_network(ip)


def handshake_caps(tls: Tls, trusted: Sequence[str]) -> Caps:
    """For the handshakes in progress of one listener."""
    return Caps(tls.max_handshakes, tls.max_handshakes_per_ip, trusted)


class Server:
    """One listening socket being served; TLS from the first octet when `ssl` is given.

    Handshakes in progress have caps of their own: a session takes its place only when its handshake is done.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        *,
        ssl: ssl.SSLContext | None = None,
        handshakes: Caps | None = None,
    ) -> None:
        self.name = name
        self.sock = sock
        self._factory = factory
        self._ssl = ssl
        self._handshakes = handshakes
        self._server: asyncio.Server | TlsAcceptor | None = None

    async def start(self) -> None:
        """Accept from now on."""
        loop = asyncio.get_running_loop()
        if self._ssl is not None:
            caps = self._handshakes or handshake_caps(Tls(), ())
            self._server = TlsAcceptor(self.name, self.sock, self._factory, self._ssl, caps)
        elif self.sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._factory, sock=self.sock, backlog=BACKLOG)
        else:
            self._server = await loop.create_server(self._factory, sock=self.sock, backlog=BACKLOG)

    def close(self) -> None:
        """Stop accepting, give up handshakes in progress; sessions go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        else:
            self.sock.close()
