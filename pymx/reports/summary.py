"""What many reports say together: who sends in the name of a domain, how its TLS fares, and what to do about it.

PURE but for its input: reports as they are kept. The advice is for the domain's administrator and says one thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pymx.reports.aggregate import AggregateReport, Row
from pymx.reports.tlsrpt import Failure, Policy, TlsReport


@dataclass(slots=True)
class Source:
    """One host that sent with a domain in From, over all reports. Counts are messages."""

    ip: str
    count: int = 0
    passed: int = 0
    dkim_aligned: int = 0
    spf_aligned: int = 0
    dispositions: Counter[str] = field(default_factory=Counter)
    header_from: Counter[str] = field(default_factory=Counter)
    foreign_dkim: Counter[str] = field(default_factory=Counter)  # domains whose signature was good, but is not aligned
    foreign_spf: Counter[str] = field(default_factory=Counter)
    broken_dkim: int = 0  # messages with a signature of the domain itself that did not verify
    overrides: Counter[str] = field(default_factory=Counter)
    reporters: set[str] = field(default_factory=set)

    @property
    def failed(self) -> int:
        return self.count - self.passed

    def add(self, row: Row, organization: str) -> None:
        self.count += row.count
        self.passed += row.count if row.dkim or row.spf else 0
        self.dkim_aligned += row.count if row.dkim else 0
        self.spf_aligned += row.count if row.spf else 0
        self.dispositions[row.disposition] += row.count
        self.header_from[row.header_from] += row.count
        self.reporters.add(organization)
        for override in row.overrides:
            self.overrides[override.kind] += row.count
        if not row.dkim:
            for signature in row.dkim_auth:
                if signature.result == "pass":
                    self.foreign_dkim[signature.domain] += row.count
            if any(s.result != "pass" and _related(s.domain, row.header_from) for s in row.dkim_auth):
                self.broken_dkim += row.count
        if not row.spf:
            for found in row.spf_auth:
                if found.result == "pass":
                    self.foreign_spf[found.domain] += row.count

    @property
    def advice(self) -> str:
        """What is going on, and what to do, in a sentence or two."""
        if not self.failed:
            return self._passing()
        if self.passed >= self.failed:
            return f"Mostly fine; {self.failed} of {self.count} failed, which forwarding and mailing lists explain."
        if self.broken_dkim * 2 > self.failed:
            return (
                "Signed by your domain, but the signature broke: changed on the way (a forwarder or list), or the key "
                "in DNS is not the one that signs. If this host is yours: pymxctl dkim show."
            )
        if self.foreign_dkim or self.foreign_spf:
            who = (self.foreign_dkim or self.foreign_spf).most_common(1)[0][0]
            return (
                f"Sent through {who}, which is not your domain. If you use that service, have it sign with your "
                "domain (DKIM); if not, somebody forwards your mail or uses your name."
            )
        stopped = self.dispositions["reject"] + self.dispositions["quarantine"]
        if stopped * 2 > self.failed:
            return (
                "Nothing proves that this is yours, and your policy stopped it. If this host is yours: add it to SPF."
            )
        return (
            "Nothing proves that this is yours, and it was delivered all the same. If this host is yours: add it to "
            "SPF and sign with DKIM; if none such is left, publish p=quarantine or p=reject."
        )

    def _passing(self) -> str:
        if self.dkim_aligned == self.count == self.spf_aligned:
            return "Fine."
        if self.dkim_aligned == self.count:
            return "Fine: signed by your domain. SPF does not list this host, which is usual for forwarders."
        if not self.dkim_aligned:
            return "Passes by SPF alone, so it will fail when forwarded: have this host sign with DKIM."
        return "Fine; some of it is not signed by your domain."


def _related(domain: str, header_from: str) -> bool:
    return bool(domain) and (
        domain == header_from or header_from.endswith("." + domain) or domain.endswith("." + header_from)
    )


def sources(reports: Iterable[AggregateReport]) -> list[Source]:
    """The hosts of all the reports, those with the most failures first."""
    found: dict[str, Source] = {}
    for report in reports:
        for row in report.rows:
            found.setdefault(row.source_ip, Source(row.source_ip)).add(row, report.organization)
    return sorted(found.values(), key=lambda source: (-source.failed, -source.count, source.ip))


_TLS_ADVICE = {
    "starttls-not-supported": "The server did not offer STARTTLS; is the port a proxy's, or TLS off?",
    "certificate-host-mismatch": "The certificate is not for the name in the MX record: get one for that name.",
    "certificate-expired": "The certificate had expired: renew it, and have it reloaded.",
    "certificate-not-trusted": "The chain does not lead to a known root: install the full chain.",
    "validation-failure": "TLS failed for another reason; see the reason given.",
    "tlsa-invalid": "The TLSA records don't fit the certificate: publish the new one's before it is used.",
    "dnssec-invalid": "DNSSEC of the domain does not validate: ask who runs its DNS.",
    "dane-required": "DANE is demanded, and there are no usable TLSA records.",
    "sts-policy-fetch-error": "The MTA-STS policy can't be fetched from https://mta-sts.DOMAIN/.well-known/mta-sts.txt.",
    "sts-policy-invalid": "The MTA-STS policy was fetched, and is not one.",
    "sts-webpki-invalid": "The certificate of mta-sts.DOMAIN is not valid.",
}


def tls_advice(result_type: str) -> str:
    """What a result type of RFC 8460 s. 4.3 means for the domain that has it."""
    return _TLS_ADVICE.get(result_type, "")


@dataclass(slots=True)
class TlsSummary:
    """TLS sessions to one domain under one type of policy."""

    policy_type: str
    successes: int = 0
    failed: int = 0
    failures: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(result type, server, reason) → sessions."""
    reporters: set[str] = field(default_factory=set)

    def add(self, policy: Policy, organization: str) -> None:
        self.successes += policy.successes
        self.failed += policy.failed
        self.reporters.add(organization)
        for failure in policy.failures:
            self.failures[failure.result_type, _server(failure), failure.reason] += failure.count


def _server(failure: Failure) -> str:
    return failure.receiving_mx or failure.receiving_ip


def tls_summaries(reports: Iterable[TlsReport]) -> list[TlsSummary]:
    """All the reports about a domain, by type of policy."""
    found: dict[str, TlsSummary] = {}
    for report in reports:
        for policy in report.policies:
            found.setdefault(policy.policy_type, TlsSummary(policy.policy_type)).add(policy, report.organization)
    return sorted(found.values(), key=lambda summary: (-summary.failed, summary.policy_type))
