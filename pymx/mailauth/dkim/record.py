"""Key records (RFC 6376 s. 3.6.1, RFC 8463 s. 4): what a selector publishes, and the public key in it.

Hostile keys are refused before they are used: RSA has 1,024 (RFC 8301 s. 3.2) to 4,096 bits and an exponent of at most
64 bits; a modulus and exponent of 16,384 bits would hold the processor for seconds.

Errors: RecordError, with the result the signature has then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pymx.mailauth.dkim.keys import MAX_RSA_BITS, MIN_RSA_BITS
from pymx.mailauth.dkim.tags import TagError, decode_base64, parse_tags, words
from pymx.mailauth.questions import Questions, texts

MAX_RECORDS = 4  # TXT records at one selector that are tried
MAX_RECORD_OCTETS = 4096  # an RSA key of 4,096 bits takes 740
_MAX_EXPONENT_BITS = 64
_RSA = padding.PKCS1v15()
_SHA256 = Prehashed(hashes.SHA256())


class RecordError(Exception):
    """A record has no key that can be used; `result` is that of the signature."""

    def __init__(self, reason: str, result: str = "permerror") -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """`verify(signature, digest)` tells whether the SHA-256 digest was signed with the key."""

    kind: str  # k=: rsa or ed25519
    hashes: tuple[str, ...]  # h=, empty: any
    for_mail: bool  # s=
    for_reports: bool  # s=tlsrpt (RFC 8460 s. 3)
    testing: bool  # t=y
    same_domain: bool  # t=s: i= must not name a subdomain of d=
    bits: int
    verify: Callable[[bytes, bytes], bool]


async def published_keys(
    resolver: Questions, name: str, kind: str, *, subdomain: bool, is_report: bool = False
) -> list[KeyRecord]:
    """The keys at `name` that may verify a signature of this kind (s. 6.1.2); mostly one.

    `subdomain`: i= is below d=. `is_report`: the message is a TLS report. Raises RecordError when there is none,
    TemporaryDnsError when that can't be told.
    """
    published = await texts(resolver, name)
    if not published:
        raise RecordError("no key record")
    usable: list[KeyRecord] = []
    errors: list[RecordError] = []
    for text in published[:MAX_RECORDS]:
        try:
            usable.append(_permitted(parse_record(text), kind, subdomain, is_report))
        except RecordError as e:
            errors.append(e)
    if not usable:
        raise errors[0]
    return usable


def _permitted(record: KeyRecord, kind: str, subdomain: bool, is_report: bool) -> KeyRecord:
    if record.kind != kind:
        raise RecordError("key is of another algorithm")
    if record.hashes and "sha256" not in record.hashes:
        raise RecordError("key does not allow sha256")
    if not (record.for_mail or (is_report and record.for_reports)):
        raise RecordError("key is not for mail")
    if record.same_domain and subdomain:
        raise RecordError("key does not sign for subdomains (t=s)")
    return record


@functools.lru_cache(256)
def parse_record(text: bytes) -> KeyRecord:
    """A TXT record as a key record. Raises RecordError."""
    if len(text) > MAX_RECORD_OCTETS:
        raise RecordError("key record is too long")
    try:
        tags = parse_tags(text, gaps=True)
        # s. 3.6.1: v= "MUST be the first tag in the record" and DKIM1, if it is there at all
        if "v" in tags and (next(iter(tags)) != "v" or tags["v"] != "DKIM1"):
            raise RecordError("not a DKIM key record")
        if "p" not in tags:
            raise RecordError("key record has no p=")
        public = decode_base64(tags["p"], "p")
    except TagError as e:
        raise RecordError(f"key record: {e}") from None
    if not public:
        raise RecordError("key was revoked")
    kind = tags.get("k", "rsa").lower()
    if kind == "rsa":
        bits, verify = _rsa(public)
    elif kind == "ed25519":
        bits, verify = _ed25519(public)
    else:
        raise RecordError("key is of an unknown type")
    services, flags = words(tags.get("s", "*")), words(tags.get("t", ""))
    return KeyRecord(
        kind=kind,
        hashes=tuple(words(tags.get("h", ""))),
        for_mail="*" in services or "email" in services,
        for_reports="tlsrpt" in services,
        testing="y" in flags,
        same_domain="s" in flags,
        bits=bits,
        verify=verify,
    )


def _rsa(public: bytes) -> tuple[int, Callable[[bytes, bytes], bool]]:
    try:
        key = load_der_public_key(public)  # SubjectPublicKeyInfo, or the RSAPublicKey alone
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RecordError("p= is not an RSA key") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise RecordError("p= is not an RSA key")
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise RecordError(f"RSA key of {key.key_size} bits", "policy")
    if key.public_numbers().e.bit_length() > _MAX_EXPONENT_BITS:
        raise RecordError("RSA key with a huge exponent", "policy")

    def verify(signature: bytes, digest: bytes) -> bool:
        try:
            key.verify(signature, digest, _RSA, _SHA256)
        except (InvalidSignature, ValueError):  # ValueError: OpenSSL refuses the key itself
            return False
        return True

    return key.key_size, verify


def _ed25519(public: bytes) -> tuple[int, Callable[[bytes, bytes], bool]]:
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
    except (ValueError, UnsupportedAlgorithm):
        raise RecordError("p= is not an Ed25519 key") from None

    def verify(signature: bytes, digest: bytes) -> bool:
        try:
            key.verify(signature, digest)  # RFC 8463 s. 3: PureEdDSA over the hash
        except InvalidSignature:
            return False
        return True

    return 256, verify
