"""DMARC: is the message from the domain that its reader sees in From, and if not, what does that domain want?

RFC 7489; RFC 9989 where it differs.

reject → 550 5.7.1 with the domain whose policy it is; quarantine → Junk; none → nothing but a note in
Authentication-Results. Mail that came through a trusted forwarder (`[checks] trusted_sealers`) is taken on that
forwarder's word; if that can't be looked up now, a message that would be refused is deferred.

When DNS does not answer the message is taken: dmarc=temperror. No stranger can bring that about for somebody else's
domain: each domain has a time limit of its own, and what SPF and DKIM look up of other domains ends in time before.

A From field that can't be read without doubt, or that has several authors, could hide the domain that is shown: each
domain that appears in it is asked, and the strictest answer counts (s. 6.6.1). A message without From is a hint.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection

from pymx.checks import spf
from pymx.checks.arc import could_be_vouched, vouched_by
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import Level, Verdict
from pymx.mail.address import Address, AddressError, parse_domain
from pymx.mail.authors import AuthorError, authors
from pymx.mail.authres import Result
from pymx.mail.header import find
from pymx.mailauth.dmarc.evaluate import DmarcResult, evaluate
from pymx.mailauth.questions import Questions
from pymx.proto.smtp import reply as replies

_NO_AUTHOR = 2.0
_MAX_DOMAINS = 5
_MAX_FROM_OCTETS = 65536
_DOMAIN = re.compile(r"@\s*([^\s<>()\[\],;:\"@\\]+)")
_LEVELS = {"none": Level.ACCEPT, "quarantine": Level.JUNK, "reject": Level.REJECT}


class Dmarc:
    """The check of the domain in From."""

    name = "dmarc"
    stages = (Stage.DATA,)
    needs = ("spf", "dkim", "arc")

    def __init__(self, resolver: Questions, *, trusted_sealers: Collection[str], domain_timeout_s: float) -> None:
        self._resolver = resolver
        self._timeout_s = domain_timeout_s
        self._trusted = frozenset(sealer.lower() for sealer in trusted_sealers)

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is not None
        domains, trouble = from_domains(facts.content.head)
        if not domains:
            return Verdict(results=(Result("dmarc", "permerror", reason=trouble),), score=_NO_AUTHOR, reason=trouble)
        found = await asyncio.gather(*(self._evaluate(domain, facts) for domain in domains))
        # max() takes the first of equals: the order in From
        worst = max(found, key=lambda f: (_LEVELS[f.disposition], f.result != "pass"))
        return self._verdict(facts, worst, trouble)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(results=(Result("dmarc", "temperror", reason=reason),), reason=f"dmarc: {reason}")

    async def close(self) -> None:
        """Nothing is held."""

    async def _evaluate(self, domain: str, facts: Facts) -> DmarcResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await evaluate(self._resolver, header_from_domain=domain, spf=facts.spf, dkim=facts.dkim or ())
        except TimeoutError:
            return DmarcResult("temperror", header_from=domain, reason=f"no answer within {self._timeout_s:g} s")
        if found.result == "fail" and any(d.result == "temperror" and not d.domain for d in facts.dkim or ()):
            # the signatures were not looked at at all: one of them might be the domain's
            return DmarcResult("temperror", header_from=domain, domain=found.domain, reason="DKIM could not be checked")
        return found

    def _verdict(self, facts: Facts, found: DmarcResult, trouble: str) -> Verdict:
        level = _LEVELS[found.disposition]
        reason = ""
        if found.result == "fail":
            reason = f"{found.header_from} has not sent this (DMARC p={found.policy}"
            reason += f" of {found.domain})" if found.domain and found.domain != found.header_from else ")"
        elif found.result in ("temperror", "permerror"):
            reason = f"DMARC of {found.header_from}: {found.reason or found.result}"
        voucher = vouched_by(facts.arc, self._trusted)
        facts.dmarc, facts.voucher = found, voucher
        sealer = voucher if level else ""
        if sealer:
            level = Level.ACCEPT
            reason += f", but {sealer} vouches for it (ARC)"
        elif level is Level.REJECT and could_be_vouched(facts.arc, self._trusted):
            level = Level.DEFER
            reason += ", and its ARC chain can't be checked now"
        properties = [("header.from", found.header_from)]
        if found.result == "fail":
            # what is done after pct= (IANA, Email Authentication Property Types)
            properties.append(("policy.dmarc", "none" if sealer else found.disposition))
        said = f"trusted sealer {sealer}" if sealer else found.reason if found.result not in ("pass", "none") else ""
        return Verdict(
            level=level,
            reply=replies.REJECTED_BY_POLICY.with_text(
                f"Rejected by the DMARC policy of {found.domain or found.header_from}"
            )
            if level is Level.REJECT
            else None,
            reason="; ".join(filter(None, (reason, trouble))),
            score=_excuse(facts, found, voucher),
            results=(Result("dmarc", found.result, tuple(properties), said),),
        )


def _excuse(facts: Facts, found: DmarcResult, voucher: str) -> float:
    """SPF fails for forwarded mail: a signature of the domain in From, or a trusted forwarder, takes that hint back."""
    if facts.spf is not None and (voucher or (found.result == "pass" and "dkim" in found.aligned)):
        return -spf.WEIGHTS.get(facts.spf.result, 0.0)
    return 0.0


def from_domains(head: bytes) -> tuple[list[str], str]:
    """The domains of the authors in their order, and what is wrong with the From field ("" if nothing is)."""
    try:
        return _few([address.ascii_domain for address in authors(head)[0]])
    except (AuthorError, AddressError) as e:
        trouble = str(e)
    text = b" ".join(field.value for _, field in find(head, "from"))[:_MAX_FROM_OCTETS].decode("utf-8", "replace")
    domains: list[str] = []
    for match in _DOMAIN.finditer(text):
        try:
            domains.append(Address("", parse_domain(match[1].strip("."))).ascii_domain)
        except AddressError:
            continue
    return _few(domains, trouble)


def _few(domains: list[str], trouble: str = "") -> tuple[list[str], str]:
    different = list(dict.fromkeys(domains))
    if len(different) > _MAX_DOMAINS:
        return different[:_MAX_DOMAINS], trouble or f"From names {len(different)} domains"
    return different, trouble
