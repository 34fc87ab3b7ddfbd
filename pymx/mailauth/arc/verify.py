"""Verifying an ARC chain (RFC 8617 s. 5.2).

The chain is `pass` when it is whole (one field of each kind for every instance from 1 up), the newest message signature
is right, and every seal is; else `fail`, or `none` when there is no chain. A key that can't be looked up now is a
`fail` with `temporary` set: the chain can't be relied on, but nobody should hold it against the message.

A passing chain says that the sealers vouch for what they saw, no more: whether to believe them is up to the caller, who
knows their names from `sealers`. Nothing is raised, and the work is linear in the length of the message.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pymx.mailauth.arc.chain import ArcSet, ChainError, Seal, read_chain
from pymx.mailauth.dkim.body import BodyHashes, body_hashes
from pymx.mailauth.dkim.canonical import relaxed_field
from pymx.mailauth.dkim.record import RecordError, published_keys
from pymx.mailauth.dkim.signature import without_signature
from pymx.mailauth.dkim.verify import SignedHead, verify_signature
from pymx.mailauth.questions import Questions, unknown
from pymx.resolver.answer import TemporaryDnsError

MAX_SETS = 50  # s. 4.2.1


@dataclass(frozen=True, slots=True)
class ArcResult:
    """`sealers` and `authentication_results` (the text of each ARC-Authentication-Results, without its i=) are in the
    order of instances. `oldest_pass` is that of s. 5.2: the message has not changed since that instance; 0: since
    before the first."""

    result: str
    sealers: tuple[str, ...] = ()
    oldest_pass: int = 0
    authentication_results: tuple[str, ...] = ()
    reason: str = ""
    temporary: bool = False


class _Unknown(Exception):
    """A key can't be looked up now."""


async def verify(
    resolver: Questions, head: bytes, body: Iterable[bytes] | BodyHashes, *, now: float, max_sets: int = MAX_SETS
) -> ArcResult:
    """Check the chain in `head`. `body` begins with the empty line, as for DKIM."""
    sets: list[ArcSet] = []
    temporary, oldest, reason = False, 0, ""
    try:
        sets = read_chain(head, max_sets)
        if not sets:
            return ArcResult("none", reason="no chain")
        oldest = await _oldest_pass(resolver, head, body_hashes(head, body), sets, now)
        await _check_seals(resolver, sets)
    except ChainError as e:
        reason = str(e)
    except _Unknown as e:
        temporary, reason = True, str(e)
    return ArcResult(
        result="fail" if reason else "pass",
        sealers=tuple(s.seal.domain for s in sets),
        oldest_pass=oldest,
        authentication_results=tuple(s.results_text for s in sets),
        reason=reason,
        temporary=temporary,
    )


async def _oldest_pass(resolver: Questions, head: bytes, bodies: BodyHashes, sets: Sequence[ArcSet], now: float) -> int:
    """Step 4: the newest message signature must be right; step 5: since which instance they all are."""
    signed = SignedHead(head)
    oldest = len(sets) + 1
    for one in reversed(sets):
        found = await verify_signature(resolver, signed, bodies, one.message_signature, now=now)
        if found.result != "pass":
            if oldest <= len(sets):
                return oldest
            text = f"arc-message-signature i={one.seal.instance}: {found.reason}"
            raise _Unknown(text) if found.result == "temperror" else ChainError(text)
        oldest = one.seal.instance
    return 0


async def _check_seals(resolver: Questions, sets: Sequence[ArcSet]) -> None:
    """Step 6: every seal covers all sets up to its own."""
    so_far = hashlib.sha256()
    checks = []
    for one in sets:
        for raw in (one.results.raw, one.message_signature.raw):
            so_far.update(relaxed_field(raw.removesuffix(b"\r\n")) + b"\r\n")
        digest = so_far.copy()
        digest.update(relaxed_field(without_signature(one.seal.raw)))
        checks.append(_check_seal(resolver, one.seal, digest.digest()))
        so_far.update(relaxed_field(one.seal.raw.removesuffix(b"\r\n")) + b"\r\n")
    for found in await asyncio.gather(*checks, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found


async def _check_seal(resolver: Questions, seal: Seal, digest: bytes) -> None:
    try:
        keys = await published_keys(resolver, seal.record_name, seal.kind, subdomain=False)
    except RecordError as e:
        raise ChainError(f"arc-seal i={seal.instance}: {e.reason}") from None
    except TemporaryDnsError as e:
        raise _Unknown(f"arc-seal i={seal.instance}: {unknown(e)}") from None
    if not any(key.verify(seal.signature, digest) for key in keys):
        raise ChainError(f"arc-seal i={seal.instance}: signature differs")
