"""Signing keys on disk: `<directory>/<domain>/<selector>.pem`, private, mode 0600 (RFC 6376 s. 3.6, RFC 8463).

A domain may have several selectors. It signs with at most one key of each algorithm: the selectors named in the file
`<directory>/<domain>/active`, one a line, or, without that file, the first of each algorithm in the order of their
names. So a key can be made and published before it is used.

Loaded keys are kept, and looked at again when a file or the directory changed (asked at most once a second). The RSA
consistency check of the loader takes 40 ms and is left out: a damaged key gives bad signatures either way.

Errors: `KeyUnusable` for a file that holds no usable private key; `KeyExists` from `generate`; OSError.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

Algorithm = Literal["rsa", "ed25519"]
MIN_RSA_BITS = 1024  # RFC 8301 s. 3.2; less is not loaded
MAX_RSA_BITS = 4096
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_ACTIVE = "active"


class KeyUnusable(Exception):
    """A key file can't be used; the text names it and says why."""


class KeyExists(Exception):
    """There is a key of that selector already."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One private key: `algorithm` is the a= tag's value, `sign` makes a signature of the octets given."""

    domain: str
    selector: str
    algorithm: str
    sign: Callable[[bytes], bytes]
    public: bytes  # what the p= tag holds, before base64

    @property
    def record_name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The TXT record (RFC 6376 s. 3.6.1)."""
        kind = "ed25519" if self.algorithm.startswith("ed25519") else "rsa"
        return f"v=DKIM1; k={kind}; p={base64.b64encode(self.public).decode('ascii')}"


def domain_directory(directory: Path, domain: str) -> Path:
    """Where the keys of `domain` (A-labels, lower case) are. Raises ValueError for what is no domain name."""
    if not _NAME.match(domain):
        raise ValueError(f"not a domain name: {domain!r}")
    return directory / domain


def load(path: Path, domain: str) -> SigningKey:
    """The key in `path`, whose name is its selector. Raises KeyUnusable."""
    try:
        private = serialization.load_pem_private_key(
            path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise KeyUnusable(f"{path}: not an unencrypted PEM private key: {e}") from None
    except OSError as e:
        raise KeyUnusable(f"{path}: {e.strerror}") from None
    selector = path.name.removesuffix(".pem")
    if isinstance(private, rsa.RSAPrivateKey):
        return SigningKey(domain, selector, "rsa-sha256", _rsa_signer(path, private), _rsa_public(private))
    if isinstance(private, ed25519.Ed25519PrivateKey):
        public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return SigningKey(domain, selector, "ed25519-sha256", _ed25519_signer(private), public)
    raise KeyUnusable(f"{path}: neither an RSA nor an Ed25519 key")


def _rsa_signer(path: Path, private: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    if not MIN_RSA_BITS <= private.key_size <= MAX_RSA_BITS:
        raise KeyUnusable(f"{path}: RSA key of {private.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are possible")
    scheme, sha256 = padding.PKCS1v15(), hashes.SHA256()
    return lambda data: private.sign(data, scheme, sha256)


def _rsa_public(private: rsa.RSAPrivateKey) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _ed25519_signer(private: ed25519.Ed25519PrivateKey) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        digest = hashes.Hash(hashes.SHA256())  # RFC 8463 s. 3: PureEdDSA over the SHA-256 hash
        digest.update(data)
        return private.sign(digest.finalize())

    return sign


def load_all(directory: Path, domain: str) -> list[SigningKey]:
    """Every key of `domain` in the order of their selectors. Raises KeyUnusable."""
    folder = domain_directory(directory, domain)
    return [load(path, domain) for path in sorted(folder.glob("*.pem"))]


def active_keys(directory: Path, domain: str) -> list[SigningKey]:
    """The keys that `domain` signs with: at most one of each algorithm, RSA first. Raises KeyUnusable."""
    keys = load_all(directory, domain)
    named = _active_selectors(domain_directory(directory, domain))
    if named:
        missing = [s for s in named if s not in {k.selector for k in keys}]
        if missing:
            raise KeyUnusable(f"{directory / domain / _ACTIVE}: names {missing[0]}, which has no key file")
        keys = [k for k in keys if k.selector in named]
    chosen: dict[str, SigningKey] = {}
    for key in keys:
        chosen.setdefault(key.algorithm, key)
    return sorted(chosen.values(), key=lambda k: k.algorithm != "rsa-sha256")


def _active_selectors(folder: Path) -> list[str]:
    try:
        return (folder / _ACTIVE).read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []


def generate(
    directory: Path, domain: str, selector: str, *, algorithm: Algorithm = "rsa", bits: int = 2048
) -> SigningKey:
    """Make a key and write it durably. The keys in use stay in use. Raises KeyExists, ValueError, OSError."""
    if not _NAME.match(selector):
        raise ValueError(f"not a selector: {selector!r}")
    folder = domain_directory(directory, domain)
    path = folder / f"{selector}.pem"
    if path.exists():
        raise KeyExists(f"{path} exists; choose another selector, or remove that file first")
    if algorithm == "rsa" and not 2048 <= bits <= MAX_RSA_BITS:
        raise ValueError(f"RSA keys have 2048 to {MAX_RSA_BITS} bits")
    private = (
        rsa.generate_private_key(public_exponent=65537, key_size=bits)
        if algorithm == "rsa"
        else ed25519.Ed25519PrivateKey.generate()
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    in_use = active_keys(directory, domain)
    wanted = "rsa-sha256" if algorithm == "rsa" else "ed25519-sha256"
    if any(k.algorithm == wanted for k in in_use) and not _active_selectors(folder):
        activate(directory, domain, [k.selector for k in in_use])
    write_private(path, pem)
    return load(path, domain)


def is_private(directory: Path, key: SigningKey) -> bool:
    """May nobody but its owner read the key's file?"""
    path = domain_directory(directory, key.domain) / f"{key.selector}.pem"
    return not path.stat().st_mode & 0o077


def activate(directory: Path, domain: str, selectors: list[str]) -> None:
    """Sign with these selectors from now on. Raises KeyUnusable when one has no key."""
    folder = domain_directory(directory, domain)
    for selector in selectors:
        if not (folder / f"{selector}.pem").exists():
            raise KeyUnusable(f"{domain} has no key of selector {selector}")
    write_private(folder / _ACTIVE, "".join(f"{s}\n" for s in selectors).encode("ascii"))


def write_private(path: Path, data: bytes) -> None:
    """Write a private file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)  # also when the file was left there by somebody with another umask
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(slots=True)
class _Loaded:
    stamp: _Stamp
    keys: list[SigningKey]
    looked: float


class KeyRing:
    """The active keys of every domain, kept in memory and followed on disk.

    When a changed file can't be used, the keys loaded before stay in use and `complain` hears why.
    """

    def __init__(
        self,
        directory: Path,
        *,
        complain: Callable[[Path, str], None] | None = None,
        look_again_s: float = 1.0,
    ) -> None:
        self._directory = directory
        self._look_again_s = look_again_s
        self._complain = complain
        self._loaded: dict[str, _Loaded] = {}

    def keys(self, domain: str) -> list[SigningKey]:
        """The keys that sign for `domain` (A-labels); empty when there are none. Raises KeyUnusable."""
        now = time.monotonic()
        loaded = self._loaded.get(domain)
        if loaded is not None and now - loaded.looked < self._look_again_s:
            return loaded.keys
        try:
            folder = domain_directory(self._directory, domain)
        except ValueError:
            return []
        stamp = _stamp(folder)
        if not stamp:
            # nothing remembered for domains without keys: their names come from submitted mail
            self._loaded.pop(domain, None)
            return []
        if loaded is not None and loaded.stamp == stamp:
            loaded.looked = now
            return loaded.keys
        try:
            keys = active_keys(self._directory, domain)
        except KeyUnusable as e:
            if loaded is None:
                raise
            if self._complain:
                self._complain(folder, str(e))
            keys = loaded.keys
        self._loaded[domain] = _Loaded(stamp, keys, now)
        return keys


def _stamp(folder: Path) -> _Stamp:
    """What changes when a key file or the choice of keys does."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    out = []
    for entry in entries:
        if entry.name.endswith(".pem") or entry.name == _ACTIVE:
            s = entry.stat()
            out.append((entry.name, s.st_ino, s.st_mtime_ns, s.st_size))
    return tuple(out)
