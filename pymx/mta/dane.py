"""DANE for SMTP: TLSA records, and whether a certificate chain fits them (RFC 6698, RFC 7671, RFC 7672). PURE.

Usable are the usages DANE-TA(2) and DANE-EE(3), with selector 0 or 1 and matching type 0, 1 or 2 (RFC 7672 s. 3.1.3
makes the PKIX usages 0 and 1 unusable). With DANE-EE the key alone counts: no names, no dates. With DANE-TA the chain
must lead from the server's certificate to the one that the record names, all of them in date, and the server's
certificate must bear one of the reference names.

The trust anchor must be among the certificates that the server sends, which RFC 7672 s. 3.1.2 asks of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

DANE_TA, DANE_EE = 2, 3
_CERTIFICATE, _KEY = 0, 1
_EXACT, _SHA256, _SHA512 = 0, 1, 2
_DIGEST_OCTETS = {_SHA256: 32, _SHA512: 64}
MAX_RECORDS = 50
_MAX_CHAIN = 10
_MAX_NAMES = 1000
_UNREADABLE = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip


class DaneFailure(Exception):
    """The chain does not fit. `result` is a result type of RFC 8460 s. 4.3."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True, slots=True, order=True)
class Tlsa:
    """A TLSA record (RFC 6698 s. 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        if self.usage not in (DANE_TA, DANE_EE) or self.selector not in (_CERTIFICATE, _KEY):
            return False
        if self.matching == _EXACT:
            return len(self.data) > 0
        return len(self.data) == _DIGEST_OCTETS.get(self.matching)

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"


def tlsa(fields: Sequence[object]) -> Tlsa:
    """The record in the resolver's form: (usage, selector, matching type, data)."""
    usage, selector, matching, data = fields
    assert isinstance(usage, int)
    assert isinstance(selector, int)
    assert isinstance(matching, int)
    assert isinstance(data, bytes)
    return Tlsa(usage, selector, matching, data)


def parse_tlsa(text: str) -> Tlsa:
    """The record in master file form. Raises ValueError."""
    words = text.split()
    if len(words) < 4 or not all(word.isascii() and word.isdigit() for word in words[:3]):
        raise ValueError("a TLSA record is three numbers and hexadecimal digits")
    usage, selector, matching = (int(word) for word in words[:3])
    if max(usage, selector, matching) > 255:
        raise ValueError("usage, selector and matching type are octets")
    return Tlsa(usage, selector, matching, bytes.fromhex("".join(words[3:])))


def usable(records: Sequence[Tlsa]) -> tuple[Tlsa, ...]:
    """Those that count. Of digests with one usage and selector only the strongest do (RFC 7671 s. 9)."""
    found = [record for record in records if record.usable]
    strong = {(r.usage, r.selector) for r in found if r.matching == _SHA512}
    return tuple(r for r in found if r.matching != _SHA256 or (r.usage, r.selector) not in strong)[:MAX_RECORDS]


def verify(chain: Sequence[bytes], records: Sequence[Tlsa], names: Sequence[str], now: dt.datetime) -> Tlsa:
    """The record that a chain of DER certificates, the server's own first, fits. Raises DaneFailure.

    `records` are usable ones; `names` are the reference identifiers of RFC 7672 s. 3.2.2.
    """
    if not chain:
        raise DaneFailure("certificate-not-trusted", "the server sent no certificate")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain[:_MAX_CHAIN]]
        for record in records:
            if record.usage == DANE_EE and _fits(record, chain[0], certificates[0]):
                return record
        trusted = [record for record in records if record.usage == DANE_TA]
        if not trusted:
            raise DaneFailure("certificate-not-trusted", "the certificate fits no TLSA record")
        return _by_anchor(chain, certificates, trusted, names, now)
    except _UNREADABLE as e:
        raise DaneFailure("certificate-not-trusted", f"a certificate can't be read: {e}") from None


def _fits(record: Tlsa, der: bytes, certificate: x509.Certificate) -> bool:
    data = der
    if record.selector == _KEY:
        data = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if record.matching == _EXACT:
        return data == record.data
    digest = hashlib.sha256 if record.matching == _SHA256 else hashlib.sha512
    return digest(data).digest() == record.data


def _by_anchor(
    chain: Sequence[bytes],
    certificates: Sequence[x509.Certificate],
    records: Sequence[Tlsa],
    names: Sequence[str],
    now: dt.datetime,
) -> Tlsa:
    """Walk from the server's certificate up to one that a record names."""
    der_of = dict(zip(certificates, chain, strict=False))
    here = certificates[0]
    _require_in_date(here, now)
    unseen = list(certificates[1:])
    below = 0  # intermediate certificates under the issuer
    while True:
        issuers = [c for c in unseen if _issued(c, here, below)]
        if not issuers:
            raise DaneFailure("certificate-not-trusted", "the chain leads to no certificate of a TLSA record")
        named = [(c, r) for c in issuers for r in records if _fits(r, der_of[c], c)]
        issuer, found = named[0] if named else (issuers[0], None)
        unseen.remove(issuer)
        _require_in_date(issuer, now)
        if found is not None:
            _require_name(certificates[0], names)
            return found
        here = issuer
        below += 1


def _issued(issuer: x509.Certificate, subject: x509.Certificate, below: int) -> bool:
    """Whether `issuer` may sign certificates and signed this one (RFC 5280 s. 6.1)."""
    if issuer.subject != subject.issuer or issuer == subject:
        return False
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    if not constraints.ca or (constraints.path_length is not None and below > constraints.path_length):
        return False
    try:
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            return False
    except x509.ExtensionNotFound:
        pass  # no KeyUsage: every use is allowed
    try:
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _require_in_date(certificate: x509.Certificate, now: dt.datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise DaneFailure("certificate-expired", f"a certificate of the chain is not valid at {now:%Y-%m-%d}")


def _require_name(certificate: x509.Certificate, names: Sequence[str]) -> None:
    presented = _presented(certificate)
    wanted = {name.lower().rstrip(".") for name in names if name}
    if not any(_name_fits(one, name) for one in presented for name in wanted):
        said = ", ".join(presented[:3]) or "nobody"
        raise DaneFailure("certificate-host-mismatch", f"the certificate is for {said}")


def _presented(certificate: x509.Certificate) -> list[str]:
    """The DNS names of a certificate; its common name when there are none (RFC 7672 s. 3.2.3)."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = alternative.get_values_for_type(x509.DNSName)[:_MAX_NAMES]
    except x509.ExtensionNotFound:
        found = []
    if not found:
        found = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name.lower().rstrip(".") for name in found]


def _name_fits(presented: str, wanted: str) -> bool:
    # RFC 7672 s. 3.2.3: a wildcard is the whole first label and stands for one
    if presented.startswith("*."):
        return wanted.partition(".")[2] == presented[2:] != ""
    return presented == wanted
