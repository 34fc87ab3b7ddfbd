"""The ARC fields of a message as sets (RFC 8617 s. 4): read, and checked for what needs no key.

Raises ChainError with the reason for which the chain fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pymx.mail.header import Field, find
from pymx.mail.mime import strip_comments
from pymx.mailauth.dkim.signature import Signature, SignatureError, parse_signature
from pymx.mailauth.dkim.tags import TagError, decode_base64, domain, parse_tags

_INSTANCE = re.compile(r"[1-9][0-9]?\Z")
_ALGORITHMS = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
_WSP = b" \t\r\n"


class ChainError(Exception):
    """The chain is broken."""


@dataclass(frozen=True, slots=True)
class Seal:
    """An ARC-Seal (s. 4.1.3)."""

    raw: bytes
    instance: int
    verdict: str  # cv=
    kind: str
    domain: str
    selector: str
    signature: bytes

    @property
    def record_name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"


@dataclass(frozen=True, slots=True)
class ArcSet:
    """What one sealer added."""

    seal: Seal
    message_signature: Signature
    results: Field  # ARC-Authentication-Results

    @property
    def results_text(self) -> str:
        """The results as in an Authentication-Results field."""
        return self.results.value.partition(b";")[2].decode("utf-8", "replace").strip()


def read_chain(head: bytes, max_sets: int) -> list[ArcSet]:
    """The sets in the order of their instances; none when there is no ARC field. Raises ChainError."""
    seals = _by_instance(head, "arc-seal", max_sets)
    signatures = _by_instance(head, "arc-message-signature", max_sets)
    results = _by_instance(head, "arc-authentication-results", max_sets)
    # s. 5.2 step 3A: "each set consists of exactly one of each", 3B: "a continuous sequence"
    if not seals.keys() == signatures.keys() == results.keys() == set(range(1, len(seals) + 1)):
        raise ChainError("the sets are not complete")
    return [_set(i, seals[i], signatures[i], results[i]) for i in range(1, len(seals) + 1)]


def _by_instance(head: bytes, name: str, max_sets: int) -> dict[int, Field]:
    found: dict[int, Field] = {}
    for instance, field in _instances(head, name):
        if instance in found:
            raise ChainError(f"two {name} fields with i={instance}")
        if instance > max_sets or len(found) >= max_sets:
            raise ChainError(f"more than {max_sets} sets")
        found[instance] = field
    return found


def _instances(head: bytes, name: str) -> Iterator[tuple[int, Field]]:
    for _, field in find(head, name):
        if name == "arc-authentication-results":
            tag, _, value = strip_comments(field.value.partition(b";")[0]).partition(b"=")
            text = value.strip(_WSP).decode("ascii", "replace") if tag.strip(_WSP) == b"i" else ""
        else:
            try:
                text = parse_tags(field.raw.partition(b":")[2]).get("i", "")
            except TagError as e:
                raise ChainError(f"{name}: {e}") from None
        if not _INSTANCE.match(text):
            raise ChainError(f"{name} without an instance")
        yield int(text), field


def _set(instance: int, seal: Field, signature: Field, results: Field) -> ArcSet:
    try:
        parsed = _seal(instance, seal)
        message_signature = parse_signature(signature, arc=True)
    except TagError as e:
        raise ChainError(f"arc-seal i={instance}: {e}") from None
    except SignatureError as e:
        raise ChainError(f"arc-message-signature i={instance}: {e.reason}") from None
    if "arc-seal" in message_signature.names:
        raise ChainError(f"arc-message-signature i={instance} signs arc-seal")  # s. 4.1.2: "MUST NOT"
    # s. 5.2 steps 2 and 3C
    if parsed.verdict == "fail":
        raise ChainError(f"sealer {instance} says that the chain had failed")
    if parsed.verdict != ("none" if instance == 1 else "pass"):
        raise ChainError(f"arc-seal i={instance} has cv={parsed.verdict[:10]}")
    return ArcSet(parsed, message_signature, results)


def _seal(instance: int, field: Field) -> Seal:
    tags = parse_tags(field.raw.partition(b":")[2])
    for tag in ("a", "b", "cv", "d", "s"):
        if not tags.get(tag):
            raise TagError(f"no {tag}=")
    if "h" in tags:
        raise TagError("h= is not allowed")  # s. 4.1.3: "MUST be declared failed"
    kind = _ALGORITHMS.get(tags["a"].lower())
    if kind is None:
        raise TagError("unknown algorithm")
    return Seal(
        raw=field.raw,
        instance=instance,
        verdict=tags["cv"].lower(),
        kind=kind,
        domain=domain(tags, "d"),
        selector=domain(tags, "s"),
        signature=decode_base64(tags["b"], "b"),
    )
