"""The DNS records that this server's mail needs, from its names, addresses and keys. PURE.

`host_records` are those of the server itself, `domain_records` those of one domain that it receives mail for. Each
record says what it is good for and how much it matters: mail is refused without it (required), it is treated better
with it (advised), or it saves people work (optional).

RFC 5321 s. 5.1 (MX), RFC 7208 (SPF, also of the HELO name, s. 2.3), RFC 6376 (DKIM), RFC 7489 (DMARC), RFC 8460
(TLSRPT), RFC 8461 (MTA-STS), RFC 7672 (TLSA of port 25), RFC 6186 and 8314 (SRV), RFC 8659 (CAA).
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STRING_OCTETS = 255  # of one character-string in a TXT record (RFC 1035 s. 3.3)


class Need(enum.Enum):
    """What a record is worth."""

    REQUIRED = "required"
    ADVISED = "advised"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class Record:
    """`name` is absolute without its final dot, `value` as in a zone file; of a TXT record the plain text."""

    kind: str  # mx, a, ptr, spf, spf-helo, dkim, dmarc, tlsrpt, mta-sts, tlsa, srv, client, caa
    name: str
    rdtype: str
    value: str
    need: Need
    why: str

    @property
    def strings(self) -> list[str]:
        """A TXT record in character-strings, as DNS carries it."""
        return [self.value[i : i + STRING_OCTETS] for i in range(0, len(self.value), STRING_OCTETS)] or [""]

    @property
    def rdata(self) -> str:
        """What stands behind the type in a zone file."""
        if self.rdtype != "TXT":
            return self.value
        quoted = [_quote(string) for string in self.strings]
        return quoted[0] if len(quoted) == 1 else f"( {' '.join(quoted)} )"

    @property
    def zone_line(self) -> str:
        return f"{self.name}. IN {self.rdtype} {self.rdata}"


@dataclass(frozen=True, slots=True)
class Port:
    """One service that clients find by SRV: `number` 0 is one that isn't offered."""

    service: str
    number: int


@dataclass(frozen=True, slots=True)
class Key:
    """A DKIM key's record. `state` is in use, waiting or replaced."""

    name: str
    record: str
    state: str


@dataclass(frozen=True, slots=True)
class Server:
    """The server itself.

    `receives` are the addresses that its name leads to, `sends` those it sends from. `key_digests` are of the public
    keys of its certificate (SHA-256 of the SubjectPublicKeyInfo, hex). `authority` is the CA's domain for CAA, "" if it
    isn't known. `client_pages`: it answers for mta-sts., autoconfig. and autodiscover. `certificate_trouble` says why a
    certificate that is there can't be read.
    """

    hostname: str
    receives: tuple[str, ...]
    sends: tuple[str, ...]
    ports: tuple[Port, ...] = ()
    key_digests: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    authority: str = ""
    client_pages: bool = False
    smarthost: str = ""  # "" when it delivers by itself
    certificate_trouble: str = ""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain with mail here. `policy_id` is the id of its MTA-STS policy, "" for none."""

    name: str
    keys: tuple[Key, ...] = ()
    policy_id: str = ""


def all_records(server: Server, domains: Sequence[Domain]) -> list[Record]:
    """Every record, those of the server first; a name's SPF record only once."""
    names = {domain.name for domain in domains}
    found = [r for r in host_records(server) if r.kind != "spf-helo" or r.name not in names]
    for domain in domains:
        found += [r for r in domain_records(server, domain) if r not in found]
    return found


def host_records(server: Server) -> Iterator[Record]:
    """The records at the server's own name and in its reverse zones."""
    host = server.hostname
    for address in server.receives:
        yield Record("a", host, _family(address), address, Need.REQUIRED, "where the server is")
    for address in server.sends:
        name = ipaddress.ip_address(address).reverse_pointer
        why = "set at the hoster: the big providers refuse mail from an address without its name"
        yield Record("ptr", name, "PTR", f"{host}.", Need.REQUIRED, why)
    terms = " ".join(["a", *_terms(server)])
    yield Record(
        "spf-helo", host, "TXT", f"v=spf1 {terms} -all", Need.ADVISED, "bounces are sent in the server's own name"
    )
    yield from _dkim(server.keys)
    for digest in server.key_digests:
        why = "only where DNSSEC signs the zone: senders then insist on this key (DANE)"
        yield Record("tlsa", f"_25._tcp.{host}", "TLSA", f"3 1 1 {digest}", Need.OPTIONAL, why)
    if server.authority:
        value = f'0 issue "{server.authority}"'
        yield Record("caa", host, "CAA", value, Need.OPTIONAL, "nobody else may issue certificates for it")


def domain_records(server: Server, domain: Domain) -> Iterator[Record]:
    """The records of one domain."""
    name, host = domain.name, server.hostname
    yield Record("mx", name, "MX", f"10 {host}.", Need.REQUIRED, "mail for the domain comes here")
    yield Record("spf", name, "TXT", _spf(server, domain), Need.REQUIRED, "who may send in the domain's name")
    yield from _dkim(domain.keys)
    reports = f"rua=mailto:postmaster@{name}"
    value = f"v=DMARC1; p=quarantine; {reports}"
    yield Record("dmarc", f"_dmarc.{name}", "TXT", value, Need.REQUIRED, "what others do with forged mail")
    value = f"v=TLSRPTv1; {reports}"
    yield Record("tlsrpt", f"_smtp._tls.{name}", "TXT", value, Need.ADVISED, "others report when TLS to us fails")
    if domain.policy_id:
        why = "senders insist on TLS, by the policy at mta-sts."
        yield Record("mta-sts", f"_mta-sts.{name}", "TXT", f"v=STSv1; id={domain.policy_id}", Need.ADVISED, why)
    if server.client_pages:
        for label, why in _PAGES:
            if label != "mta-sts" or domain.policy_id:
                yield Record("client", f"{label}.{name}", "CNAME", f"{host}.", Need.ADVISED, why)
    for port in server.ports:
        # RFC 6186 s. 3.4: a target of "." says that there is no such service
        value = f"0 1 {port.number} {host}." if port.number else "0 0 0 ."
        why = "mail clients find the server" if port.number else "mail clients need not look for it"
        yield Record("srv", f"_{port.service}._tcp.{name}", "SRV", value, Need.OPTIONAL, why)


_PAGES = (
    ("mta-sts", "where that policy is fetched from"),
    ("autoconfig", "Thunderbird sets itself up"),
    ("autodiscover", "Outlook sets itself up"),
)


def _dkim(keys: Sequence[Key]) -> Iterator[Record]:
    words = {
        "in use": (Need.REQUIRED, "the key that signs outgoing mail"),
        "waiting": (Need.ADVISED, "the next key: it takes over when this record is seen"),
        "replaced": (Need.REQUIRED, "a former key, for mail that is still on its way"),
    }
    for key in keys:
        need, why = words[key.state]
        yield Record("dkim", key.name, "TXT", key.record, need, why)


def _spf(server: Server, domain: Domain) -> str:
    terms = ["mx", *_terms(server)]
    if server.smarthost:
        # its own addresses are rarely all that it sends from
        return f"v=spf1 {' '.join(terms)} a:{server.smarthost} ~all"
    return f"v=spf1 {' '.join(terms)} -all"


def _terms(server: Server) -> list[str]:
    """The addresses that we send from, but that our name does not lead to."""
    return [f"ip{6 if ':' in a else 4}:{a}" for a in server.sends if a not in server.receives]


def _family(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
