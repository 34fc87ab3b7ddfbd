"""Signature fields (RFC 6376 s. 3.5): DKIM-Signature, and ARC-Message-Signature, which has the same tags but two.

Whatever can be said about a signature without its key is said here: raises SignatureError, whose text may be shown to
anybody and whose `tags` are what could be read of the field.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymx.mail.header import Field
from pymx.mailauth.dkim.tags import TagError, decode_base64, domain, domain_name, number, parse_tags, unfolded, words

MAX_SIGNED_NAMES = 1000
_FORMS = ("simple", "relaxed")
_ALGORITHMS = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}


class SignatureError(Exception):
    """A permanent failure of one signature."""

    def __init__(self, reason: str, tags: dict[str, str]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.tags = tags


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature, ready to be checked. Domains are A-labels, lower case."""

    raw: bytes  # the whole field
    algorithm: str
    kind: str  # of the key it needs
    signature: bytes
    signature_b: str
    body_hash: bytes
    header_form: str
    body_form: str
    domain: str
    selector: str
    identity: str  # i=
    names: tuple[str, ...]  # h=
    length: int | None  # l=
    signed_at: int | None
    expires_at: int | None

    @property
    def record_name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def identity_domain(self) -> str:
        return self.identity.rpartition("@")[2]


def parse_signature(field: Field, *, arc: bool = False) -> Signature:
    """A signature field. `arc`: an ARC-Message-Signature, where i= is the instance and v= does not exist."""
    tags: dict[str, str] = {}
    try:
        tags = parse_tags(field.raw.partition(b":")[2])
        return _read(field, tags, arc)
    except TagError as e:
        raise SignatureError(str(e), tags) from None


def _read(field: Field, tags: dict[str, str], arc: bool) -> Signature:
    required = ("a", "b", "bh", "d", "h", "s") if arc else ("v", "a", "b", "bh", "d", "h", "s")
    for tag in required:
        if not tags.get(tag):
            raise TagError(f"signature has no {tag}=")
    if not arc and tags["v"] != "1":
        raise TagError("signature is of an unknown version")
    algorithm = tags["a"].lower()
    if algorithm == "rsa-sha1":
        # RFC 8301 s. 3.1: "have permanently failed evaluation"
        raise TagError("rsa-sha1 is no longer trusted (RFC 8301)")
    if algorithm not in _ALGORITHMS:
        raise TagError("signature has an unknown algorithm")
    if "q" in tags and "dns/txt" not in words(tags["q"]):
        raise TagError("signature's key is not in the DNS")
    header_form, _, body_form = tags.get("c", "simple/simple").lower().partition("/")
    body_form = body_form or "simple"
    if header_form not in _FORMS or body_form not in _FORMS:
        raise TagError("signature has an unknown canonicalization")
    names = tuple(unfolded(tags["h"]).lower().split(":"))
    if len(names) > MAX_SIGNED_NAMES:
        raise TagError(f"signature names more than {MAX_SIGNED_NAMES} fields")
    if "from" not in names:
        # s. 5.4: "The From header field MUST be signed"; s. 6.1.1: otherwise PERMFAIL
        raise TagError("From is not signed")
    sdid = domain(tags, "d")
    signed_at, expires_at = number(tags, "t"), number(tags, "x")
    if signed_at is not None and expires_at is not None and expires_at <= signed_at:
        raise TagError("signature ends before it begins")
    return Signature(
        raw=field.raw,
        algorithm=algorithm,
        kind=_ALGORITHMS[algorithm],
        signature=decode_base64(tags["b"], "b"),
        signature_b=unfolded(tags["b"])[:8],
        body_hash=decode_base64(tags["bh"], "bh"),
        header_form=header_form,
        body_form=body_form,
        domain=sdid,
        selector=domain(tags, "s"),
        identity="@" + sdid if arc else _identity(tags.get("i"), sdid),
        names=names,
        length=number(tags, "l", 76),
        signed_at=signed_at,
        expires_at=expires_at,
    )


def _identity(text: str | None, sdid: str) -> str:
    """i= with its domain in A-labels; by default "@" and d=."""
    if text is None:
        return "@" + sdid
    local, at, rest = unfolded(text).rpartition("@")
    if not at:
        raise TagError("i= has no domain")
    rest = domain_name(rest, "i")
    if rest != sdid and not rest.endswith("." + sdid):
        raise TagError("i= is not within d=")
    return f"{local}@{rest}"


def without_signature(raw: bytes) -> bytes:
    """The field without its line end and with an empty b= (s. 3.5): what it signs of itself."""
    name, colon, value = raw.removesuffix(b"\r\n").partition(b":")
    parts = value.split(b";")
    for i, part in enumerate(parts):
        tag, equals, _ = part.partition(b"=")
        if tag.strip(b" \t\r\n") == b"b":
            parts[i] = tag + equals
    return name + colon + b";".join(parts)
