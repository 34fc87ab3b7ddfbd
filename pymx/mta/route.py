"""Where mail for a domain goes first: a smarthost of `[outbound] route`, or the domain's own servers. PURE."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.config.model import Outbound, Route
from pymx.queue.destination import matching_route


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

    @property
    def key(self) -> str:
        """What connections are kept under: two routes to one host differ when they log in or verify otherwise."""
        if not self.host:
            return self.domain
        words = (f"{self.host}:{self.port}", self.tls.value, self.username, self.password_file, self.ca_file)
        return " ".join(word for word in words if word)


def hop(outbound: Outbound, domain: str) -> Hop:
    """The next hop for a domain in A-labels: the first route that fits, else its MX."""
    route: Route | None = matching_route(outbound.route, domain)
    if route is None:
        return Hop(domain, "", outbound.port, TlsMode.OPPORTUNISTIC)
    return Hop(
        domain,
        route.host.strip("[]"),
        route.port,
        TlsMode(route.tls),
        route.username,
        route.password_file,
        route.ca_file,
    )


def by_hop(outbound: Outbound, domains: Sequence[str]) -> dict[Hop, list[int]]:
    """The places of domains in a list, by their next hop; a route's domains share one."""
    found: dict[str, tuple[Hop, list[int]]] = {}
    for place, domain in enumerate(domains):
        next_hop = hop(outbound, domain)
        found.setdefault(next_hop.key, (next_hop, []))[1].append(place)
    return dict(found.values())
