"""What a certificate says of itself: names, dates, key; and a self-signed one for the time without a real one.

`CertificateUnreadable` names the file and what is wrong with it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID


class CertificateUnreadable(Exception):
    """There is no certificate in the file, or the file can't be read."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the first certificate in a file. `names` are its DNS names, in lower case; times are Unix time."""

    path: Path
    names: tuple[str, ...]
    not_before: float
    not_after: float
    issuer: str
    organization: str  # the issuer's, "" if it has none
    self_signed: bool
    key: str  # such as "EC 256" or "RSA 2048"
    spki_sha256: bytes  # of the SubjectPublicKeyInfo: what TLSA 3 1 1 holds

    def covers(self, host: str) -> bool:
        """Is the certificate good for that host name?"""
        host = host.lower()
        return host in self.names or "*." + host.partition(".")[2] in self.names


def read_certificate(path: Path) -> Facts:
    """Raises CertificateUnreadable."""
    try:
        return facts(path.read_bytes(), path)
    except OSError as e:
        raise CertificateUnreadable(f"can't read {path}: {e.strerror}") from None


def facts(pem: bytes, path: Path) -> Facts:
    """Of the first certificate in `pem`, which came from `path`. Raises CertificateUnreadable."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        names = _names(certificate)
    except ValueError as e:
        raise CertificateUnreadable(f"{path}: {e}") from None
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Facts(
        path=path,
        names=names,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        issuer=" ".join(_issuer(certificate)) or certificate.issuer.rfc4514_string(),
        organization=next(iter(_issuer(certificate, NameOID.ORGANIZATION_NAME)), ""),
        self_signed=certificate.issuer == certificate.subject,
        key=_kind(key),
        spki_sha256=digest.finalize(),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in found.get_values_for_type(x509.DNSName))


def _issuer(certificate: x509.Certificate, *oids: x509.ObjectIdentifier) -> list[str]:
    """Its attributes of these kinds; without any, what people call it: organization and common name."""
    return [
        str(attribute.value)
        for oid in oids or (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
        for attribute in certificate.issuer.get_attributes_for_oid(oid)
    ]


def _kind(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.key_size}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__


def write_self_signed(
    directory: Path, names: Sequence[str], *, address: str = "", days: int = 365
) -> tuple[Path, Path]:
    """`self_signed` as cert.pem and key.pem (0600) in `directory`, which is made. Returns (certificate, key)."""
    key, certificate = self_signed(names, address=address, days=days)
    paths = directory / "cert.pem", directory / "key.pem"
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(paths[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(key)
    paths[0].write_bytes(certificate)
    return paths


def self_signed(names: Sequence[str], *, address: str = "", days: int = 365) -> tuple[bytes, bytes]:
    """A new P-256 key and its certificate for `names` (and an address), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.datetime.now(datetime.UTC)
    alternative: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    if address:
        alternative.append(x509.IPAddress(ipaddress.ip_address(address)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate.public_bytes(serialization.Encoding.PEM)
