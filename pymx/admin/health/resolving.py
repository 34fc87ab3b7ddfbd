"""The resolver: does it answer, and does it prove what it says (DNSSEC)?"""

from __future__ import annotations

import msgspec

from pymx.admin.health.finding import Finding, fail, ok, warn
from pymx.admin.health.subject import Subject
from pymx.resolver.answer import DnsError
from pymx.resolver.resolver import Resolver, servers

_REMEDY = (
    'install one of your own: apt-get install unbound (dnf install unbound), then [dns] nameservers = ["127.0.0.1"]; '
    "lists of bad hosts refuse public resolvers anyway"
)


async def check(subject: Subject) -> list[Finding]:
    names = ", ".join(f"{host}:{port}" if port != 53 else host for host, port in servers(subject.config.dns))
    # what it says of itself, whether or not that counts for the deliveries
    asking = Resolver(msgspec.structs.replace(subject.config.dns, authenticated="yes"))
    try:
        answer = await asking.resolve(subject.places.signed_name, "SOA")
    except DnsError as e:
        return [
            fail(
                "resolver",
                f"the name server {names} does not answer: {e.reason}",
                "see /etc/resolv.conf, or [dns] nameservers",
                "no mail can be sent, and none be checked",
            )
        ]
    if not answer.authenticated:
        why = "the TLSA records of others can't be believed, so DANE is off"
        return [warn("resolver", f"the name server {names} does not validate DNSSEC", _REMEDY, why)]
    if not subject.resolver.trusted:
        remedy = 'a resolver on this machine; or, if the way to it is safe: [dns] authenticated = "yes"'
        text = f"the name server {names} validates DNSSEC, but is not on this machine, so its word does not count"
        return [warn("resolver", text, remedy, "DANE is off")]
    return [ok("resolver", f"the name server {names} answers and validates DNSSEC")]
