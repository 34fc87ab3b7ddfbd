"""Messages and signatures for the tests of mailauth.

`handmade` signs whatever it is told to, right or wrong: its canonical forms are dkimpy's, its arithmetic is that of
`cryptography`, so it shares nothing with the code under test.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from dkim.canonicalization import CanonicalizationPolicy

DOMAIN = "example.test"
NOW = 1_800_000_000
HEAD = (
    b"Received: from here by there; Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"From: Alice <alice@example.test>\r\n"
    b"To: bob@example.com,\r\n\tcarol@example.com\r\n"
    b"Subject:  a  folded \r\n subject\r\n"
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"Message-ID: <1@example.test>\r\n"
)
BODY = b"Hello  Bob, \t\r\n\r\n.dots and\ttabs \r\n\r\n\r\n"
MESSAGE = HEAD + b"\r\n" + BODY
FORMS = ["simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed"]


def public_der(key: rsa.RSAPublicKey, form: serialization.PublicFormat) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, form)


class Keys:
    """RSA keys by size and an Ed25519 key, with the records of their selectors below example.test."""

    def __init__(self) -> None:
        self.rsa = {bits: rsa.generate_private_key(public_exponent=65537, key_size=bits) for bits in (1024, 2048)}
        self.ed25519 = ed25519.Ed25519PrivateKey.generate()
        self.other = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        raw = self.ed25519.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.ed25519_p = base64.b64encode(raw).decode()
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        self.rsa_p = base64.b64encode(public_der(self.rsa[1024].public_key(), spki)).decode()
        self.rsa_2048_p = base64.b64encode(public_der(self.rsa[2048].public_key(), spki)).decode()
        bare = public_der(self.rsa[1024].public_key(), serialization.PublicFormat.PKCS1)
        self.rsa_bare_p = base64.b64encode(bare).decode()
        self.records = {
            f"s._domainkey.{DOMAIN}": f"v=DKIM1; k=rsa; p={self.rsa_p}",
            f"big._domainkey.{DOMAIN}": f"p={self.rsa_2048_p}",
            f"ed._domainkey.{DOMAIN}": f"v=DKIM1; k=ed25519; p={self.ed25519_p}",
        }

    def pem(self, bits: int = 1024) -> bytes:
        return self.rsa[bits].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )


def body_of(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


def head_of(message: bytes) -> bytes:
    return message[: message.index(b"\r\n\r\n") + 2]


def parts(message: bytes) -> tuple[bytes, list[bytes]]:
    """A message as `verify` takes it: the head, and the rest from the empty line on."""
    head = head_of(message)
    return head, [message[len(head) :]]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def fields_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """(name, value) pairs, the value with its folding and final CRLF, as dkimpy has them."""
    unfolded = re.findall(rb"([^\r\n:]+):((?:[^\r]|\r\n[ \t])*\r\n)", head)
    return [(name, value) for name, value in unfolded]


def signer(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> Callable[[bytes], bytes]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return lambda data: key.sign(hashlib.sha256(data).digest())
    return lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def handmade(
    message: bytes,
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    *,
    signed: Sequence[str] = ("from", "to", "subject", "date"),
    form: str = "relaxed/relaxed",
    name: bytes = b"DKIM-Signature",
    body: bytes | None = None,
    **tags: str | None,
) -> bytes:
    """`message` with a signature field in front. `tags` replace or, being None, leave out; `body` is what is hashed."""
    policy = CanonicalizationPolicy.from_c_value(form.encode())
    canonical = policy.canonicalize_body(body_of(message) if body is None else body)
    length = tags.get("l")
    if length is not None:
        canonical = canonical[: int(length)]
    algorithm = "rsa-sha256" if isinstance(key, rsa.RSAPrivateKey) else "ed25519-sha256"
    selector = "s" if isinstance(key, rsa.RSAPrivateKey) else "ed"
    values: dict[str, str | None] = {
        "i": None,
        "v": "1",
        "a": algorithm,
        "c": form,
        "d": DOMAIN,
        "s": selector,
        "h": ":".join(signed),
        "bh": base64.b64encode(hashlib.sha256(canonical).digest()).decode(),
        **tags,
    }
    text = "; ".join(f"{tag}={value}" for tag, value in values.items() if value is not None)
    own = name + b": " + text.encode() + b"; b="
    chosen: list[tuple[bytes, bytes]] = []
    rest = fields_of(head_of(message))
    for wanted in signed:
        for i in range(len(rest) - 1, -1, -1):
            if rest[i][0].lower() == wanted.encode():
                chosen.append(rest.pop(i))
                break
    field = (name, b" " + text.encode() + b"; b=")
    covered = b"".join(n + b":" + v for n, v in policy.canonicalize_headers(chosen))
    last = policy.canonicalize_headers([field])[0]
    covered += (last[0] + b":" + last[1]).removesuffix(b"\r\n")
    return own + base64.b64encode(signer(key)(covered)) + b"\r\n" + message
