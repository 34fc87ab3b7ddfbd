"""What came of the TLS part of one delivery attempt, in the words of RFC 8460 (TLS reporting).

The outbound side makes one of these for each connection to a remote MX whose domain has, or was asked
for, a TLS policy; whoever keeps the counts for the daily report takes them. `failure` is empty when
TLS was negotiated as the policy wants it, else a result type of RFC 8460 s. 4.3; `reason` is one line
for people and goes into `failure-reason-code`.
"""

from dataclasses import dataclass

NO_POLICY = "no-policy-found"
"""The policy type of a domain without DANE and MTA-STS (RFC 8460 s. 4.4, policy-type)."""


@dataclass(frozen=True, slots=True)
class TlsResult:
    """One connection's outcome; `domain` is the policy domain (the recipient's), A-labels."""

    domain: str
    policy_type: str
    """"tlsa", "sts" or "no-policy-found"."""
    policy_strings: tuple[str, ...]
    """The TLSA records or the lines of the MTA-STS policy, as found; empty without a policy."""
    mx_patterns: tuple[str, ...]
    """The `mx` lines of the MTA-STS policy, else empty."""
    mx: str
    address: str
    """The remote's address, "" when no connection was made."""
    source: str
    """The local address of the connection (sending-mta-ip), "" when none was made."""
    failure: str
    reason: str
