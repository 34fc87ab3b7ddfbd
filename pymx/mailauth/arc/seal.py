"""Sealing a message that is passed on (RFC 8617 s. 5.1): what we saw of it, for those who get it from us.

`seal` makes the three fields of one ARC set, to be put in front: ARC-Seal, ARC-Message-Signature,
ARC-Authentication-Results. The message itself stays as it is. `verdict` is what we made of the chain that came with it;
a chain that failed is sealed as failed, by a seal over its own set alone (s. 5.1.2), and one that somebody has already
declared failed, or that has 50 sets, gets no other.

The key is an RSA one where the domain has one: few verifiers know Ed25519 in ARC. `Sealer.seal` is synchronous and
costs what a DKIM signature does, twice. Raises `keys.KeyUnusable` when the domain's keys can't be read, OSError when
the content can't.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from pymx.mail.address import AddressError, domain_to_ascii
from pymx.mail.header import build_field, find
from pymx.mailauth.arc.chain import ArcSet, ChainError, read_chain
from pymx.mailauth.arc.verify import MAX_SETS, ArcResult
from pymx.mailauth.dkim.canonical import relaxed_field
from pymx.mailauth.dkim.keys import KeyRing, SigningKey
from pymx.mailauth.dkim.sign import Signable, body_hash, grouped, select, spaced

_FIELDS = ("arc-seal", "arc-message-signature", "arc-authentication-results")
_INSTANCE = re.compile(rb"(?:^|[;:])\s*i\s*=\s*([1-9][0-9]?)\s*;")
_FAILED = re.compile(rb";\s*cv\s*=\s*fail\s*(?:;|\Z)", re.IGNORECASE)


class Sealer:
    """Seals with the keys under `directory`, which are those that sign by DKIM."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        complain: Callable[[Path, str], None] | None = None,
    ) -> None:
        self._ring = KeyRing(directory, complain=complain)
        self._clock = clock

    def seal(self, domain: str, content: Signable, *, results: str, chain: ArcResult) -> bytes:
        """The next ARC set for `content`; b"" when `domain` has no key, or the chain takes no other set.

        `results` is the value of our Authentication-Results field, `chain` what was found when the message came.
        """
        try:
            keys = self._ring.keys(domain_to_ascii(domain))
        except AddressError:
            return b""
        earlier = _earlier(content.head, chain)
        if not keys or earlier is None:
            return b""
        instance, sets = earlier
        verdict = "none" if instance == 1 else chain.result
        return _set(keys[0], content, instance, sets, verdict, results, int(self._clock()))


def _earlier(head: bytes, chain: ArcResult) -> tuple[int, list[ArcSet]] | None:
    """The instance of the next set, and the sets that its seal covers besides its own; None: no more sets."""
    if chain.result == "none":
        return 1, []
    if chain.temporary:
        return None  # nobody knows what to say about it
    if chain.result == "pass":
        try:
            sets = read_chain(head, MAX_SETS)
        except ChainError:
            return None
        return (len(sets) + 1, sets) if len(sets) < MAX_SETS else None
    # s. 5.1.2: the failed chain's fields can't be relied on, so the seal covers none of them
    instances = [int(match[1]) for name in _FIELDS for _, field in find(head, name) if (match := _instance(field.raw))]
    if any(_FAILED.search(field.value) for _, field in find(head, "arc-seal")) or max(instances, default=0) >= MAX_SETS:
        return None
    return max(instances, default=0) + 1, []


def _instance(raw: bytes) -> re.Match[bytes] | None:
    return _INSTANCE.search(raw.partition(b":")[2])


def _set(
    key: SigningKey, content: Signable, instance: int, earlier: list[ArcSet], verdict: str, results: str, now: int
) -> bytes:
    seen = build_field("ARC-Authentication-Results", f"i={instance}; {results}")
    signature = _message_signature(key, content, instance, now)
    tags = f"i={instance}; a={key.algorithm}; t={now}; cv={verdict}; d={key.domain}; s={key.selector}; b="
    # s. 5.1.1: every set in the order of instances; in each the results, the signature, the seal
    covered = [raw for one in earlier for raw in (one.results.raw, one.message_signature.raw, one.seal.raw)]
    data = b"".join(_relaxed(raw) + b"\r\n" for raw in (*covered, seen, signature))
    own = _relaxed(build_field("ARC-Seal", tags))
    return build_field("ARC-Seal", tags + grouped(key.sign(data + own))) + signature + seen


def _message_signature(key: SigningKey, content: Signable, instance: int, now: int) -> bytes:
    names, signed = select(content.head, ("dkim-signature",))  # s. 4.1.2: should be covered
    tags = (
        f"i={instance}; a={key.algorithm}; c=relaxed/relaxed; d={key.domain}; s={key.selector}; t={now}; "
        f"h={spaced(names)}; bh={body_hash(content)}; b="
    )
    own = _relaxed(build_field("ARC-Message-Signature", tags))
    return build_field("ARC-Message-Signature", tags + grouped(key.sign(signed + own)))


def _relaxed(raw: bytes) -> bytes:
    return relaxed_field(raw.removesuffix(b"\r\n"))
