"""What the name system said: an answer, or one of three ways of having none.

`NoSuchDomain` (NXDOMAIN) and `NoRecords` (the name exists, the type does not) are facts about the domain.
`TemporaryDnsError` is everything else: SERVFAIL, REFUSED, a timeout, a malformed answer. It is never a fact about the
domain, and callers must not take it for one.
"""

from __future__ import annotations

from dataclasses import dataclass


class DnsError(Exception):
    """There is no answer. `name` and `rdtype` say what was asked."""

    def __init__(self, name: str, rdtype: str, reason: str) -> None:
        super().__init__(f"{name} {rdtype}: {reason}")
        self.name = name
        self.rdtype = rdtype
        self.reason = reason
        self.ttl_s = 300  # how long the fact may be remembered
        self.authenticated = False  # proven not to exist; see Answer


class NoSuchDomain(DnsError):
    """NXDOMAIN: neither the name nor anything below it exists (RFC 8020)."""


class NoRecords(DnsError):
    """The name exists without records of this type (NODATA, RFC 2308 s. 2.2)."""


class TemporaryDnsError(DnsError):
    """No server gave a usable answer; ask again later."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of one type at one name, CNAMEs followed.

    `records` holds tuples by type: MX (preference, host), A and AAAA (address,), TXT (string, …) as bytes,
    PTR and CNAME (name,), TLSA (usage, selector, matching type, data), others (text,). Names are without their final
    dot; the root is "". `authenticated`: DNSSEC proves the answer, as a resolver says whose word counts (the AD bit,
    RFC 4035 s. 3.2.3, and `[dns] authenticated`).
    """

    name: str
    canonical_name: str
    rdtype: str
    records: tuple[tuple[object, ...], ...]
    ttl_s: int
    authenticated: bool


@dataclass(frozen=True, slots=True)
class Located:
    """The addresses of a host, IPv6 first, under the name that its CNAMEs lead to."""

    addresses: tuple[str, ...]
    canonical_name: str
    authenticated: bool
