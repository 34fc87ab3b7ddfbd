"""Reverse address check (RFC 8601 s. 3): the address has a name, and the name has the address.

`pass` names the first host that leads back; `fail` means that none does; `permerror` that the address has no name.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pymx.mailauth.questions import Questions, unknown
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError

MAX_NAMES = 10  # as RFC 7208 s. 4.6.4 has it for "ptr"; more are not looked at


@dataclass(frozen=True, slots=True)
class IprevResult:
    """`result` is pass, fail, permerror or temperror; `name` the proven host, or the first claimed one."""

    result: str
    name: str = ""
    reason: str = ""


async def iprev(resolver: Questions, ip: str, *, max_names: int = MAX_NAMES) -> IprevResult:
    """Ask for the names of `ip`, and for their addresses."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return IprevResult("permerror", reason="not an IP address")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    try:
        answer = await resolver.resolve(address.reverse_pointer, "PTR")
    except (NoSuchDomain, NoRecords):
        return IprevResult("permerror", reason="the address has no name")
    except TemporaryDnsError as e:
        return IprevResult("temperror", reason=unknown(e))
    names = [str(record[0]).lower() for record in answer.records][:max_names]
    return await _confirm(resolver, address, [n for n in names if n])


async def _confirm(
    resolver: Questions, address: ipaddress.IPv4Address | ipaddress.IPv6Address, names: list[str]
) -> IprevResult:
    """The first of `names` that has the address."""
    failure = ""
    for name in names:
        try:
            answer = await resolver.resolve(name, "A" if address.version == 4 else "AAAA")
        except (NoSuchDomain, NoRecords):
            continue
        except TemporaryDnsError as e:
            failure = unknown(e)
            continue
        if any(ipaddress.ip_address(str(record[0])) == address for record in answer.records):
            return IprevResult("pass", name)
    claimed = names[0] if names else ""
    if failure:
        return IprevResult("temperror", claimed, failure)
    return IprevResult("fail", claimed, "no name of the address has the address")
