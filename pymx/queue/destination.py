"""Which recipients share a destination. PURE.

A destination is what connections and limits are counted by: the next hop of a route, else the recipient's domain.
"""

from __future__ import annotations

from collections.abc import Sequence

from pymx.config.model import Route
from pymx.mail.address import Address, AddressError
from pymx.queue.item import LOCAL


def matching_route(routes: Sequence[Route], domain: str) -> Route | None:
    """The first route for a domain (A-labels, lower case); `*` fits every one."""
    return next((r for r in routes if r.domain == "*" or r.domain.lower().rstrip(".") == domain), None)


def matching_routes(routes: Sequence[Route], domain: str) -> list[Route]:
    """The first route for a domain, and those to try after it: the others that name the same domain (or `*`)."""
    first = matching_route(routes, domain)
    if first is None:
        return []
    named = first.domain.lower().rstrip(".")
    return [r for r in routes if r.domain.lower().rstrip(".") == named]


def is_routed(routes: Sequence[Route], destination: str) -> bool:
    """Whether a destination is the next hop of a route."""
    return any(destination == f"{r.host}:{r.port}" for r in routes)


def routing_domain(address: Address) -> str:
    """The domain to look up; a domain without an IDNA form stays as it is and will not be found."""
    try:
        return address.ascii_domain
    except AddressError:
        return address.domain


def destination(routes: Sequence[Route], address: Address) -> str:
    """The destination of an address: "host:port" of its route, or its domain."""
    domain = routing_domain(address)
    route = matching_route(routes, domain)
    if route is None:
        return domain if domain != LOCAL else f"{domain}."  # a domain of that name is not our mailboxes
    return f"{route.host}:{route.port}"
