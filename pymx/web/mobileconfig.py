"""A profile for iPhones, iPads and Macs (Apple's Configuration Profile Reference, com.apple.mail.managed).

Without an address the device asks for name and address. Identifiers are made from domain and address: a profile that is
installed again replaces the old one. `signed` wraps it in CMS (RFC 5652) with the server's certificate, so that the
device shows who it comes from. `SigningError`: that certificate's key can't be read or can't sign.
"""

from __future__ import annotations

import plistlib
import uuid
from pathlib import Path

from pymx.mail.address import Address
from pymx.web.services import Service, Services

CONTENT_TYPE = "application/x-apple-aspen-config"
PATH = "/mail/profile.mobileconfig"
_NAMESPACE = uuid.UUID("5f1b6a2e-6a0b-4f0e-9c0f-3d0c7d1b9a51")


class SigningError(Exception):
    """The profile can't be signed; the text says why."""


def profile(domain: str, address: Address | None, services: Services) -> bytes:
    """The profile as a property list."""
    email = str(address) if address is not None else ""
    seed = f"{domain} {email}"
    reverse = ".".join(reversed(domain.split(".")))
    mail: dict[str, object] = {
        "PayloadType": "com.apple.mail.managed",
        "PayloadVersion": 1,
        "PayloadIdentifier": f"{reverse}.mail.{_identity(seed + ' mail')}",
        "PayloadUUID": _identity(seed + " mail"),
        "PayloadDisplayName": f"Mail at {domain}",
        "EmailAccountType": "EmailTypeIMAP",
        "EmailAccountDescription": email or domain,
        "OutgoingPasswordSameAsIncomingPassword": True,
        **(_server("Incoming", services.imap[0], email) if services.imap else {}),
        **(_server("Outgoing", services.submission[0], email) if services.submission else {}),
    }
    if email:
        mail["EmailAddress"] = email
    whole = {
        "PayloadType": "Configuration",
        "PayloadVersion": 1,
        "PayloadIdentifier": f"{reverse}.{_identity(seed)}",
        "PayloadUUID": _identity(seed),
        "PayloadDisplayName": f"Mail at {domain}",
        "PayloadDescription": f"Sets up {email or 'a mail account at ' + domain}.",
        "PayloadOrganization": domain,
        "PayloadRemovalDisallowed": False,
        "PayloadContent": [mail],
    }
    return plistlib.dumps(whole)


def _server(direction: str, service: Service, email: str) -> dict[str, object]:
    found: dict[str, object] = {
        f"{direction}MailServerHostName": service.host,
        f"{direction}MailServerPortNumber": service.port,
        f"{direction}MailServerUseSSL": True,  # with STARTTLS where the port speaks that
        f"{direction}MailServerAuthentication": "EmailAuthPassword",
    }
    if email:
        found[f"{direction}MailServerUsername"] = email
    return found


def _identity(seed: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, seed)).upper()


def signed(content: bytes, certificate: Path, private_key: Path) -> bytes:
    """`content` in a CMS SignedData, DER, with the chain. Reads two files and computes. Raises SigningError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import pkcs7

    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except OSError as e:
        raise SigningError(f"{e.filename}: {e.strerror}") from None
    except (ValueError, TypeError) as e:
        raise SigningError(f"{certificate}: {e}") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise SigningError(f"{private_key}: a key of this kind can't sign profiles")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content).add_signer(chain[0], key, hashes.SHA256())
    for issuer in chain[1:]:
        builder = builder.add_certificate(issuer)
    return builder.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
