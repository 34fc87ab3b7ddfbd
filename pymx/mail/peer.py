"""A peer's address, and the network that it is counted by.

Who has one IPv6 address has a whole /64 of them, so there the network counts, and an IPv4 address that came mapped into
IPv6 is IPv4 again. A peer without an address (a Unix socket) is on this machine and counts as trusted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV6_PREFIX = 64
_IPV6_SITE_PREFIX = 48
_IPV4_NEIGHBOURS = 24
_MAX_REMEMBERED = 4096


def peer_address(text: str) -> IpAddress:
    """An address without its scope; an IPv4 one that came mapped into IPv6 is IPv4 again. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def counted_network(text: str) -> str:
    """What a peer is counted by: its IPv4 address, or its IPv6 /64; "" for one without an address."""
    if not text:
        return ""
    if ":" not in text:
        return text
    address = peer_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(_slash_64(address))


def site_network(network: str) -> str:
    """The /48 of a /64 that a peer is counted by: what one customer often has of IPv6; "" for everything else."""
    if not network.endswith(f"/{_IPV6_PREFIX}"):
        return ""
    return str(ipaddress.IPv6Network(network).supernet(new_prefix=_IPV6_SITE_PREFIX))


def wide_network(text: str) -> str:
    """The neighbourhood from which a peer's next try may come: its /24, or its IPv6 /64."""
    address = peer_address(text)
    prefix = _IPV4_NEIGHBOURS if address.version == 4 else _IPV6_PREFIX
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))


def is_within(network: str, wide: str) -> bool:
    """Is what a peer is counted by in a network that the administrator named?"""
    inner, outer = ipaddress.ip_network(network, strict=False), ipaddress.ip_network(wide, strict=False)
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def named_network(text: str) -> str:
    """An address or network as an administrator writes it, in the form that bans are kept under. Raises ValueError.

    An IPv6 address, or a network within one /64, stands for its /64.
    """
    if "/" not in text:
        address = peer_address(text.strip("[]"))
        network = ipaddress.ip_network(address) if address.version == 4 else _slash_64(address)
    else:
        network = ipaddress.ip_network(text, strict=False)
        if network.version == 6 and network.prefixlen > _IPV6_PREFIX:
            network = _slash_64(network.network_address)
    return str(network.network_address) if network.version == 4 and network.prefixlen == 32 else str(network)


def _slash_64(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network((int(address) >> _IPV6_PREFIX << _IPV6_PREFIX, _IPV6_PREFIX))


class Networks:
    """A set of addresses and networks, such as `[limits] trusted`."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Raises ValueError for what is none."""
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]
        # the same few peers are asked for several times a message, and reading an address takes 10 µs
        self._answers: dict[object, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, text: object) -> bool:
        """Is the address in one of them?"""
        if not self._networks:
            return False
        answer = self._answers.get(text)
        if answer is None:
            if len(self._answers) >= _MAX_REMEMBERED:
                self._answers.clear()
            address = peer_address(str(text))
            answer = any(address in network for network in self._networks if network.version == address.version)
            self._answers[text] = answer
        return answer
