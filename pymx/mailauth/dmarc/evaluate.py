"""DMARC evaluation (RFC 7489 s. 6.6, RFC 9989): is the message aligned with the domain in From, and what if not?

Results:

- `pass`: SPF or DKIM passed for a domain aligned with it;
- `fail`: a policy is published, and neither did;
- `none`: no policy is published (or several, or one without a policy in it);
- `temperror`: the policy can't be looked up now, or nothing passed but an aligned SPF or DKIM check could not be made;
- `permerror`: what From has is no domain.

Nothing is raised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pymx.mail.address import AddressError, domain_to_ascii, parse_domain
from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.dmarc.organization import Walk, belongs_to, record_at, registrable_domain, walk
from pymx.mailauth.dmarc.record import Policy, Record
from pymx.mailauth.questions import Questions, unknown
from pymx.mailauth.spf.check import SpfResult
from pymx.resolver.answer import DnsError, NoSuchDomain, TemporaryDnsError

_MILDER: dict[Policy, Policy] = {"reject": "quarantine", "quarantine": "none", "none": "none"}


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """`policy` is what the domain asks for mail that fails, `disposition` what is left of it after pct= or t=y ("none"
    unless the result is fail). `domain` is where the record is. `aligned` holds those of "spf" and "dkim" that passed
    and are aligned. `record` has the tags as published, for reports."""

    result: str
    policy: Policy = "none"
    disposition: Policy = "none"
    domain: str = ""
    header_from: str = ""
    aligned: tuple[str, ...] = ()
    reason: str = ""
    sampled_out: bool = False
    record: dict[str, str] = field(default_factory=dict)


def by_chance(percent: int) -> bool:
    """Whether a message is among the `percent` that the policy is for."""
    return random.randrange(100) < percent  # noqa: S311  # nothing secret about it


async def evaluate(
    resolver: Questions,
    *,
    header_from_domain: str,
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
    sampled: Callable[[int], bool] = by_chance,
) -> DmarcResult:
    """The result for the domain of the one address in From.

    `sampled` gets pct= and says whether the policy is for this message; it is asked only when that matters.
    """
    try:
        author = domain_to_ascii(parse_domain(header_from_domain))
    except AddressError as e:
        return DmarcResult("permerror", header_from=header_from_domain[:255], reason=f"From: {e}")
    if author.startswith("["):
        return DmarcResult("permerror", header_from=author, reason="From has an address literal for a domain")
    try:
        return await _evaluate(resolver, author, spf, dkim, sampled)
    except TemporaryDnsError as e:
        return DmarcResult("temperror", header_from=author, reason=unknown(e))


async def _evaluate(
    resolver: Questions,
    author: str,
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
    sampled: Callable[[int], bool],
) -> DmarcResult:
    own = await record_at(resolver, author)
    path: Walk | None = None
    if own is None:
        path = await walk(resolver, author, own)
        inherited = path.inherited()
        if inherited is None:
            return DmarcResult("none", header_from=author, reason="no policy is published")
        domain, record = inherited
        policy = await _inherited_policy(resolver, author, record)
    else:
        domain, record, policy = author, own, own.policy
    if not record.usable:
        return DmarcResult("none", domain=domain, header_from=author, reason="the record has no valid p=")
    passed, unknown = await _aligned(resolver, author, record, path, spf, dkim)
    facts = _Facts(domain, author, policy, record)
    if passed:
        return facts.result("pass", aligned=passed)
    if unknown:
        return facts.result("temperror", reason=f"aligned {' and '.join(unknown)} can't be checked now")
    return _failed(facts, sampled)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is the same for each result under a policy."""

    domain: str
    author: str
    policy: Policy
    record: Record

    def result(
        self,
        result: str,
        *,
        disposition: Policy = "none",
        aligned: tuple[str, ...] = (),
        reason: str = "",
        sampled_out: bool = False,
    ) -> DmarcResult:
        return DmarcResult(
            result=result,
            policy=self.policy,
            disposition=disposition,
            domain=self.domain,
            header_from=self.author,
            aligned=aligned,
            reason=reason,
            sampled_out=sampled_out,
            record=dict(self.record.tags),
        )


def _failed(facts: _Facts, sampled: Callable[[int], bool]) -> DmarcResult:
    """RFC 7489 s. 6.6.4: what is not sampled gets the next milder treatment; so does all with t=y (RFC 9989)."""
    record, disposition = facts.record, facts.policy
    milder = record.testing
    if not milder and disposition != "none" and record.percent < 100:
        milder = not sampled(record.percent)
    if milder:
        disposition = _MILDER[disposition]
    reason = f"neither SPF nor DKIM is aligned with {facts.author}"
    return facts.result(
        "fail", disposition=disposition, reason=reason, sampled_out=milder and disposition != facts.policy
    )


async def _inherited_policy(resolver: Questions, author: str, record: Record) -> Policy:
    """sp=, or np= for a domain that does not exist."""
    if record.nonexistent_policy != record.subdomain_policy:
        try:
            await resolver.resolve(author, "A")
        except NoSuchDomain:
            return record.nonexistent_policy
        except DnsError:
            pass  # it exists, or nobody knows
    return record.subdomain_policy


async def _aligned(
    resolver: Questions,
    author: str,
    record: Record,
    path: Walk | None,
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The methods that passed and are aligned, and those that may yet turn out so."""
    passed: dict[str, None] = {}
    unknown: dict[str, None] = {}
    checks = [("spf", spf.result, spf.domain, record.strict_spf)] if spf else []
    checks += [("dkim", d.result, d.domain, record.strict_dkim) for d in dkim]
    for method, result, domain, strict in checks:
        if result not in ("pass", "temperror") or (result == "pass" and method in passed):
            continue
        if domain != author:
            if strict:
                continue
            try:
                path = path or await walk(resolver, author, record)
                if not await belongs_to(resolver, domain, path):
                    continue
            except TemporaryDnsError:
                # a failure where the two names can have nothing in common must not hide what is known
                if registrable_domain(domain) == registrable_domain(author):
                    unknown[method] = None
                continue
        (passed if result == "pass" else unknown)[method] = None
    return tuple(passed), tuple(unknown)
