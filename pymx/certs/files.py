"""Certificates on disk: `<data_dir>/tls/NAME.pem`, mode 0600, with the private key first and the chain behind it.

One file, so that key and chain change together: it is written beside its place, synced, and renamed. `install` looks
first whether the key belongs to the certificate, whether the chain is one, and whether it has not expired already:
`NotInstalled` says what is wrong, and what was there before stays. `NAME` is a host name or a domain.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from pymx.net.certificate import CertificateUnreadable, Facts, facts

_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9])?\Z")


class NotInstalled(Exception):
    """Certificate and key can't be used together, or not be written; the text says why."""


def directory(data_dir: Path) -> Path:
    """Where certificates lie."""
    return data_dir / "tls"


def challenges_directory(data_dir: Path) -> Path:
    """Where the proofs for the authority lie while it asks for them: a file per token, served by `pymx.web`."""
    return data_dir / "acme" / "challenges"


def place(data_dir: Path, name: str) -> Path:
    """The file of the certificate called `name`. Raises NotInstalled for what can't be a name."""
    if not _NAME.match(name) or ".." in name:
        raise NotInstalled(f"{name!r} can't be the name of a certificate: expected a host name or a domain")
    return directory(data_dir) / f"{name}.pem"


def install(data_dir: Path, name: str, key_pem: bytes, chain_pem: bytes) -> Facts:
    """Check both and put them into their place. Raises NotInstalled."""
    path = place(data_dir, name)
    key, chain = _read_key(key_pem), _read_chain(chain_pem)
    if _public(key.public_key()) != _public(chain[0].public_key()):
        raise NotInstalled("the private key is not the key of the certificate")
    for issued, issuer in itertools.pairwise(chain):
        try:
            issued.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError):
            raise NotInstalled(
                f"the chain is not one: {issued.subject.rfc4514_string()} is not issued by the certificate behind it"
            ) from None
    try:
        found = facts(chain_pem, path)
    except CertificateUnreadable as e:
        raise NotInstalled(str(e)) from None
    if not found.names:
        raise NotInstalled("the certificate is for no host name (it has no subjectAltName)")
    if found.not_after < time.time():
        raise NotInstalled("the certificate has expired")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        write(path, pem + b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    except OSError as e:
        raise NotInstalled(f"{e.filename}: {e.strerror}") from None
    return found


def write(path: Path, content: bytes) -> None:
    """Replace a file, 0600, so that after a crash there is the old or the new one. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # a dot in front: whoever lists certificates does not see it
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def private_key(path: Path) -> bytes | None:
    """The key in an installed file, PEM; None when there is none that can be read."""
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
    except (OSError, ValueError, TypeError):
        return None
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise NotInstalled("the private key is encrypted; store it without a pass phrase") from None
    except ValueError:
        raise NotInstalled("there is no private key (PEM)") from None


def _read_chain(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise NotInstalled("there is no certificate (PEM)") from None


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded
