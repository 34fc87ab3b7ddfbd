"""Verifying DKIM signatures (RFC 6376 s. 6, RFC 8301, RFC 8463).

Each signature has a result of RFC 8601 s. 2.7.1:

- `pass`, `fail`: the signature is, or is not, that of the message (body hash or signature differ);
- `policy`: it may be right, but we don't take it: l= leaves the end of the body open, a field that may occur only once
  has another copy that is not signed, the key is too weak or too large;
- `neutral`: it is wrong, but the domain says that it is only testing (t=y);
- `permerror`: it can't be checked: broken, expired, From not signed, rsa-sha1, no such key, key revoked;
- `temperror`: its key can't be looked up now;
- `none`: there is no signature; the only element of the list then.

Nothing is raised whatever the message holds, and the work is linear in its length: at most `limit` signatures are
looked at, those that come after it are one `policy` result.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from itertools import islice

from pymx.mail.header import find, iter_fields
from pymx.mail.report import is_tls_report
from pymx.mailauth.dkim.body import BodyHashes, body_hashes
from pymx.mailauth.dkim.canonical import relaxed_field
from pymx.mailauth.dkim.record import KeyRecord, RecordError, published_keys
from pymx.mailauth.dkim.signature import Signature, SignatureError, parse_signature, without_signature
from pymx.mailauth.questions import Questions, unknown
from pymx.resolver.answer import TemporaryDnsError

__all__ = ["BodyHashes", "DkimResult", "SignedHead", "verify", "verify_signature"]

# Fields of which a reader shows one (RFC 5322 s. 3.6): a second, unsigned one would be somebody else's words.
_SINGLE = ("from", "subject", "date", "sender", "reply-to", "content-type")


@dataclass(frozen=True, slots=True)
class DkimResult:
    """`signature_b` is for header.b (RFC 6008). `testing`: the key has t=y."""

    result: str
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    identity: str = ""
    reason: str = ""
    signature_b: str = ""
    testing: bool = False


class SignedHead:
    """A header block as signatures see it: fields by name, from the bottom up, each canonical form made once."""

    __slots__ = ("_head", "_raw", "_relaxed", "is_report")

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.is_report = is_tls_report(head)
        self._raw: dict[str, list[bytes]] = {}
        self._relaxed: dict[str, list[bytes]] = {}

    def _by_name(self, name: str) -> list[bytes]:
        if not self._raw:  # not before a signature has come so far that it is needed
            for field in iter_fields(self._head):
                self._raw.setdefault(field.name, []).append(field.raw)
        return self._raw.get(name, [])

    def _fields(self, name: str, form: str) -> list[bytes]:
        raws = self._by_name(name)
        if form == "simple":
            return raws
        fields = self._relaxed.get(name)
        if fields is None:
            fields = self._relaxed[name] = [relaxed_field(raw.removesuffix(b"\r\n")) + b"\r\n" for raw in raws]
        return fields

    def digest(self, signature: Signature) -> bytes:
        """The hash that was signed (s. 3.7): the fields of h= from the last to the first (s. 5.4.2), then its own."""
        digest = hashlib.sha256()
        used: Counter[str] = Counter()
        for name in signature.names:
            used[name] += 1
            fields = self._fields(name, signature.header_form)
            if used[name] <= len(fields):  # a name without a field is signed as being absent
                digest.update(fields[-used[name]])
        own = without_signature(signature.raw)
        digest.update(relaxed_field(own) if signature.header_form == "relaxed" else own)
        return digest.digest()

    def unsigned_copy(self, signature: Signature) -> str:
        """The name of a signed field that has another copy, unsigned, though it should occur once; or ""."""
        for name in _SINGLE:
            if 0 < signature.names.count(name) < len(self._by_name(name)):
                return name
        return ""


async def verify(
    resolver: Questions,
    head: bytes,
    body: Iterable[bytes] | BodyHashes,
    *,
    now: float,
    limit: int = 5,
    allow_length: bool = False,
) -> list[DkimResult]:
    """The results of the DKIM-Signature fields in `head`, in their order. `body` begins with the empty line."""
    fields = [field for _, field in islice(find(head, "dkim-signature"), limit + 1)]
    if not fields:
        return [DkimResult("none", reason="no signature")]
    signed = SignedHead(head)
    bodies = body_hashes(head, body)
    results: list[DkimResult | None] = []
    checks: list[Coroutine[None, None, DkimResult]] = []
    for field in fields[:limit]:
        try:
            signature = parse_signature(field)
        except SignatureError as e:
            results.append(_unreadable(e))
        else:
            results.append(None)
            check = verify_signature(resolver, signed, bodies, signature, now=now, allow_length=allow_length)
            checks.append(check)
    # one, as it is mostly, needs no task
    checked = iter([await checks[0]] if len(checks) == 1 else await asyncio.gather(*checks))
    found = [result or next(checked) for result in results]
    if len(fields) > limit:
        found.append(DkimResult("policy", reason=f"only the first {limit} signatures are checked"))
    return found


async def verify_signature(
    resolver: Questions,
    signed: SignedHead,
    bodies: BodyHashes,
    signature: Signature,
    *,
    now: float,
    allow_length: bool = False,
) -> DkimResult:
    """Check one signature (s. 6.1)."""
    try:
        if signature.expires_at is not None and signature.expires_at < now:
            raise RecordError("signature expired")
        subdomain = signature.identity_domain != signature.domain
        records = await published_keys(
            resolver, signature.record_name, signature.kind, subdomain=subdomain, is_report=signed.is_report
        )
    except RecordError as e:
        return _result(signature, e.result, e.reason)
    except TemporaryDnsError as e:
        return _result(signature, "temperror", unknown(e))
    verdict, reason = _check(signed, bodies, signature, records, allow_length)
    testing = any(record.testing for record in records)
    if verdict == "fail" and testing:
        # s. 3.6.1: not to be treated "differently from unsigned email".
        # Deviation: a good signature passes all the same, as it does everywhere: many domains have left t=y in their
        # records for years and rely on DMARC.
        verdict, reason = "neutral", f"{reason}; the domain is testing (t=y)"
    return _result(signature, verdict, reason, testing)


def _check(
    signed: SignedHead, bodies: BodyHashes, signature: Signature, records: list[KeyRecord], allow_length: bool
) -> tuple[str, str]:
    """The result and its reason, the keys being known."""
    body_hash = bodies.digest(signature.body_form, signature.length)
    if signature.length is not None and signature.length > bodies.octets(signature.body_form):
        return "permerror", "l= is longer than the body"
    if body_hash is None or body_hash != signature.body_hash:
        return "fail", "body hash differs"
    digest = signed.digest(signature)
    if not any(record.verify(signature.signature, digest) for record in records):
        return "fail", "signature differs"
    copy = signed.unsigned_copy(signature)
    if copy:
        return "policy", f"another {copy} field is not signed"
    if signature.length is not None and not allow_length:
        return "policy", "l= leaves the end of the body unsigned"
    return "pass", ""


def _result(signature: Signature, result: str, reason: str, testing: bool = False) -> DkimResult:
    return DkimResult(
        result=result,
        domain=signature.domain,
        selector=signature.selector,
        algorithm=signature.algorithm,
        identity=signature.identity,
        reason=reason,
        signature_b=signature.signature_b,
        testing=testing,
    )


def _unreadable(error: SignatureError) -> DkimResult:
    """A permanent failure, with what can be read of the field."""
    tags = error.tags
    return DkimResult(
        result="permerror",
        domain=tags.get("d", "")[:255].lower(),
        selector=tags.get("s", "")[:255].lower(),
        algorithm=tags.get("a", "")[:32].lower(),
        reason=error.reason,
        signature_b="".join(tags.get("b", "")[:16].split())[:8],
    )
