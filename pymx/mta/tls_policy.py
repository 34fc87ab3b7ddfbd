"""What TLS has to be like at one mail server, and what may be done when it is not like that. PURE.

`plan` puts together what is known of a host (its TLSA records, the domain's MTA-STS policy) and what the message wants.
The result is a ladder: ways to connect, tried in order, each in a connection of its own, when the one before failed for
TLS. What is not on the ladder is not done; a `Refusal` instead of it means that the host is not even connected to.

    TLSA records                       DANE, nothing else (RFC 7672 s. 2.2)
    TLSA records, none of them usable  TLS with any certificate, or as MTA-STS says
    their lookup failed                refused: an attacker could make it fail (s. 2.1.2)
    MTA-STS enforce                    a host of the policy with a certificate of a trusted root (RFC 8461 s. 5)
    MTA-STS testing                    the same is tried and reported, then as without a policy
    nothing                            TLS with any certificate when it is offered, else plain text (RFC 7435)

DANE wins over MTA-STS (RFC 8461 s. 2). A message with REQUIRETLS goes only where host and certificate are
authenticated: by DANE, by MTA-STS, or by a list of mail servers that DNSSEC proves and a certificate of a trusted root
(RFC 8689 s. 4.2.1). One with "TLS-Required: No" goes anywhere, with TLS when there is any (s. 5).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from pymx.mail import header
from pymx.mail.envelope import Envelope
from pymx.mail.tls_result import NO_POLICY
from pymx.mta.dane import Tlsa, usable
from pymx.mta.sts import Policy
from pymx.mta.trouble import Event


class How(enum.Enum):
    """A way to connect."""

    PLAIN = "plain"
    OPPORTUNISTIC = "opportunistic"  # TLS when it is offered, any certificate
    ENCRYPTED = "encrypted"  # TLS or nothing, any certificate
    VERIFIED = "verified"  # STARTTLS with a certificate of a trusted root for `name`
    IMPLICIT = "implicit"  # the same, with TLS from the first octet
    DANE = "dane"


@dataclass(frozen=True, slots=True)
class Demand:
    """One rung: how to connect, the name to ask for (SNI), and what the certificate is held against."""

    how: How
    name: str = ""
    ca_file: str = ""
    tlsa: tuple[Tlsa, ...] = ()
    names: tuple[str, ...] = ()  # with DANE-TA the certificate must bear one of these
    requiretls: bool = False

    @property
    def authenticates(self) -> bool:
        return self.how in (How.VERIFIED, How.IMPLICIT, How.DANE)


class Wish(enum.Enum):
    """What the message wants of TLS."""

    ORDINARY = ""
    REQUIRED = "REQUIRETLS"
    OPTIONAL = "TLS-Required: No"


def wish(envelope: Envelope, head: bytes) -> Wish:
    """RFC 8689: the MAIL parameter, and, where it was not given, the header field."""
    if envelope.requiretls:
        return Wish.REQUIRED
    if b"tls-required" in head.lower():  # hardly ever: the fields need not be looked at one by one
        # s. 5: "No" is the only value; whatever else is there is ignored
        field = header.first(head, "tls-required")
        if field is not None and field.value.strip().lower() == b"no":
            return Wish.OPTIONAL
    return Wish.ORDINARY


@dataclass(frozen=True, slots=True)
class TlsaFound:
    """What a lookup of TLSA records came to. `names` are the reference identifiers (RFC 7672 s. 3.2.2)."""

    records: tuple[Tlsa, ...] = ()
    name: str = ""  # the TLSA base domain
    names: tuple[str, ...] = ()
    trouble: str = ""  # why it is not known whether there are any


@dataclass(frozen=True, slots=True)
class Applied:
    """The policy as TLS reports name it (RFC 8460 s. 4.4)."""

    kind: str = NO_POLICY
    strings: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a host must not be connected to; `result` is a result type of RFC 8460 s. 4.3, or ""."""

    event: Event
    result: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do at a host. `complaint` is a failure to report although delivery goes on."""

    ladder: tuple[Demand, ...]
    applied: Applied | None  # None: the policy was not asked for, so nothing is reported
    refusal: Refusal | None = None
    complaint: Refusal | None = None


_ANYHOW = (Demand(How.OPPORTUNISTIC), Demand(How.PLAIN))


def plan(
    host: str, *, tlsa: TlsaFound, sts: Policy | None, wish: Wish, ca_file: str = "", mx_authenticated: bool = False
) -> Plan:
    """The plan for a mail server of a domain. `mx_authenticated`: DNSSEC proves that it is one."""
    if wish is Wish.OPTIONAL:
        return Plan(_ANYHOW, None)
    found = _by_policy(host, tlsa, sts, ca_file)
    if wish is Wish.ORDINARY or found.refusal is not None:
        return found
    ladder = tuple(replace(d, requiretls=True) for d in found.ladder if d.authenticates)
    if not ladder and mx_authenticated:
        ladder = (Demand(How.VERIFIED, host, ca_file, requiretls=True),)
    if ladder:
        return replace(found, ladder=ladder)
    reason = "the domain has neither DANE, MTA-STS nor a signed list of mail servers"
    return Plan((), None, Refusal(Event.NO_REQUIRETLS, "", reason))


def _by_policy(host: str, tlsa: TlsaFound, sts: Policy | None, ca_file: str) -> Plan:
    dane = Applied("tlsa", tuple(str(record) for record in tlsa.records))
    if tlsa.trouble:
        return Plan((), dane, Refusal(Event.NO_TLSA, "dnssec-invalid", tlsa.trouble))
    records = usable(tlsa.records)
    if records:
        return Plan((Demand(How.DANE, tlsa.name, tlsa=records, names=tlsa.names),), dane)
    rest: tuple[Demand, ...] = _ANYHOW
    complaint = None
    if tlsa.records:
        rest = (Demand(How.ENCRYPTED, tlsa.name),)  # RFC 7672 s. 2.2: TLS, but nothing to authenticate by
        complaint = Refusal(Event.BAD_CERTIFICATE, "tlsa-invalid", "none of the TLSA records is usable")
    if sts is None or sts.mode == "none":
        return Plan(rest, dane if tlsa.records else Applied(), complaint=complaint)
    applied = Applied("sts", sts.lines, sts.mx)
    if not sts.allows(host):
        stranger = Refusal(Event.NOT_IN_POLICY, "validation-failure", f"{host} is not in the domain's MTA-STS policy")
        if sts.enforced:
            return Plan((), applied, stranger)
        return Plan(rest, applied, complaint=stranger)
    verified = Demand(How.VERIFIED, host, ca_file)
    return Plan((verified,) if sts.enforced else (verified, *rest), applied)
