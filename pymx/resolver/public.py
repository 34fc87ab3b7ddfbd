"""Which addresses lie on the Internet. PURE.

Where a stranger's DNS record leads, our own network must not be reached: not by a private address, and not by one that
some host or gateway turns into a private one (IPv4-mapped and -compatible, 6to4, NAT64 of RFC 6052).
"""

from __future__ import annotations

import ipaddress

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def is_public(address: str) -> bool:
    """Whether it is an address on the Internet, and of one host. Raises ValueError for what is no address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip in _COMPATIBLE or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast
