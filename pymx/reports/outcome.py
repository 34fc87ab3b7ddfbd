"""What the checks found out about a message, and what delivery found out about TLS, as keys to be counted.

A message counts for a report when its DMARC result is pass or fail and the domain asks for reports (`rua`). A result
that could not be had (temperror) says nothing about the domain, and is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from pymx.mail.address import Address, AddressError
from pymx.mail.tls_result import NO_POLICY, TlsResult
from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.dmarc.evaluate import DmarcResult
from pymx.mailauth.spf.check import SpfResult
from pymx.reports.aggregate import DKIM_RESULTS, Disposition, DkimAuth, Override, Published, Row, SpfAuth
from pymx.reports.store import DAY_S, DmarcKey, TlsKey
from pymx.reports.tlsrpt import Failure, Policy

_MAX_SIGNATURES = 10
_MAX_TEXT = 255
_POLICIES = ("none", "quarantine", "reject")


@dataclass(frozen=True, slots=True)
class Judged:
    """A message that was judged. `refused`: it got a 5xx reply; `voucher` is the trusted forwarder it was taken on the
    word of."""

    peer_ip: str
    mail_from: Address | None
    dmarc: DmarcResult
    spf: SpfResult | None
    dkim: Sequence[DkimResult]
    refused: bool
    voucher: str = ""


def dmarc_key(judged: Judged, now: float) -> DmarcKey | None:
    """What to count the message under; None when nobody wants to know."""
    found = judged.dmarc
    if found.result not in ("pass", "fail") or not found.record.get("rua") or not found.domain:
        return None
    disposition, overrides = _done(judged)
    mail_from = judged.mail_from
    row = Row(
        source_ip=judged.peer_ip,
        header_from=found.header_from[:_MAX_TEXT],
        envelope_from=_domain(mail_from)[:_MAX_TEXT] if mail_from else "",
        disposition=disposition,
        dkim="dkim" in found.aligned,
        spf="spf" in found.aligned,
        overrides=overrides,
        dkim_auth=tuple(_dkim(signature) for signature in judged.dkim[:_MAX_SIGNATURES] if signature.domain),
        spf_auth=(_spf(judged.spf, judged),),
    )
    return (
        int(now // DAY_S),
        found.domain,
        msgspec.json.encode(_published(found)).decode("utf-8"),
        msgspec.json.encode(replace(row, count=0)).decode("utf-8"),
    )


def _done(judged: Judged) -> tuple[Disposition, tuple[Override, ...]]:
    """What was done with the message because of DMARC, and why that is not what the policy says."""
    found = judged.dmarc
    if found.result == "pass":
        return "none", ()
    overrides: list[Override] = []
    disposition: Disposition = found.disposition
    if found.sampled_out:
        milder = "t=y" if found.record.get("t", "").lower() == "y" else f"pct={found.record.get('pct', '')}"
        overrides.append(Override("sampled_out", milder[:_MAX_TEXT]))
    if judged.voucher and disposition != "none":
        disposition = "none"
        overrides.append(Override("local_policy", f"arc=pass, sealed by {judged.voucher}"[:_MAX_TEXT]))
    elif disposition == "reject" and not judged.refused:
        disposition = "quarantine"
        overrides.append(Override("local_policy", "mail to postmaster and abuse is not refused"))
    return disposition, tuple(overrides)


def _published(found: DmarcResult) -> Published:
    tags = {name: value.lower() for name, value in found.record.items()}
    p = _policy(tags.get("p", ""), "none")
    percent = tags.get("pct", "")
    return Published(
        domain=found.domain,
        p=p,
        sp=_policy(tags.get("sp", ""), p),
        adkim="s" if tags.get("adkim") == "s" else "r",
        aspf="s" if tags.get("aspf") == "s" else "r",
        pct=int(percent) if percent.isascii() and percent.isdigit() and len(percent) <= 3 else 100,
        fo=tags.get("fo", "0")[:20],
    )


def _policy(word: str, default: Disposition) -> Disposition:
    for policy in _POLICIES:
        if word == policy:
            return policy  # type: ignore[return-value]  # mypy does not see that it is one of the literals
    return default


def _dkim(signature: DkimResult) -> DkimAuth:
    result = signature.result if signature.result in DKIM_RESULTS else "neutral"
    return DkimAuth(signature.domain[:_MAX_TEXT], result, signature.selector[:_MAX_TEXT])


def _spf(found: SpfResult | None, judged: Judged) -> SpfAuth:
    if found is None:
        # the schema wants one
        return SpfAuth(_domain(judged.mail_from) if judged.mail_from else "", "none")
    return SpfAuth(found.domain[:_MAX_TEXT], found.result, "mfrom" if found.identity == "mailfrom" else "helo")


def _domain(address: Address) -> str:
    try:
        return address.ascii_domain
    except AddressError:
        return address.domain


def tls_key(result: TlsResult, now: float) -> TlsKey:
    """What to count a connection under. Successes are one number per policy; failures are told apart."""
    policy = Policy(
        result.policy_type or NO_POLICY,
        result.domain,
        tuple(text[:1000] for text in result.policy_strings[:50]),
        result.mx_patterns[:50],
    )
    failure = ""
    if result.failure:
        detail = Failure(
            result.failure,
            sending_ip=result.source,
            receiving_mx=result.mx,
            receiving_ip=result.address,
            reason=result.reason[:_MAX_TEXT],
            count=0,
        )
        failure = msgspec.json.encode(detail).decode("utf-8")
    return int(now // DAY_S), result.domain, msgspec.json.encode(policy).decode("utf-8"), failure
