"""Where mail for a domain goes first: a smarthost of `[outbound] route`, or the domain's own servers. PURE.

Several routes for one domain are tried in their order, as several MX records would be.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.config.model import Outbound
from pymx.queue.destination import matching_routes


class TlsMode(enum.Enum):
    NONE = "none"
    OPPORTUNISTIC = "opportunistic"  # when it is offered and works; any certificate
    VERIFIED = "verified"  # STARTTLS with a certificate that fits the host, or nothing
    IMPLICIT = "implicit"  # TLS from the first octet, certificate verified


@dataclass(frozen=True, slots=True)
class Hop:
    """Where to connect for a domain. `host` "" means: ask the domain's MX records."""

    domain: str
    host: str
    port: int
    tls: TlsMode
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    password_credential: str = ""

    @property
    def key(self) -> str:
        """What connections are kept under: two routes to one host differ when they log in or verify otherwise."""
        if not self.host:
            return self.domain
        secret = self.password_file or self.password_credential
        words = (f"{self.host}:{self.port}", self.tls.value, self.username, secret, self.ca_file)
        return " ".join(word for word in words if word)


def hops(outbound: Outbound, domain: str) -> tuple[Hop, ...]:
    """The next hops for a domain in A-labels, in order: the routes that fit, else its MX alone."""
    routes = matching_routes(outbound.route, domain)
    if not routes:
        return (Hop(domain, "", outbound.port, TlsMode.OPPORTUNISTIC),)
    return tuple(
        Hop(
            domain,
            route.host.strip("[]"),
            route.port,
            TlsMode(route.tls),
            route.username,
            route.password_file,
            route.ca_file,
            route.password_credential,
        )
        for route in routes
    )


def by_hops(outbound: Outbound, domains: Sequence[str]) -> dict[tuple[Hop, ...], list[int]]:
    """The places of domains in a list, by their next hops; a route's domains share one."""
    found: dict[tuple[str, ...], tuple[tuple[Hop, ...], list[int]]] = {}
    for place, domain in enumerate(domains):
        next_hops = hops(outbound, domain)
        found.setdefault(tuple(hop.key for hop in next_hops), (next_hops, []))[1].append(place)
    return dict(found.values())
