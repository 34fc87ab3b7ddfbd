"""Stored passwords: Dovecot's `{SCHEME}hash` and bare crypt strings; which are understood, checking, making.

Understood: {BLF-CRYPT}, {SHA512-CRYPT}, {SHA256-CRYPT}, {ARGON2ID}, {ARGON2I}, {CRYPT} and no scheme at all, each
with `$2a$ $2b$ $2x$ $2y$`, `$5$`, `$6$`, `$argon2id$` or `$argon2i$` behind it. `UnsupportedScheme` names any other.
New ones are always `{BLF-CRYPT}$2y$…`, which Dovecot reads too.

bcrypt looks at 72 octets. A new password may not be longer (`PasswordUnusable`); a check looks at the first 72, as the
Dovecot did that made the hash. `verify` holds a core for up to a second and, with argon2, 64 MB: see authenticate.py.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import bcrypt

MAX_PASSWORD_OCTETS = 1024  # of a login; longer ones are wrong without a look
_BCRYPT_OCTETS = 72

_STORED = re.compile(r"(?:\{(?P<scheme>[A-Za-z0-9.\-]+)\})?(?P<hash>.*)", re.DOTALL)


class Kind(enum.Enum):
    BCRYPT = "bcrypt"
    SHA_CRYPT = "sha-crypt"
    ARGON2 = "argon2"


_PREFIXES = {
    "$2a$": Kind.BCRYPT,
    "$2b$": Kind.BCRYPT,
    "$2x$": Kind.BCRYPT,
    "$2y$": Kind.BCRYPT,
    "$5$": Kind.SHA_CRYPT,
    "$6$": Kind.SHA_CRYPT,
    "$argon2id$": Kind.ARGON2,
    "$argon2i$": Kind.ARGON2,
}
_SCHEMES = {
    "BLF-CRYPT": ("$2a$", "$2b$", "$2x$", "$2y$"),
    "SHA512-CRYPT": ("$6$",),
    "SHA256-CRYPT": ("$5$",),
    "ARGON2ID": ("$argon2id$",),
    "ARGON2I": ("$argon2i$",),
    "CRYPT": tuple(_PREFIXES),
    "": tuple(_PREFIXES),
}


class UnsupportedScheme(Exception):
    """The stored password is in a form that is not understood. The text names it without any of the hash."""


class PasswordUnusable(Exception):
    """Not a password to set; the text says why."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored password taken apart: `hash` without the scheme."""

    kind: Kind
    hash: str


def parse(stored: str) -> Stored:
    """Raises UnsupportedScheme."""
    match = _STORED.match(stored)
    scheme, rest = ((match["scheme"] or "").upper(), match["hash"]) if match else ("", stored)
    if scheme not in _SCHEMES:
        raise UnsupportedScheme(f"{{{scheme}}}")
    for prefix in _SCHEMES[scheme]:
        if rest.startswith(prefix):
            return Stored(_PREFIXES[prefix], rest)
    shape = re.match(r"\$[a-z0-9]{1,10}\$", rest)
    found = f"{shape[0]}…" if shape else "no known prefix"
    raise UnsupportedScheme(f"{{{scheme}}} with {found}" if scheme else f"no scheme and {found}")


def verify(stored: Stored, password: str) -> bool:
    """Does `password` fit? False also for a damaged hash. Blocks; never raises."""
    octets = password.encode("utf-8", "surrogateescape")
    if not octets or len(octets) > MAX_PASSWORD_OCTETS:
        return False
    if stored.kind is Kind.BCRYPT:
        return _verify_bcrypt(stored.hash, octets)
    if stored.kind is Kind.SHA_CRYPT:
        return _verify_sha_crypt(stored.hash, octets)
    return _verify_argon2(stored.hash, octets)


def make(password: str, cost: int) -> str:
    """A new stored password. Raises PasswordUnusable."""
    octets = password.encode("utf-8")
    if not octets:
        raise PasswordUnusable("the password is empty")
    if len(octets) > _BCRYPT_OCTETS:
        raise PasswordUnusable(
            f"the password has {len(octets)} octets; bcrypt looks at {_BCRYPT_OCTETS}, so longer ones are refused"
        )
    if "\0" in password:
        raise PasswordUnusable("the password holds a NUL, which no client can send")
    hashed = bcrypt.hashpw(octets, bcrypt.gensalt(cost)).decode("ascii")
    return "{BLF-CRYPT}$2y$" + hashed.removeprefix("$2b$")  # the name that Dovecot and crypt(3) give the same algorithm


def dummy(cost: int) -> Stored:
    """A bcrypt hash that nothing fits, to be checked where there is no user: it takes as long."""
    return Stored(Kind.BCRYPT, f"$2b${cost:02d}$" + "." * 22 + "/" * 31)


def _verify_bcrypt(hashed: str, octets: bytes) -> bool:
    try:
        return bcrypt.checkpw(octets[:_BCRYPT_OCTETS], hashed.encode("utf-8"))
    except ValueError:
        return False


def _verify_sha_crypt(hashed: str, octets: bytes) -> bool:
    from passlib.hash import sha256_crypt, sha512_crypt  # 12 MB that most installations never need

    try:
        return bool((sha512_crypt if hashed.startswith("$6$") else sha256_crypt).verify(octets, hashed))
    except ValueError:
        return False


def _verify_argon2(hashed: str, octets: bytes) -> bool:
    import argon2  # as above

    try:
        return argon2.PasswordHasher().verify(hashed, octets)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
