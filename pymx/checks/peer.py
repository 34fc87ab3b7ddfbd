"""The peer's address as checks use it."""

from __future__ import annotations

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def peer_address(text: str) -> IpAddress:
    """An address without its scope; an IPv4 one that came mapped into IPv6 is IPv4 again. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
