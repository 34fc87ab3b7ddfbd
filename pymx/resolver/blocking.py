"""dnspython's own resolver on the same name servers, for libraries that bring their own questions (checkdmarc)."""

from __future__ import annotations

import dns.resolver

from pymx.config.model import Dns
from pymx.resolver.resolver import servers


def blocking_resolver(settings: Dns) -> dns.resolver.Resolver:
    """Asks one server after the other. Raises ValueError for a name server that is none."""
    resolver = dns.resolver.Resolver(configure=False)
    found = servers(settings)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in found]
    resolver.lifetime = float(settings.timeout_s)
    resolver.timeout = max(0.5, settings.timeout_s / len(found))
    return resolver
