"""A DMARC aggregate report (RFC 7489 s. 7.2, appendix C): what it says, and how it is written.

The document has no namespace, as almost all that are sent: the schema's own (http://dmarc.org/dmarc-xml/0.1) confuses
programs that look for plain names, and none needs it. `pymx.reports.aggregate_reader` reads it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Disposition = Literal["none", "quarantine", "reject"]
OverrideKind = Literal["forwarded", "sampled_out", "trusted_forwarder", "mailing_list", "local_policy", "other"]
DISPOSITIONS = ("none", "quarantine", "reject")
OVERRIDES = ("forwarded", "sampled_out", "trusted_forwarder", "mailing_list", "local_policy", "other")
DKIM_RESULTS = ("none", "pass", "fail", "policy", "neutral", "temperror", "permerror")
SPF_RESULTS = ("none", "neutral", "pass", "fail", "softfail", "temperror", "permerror")

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# XML 1.0 s. 2.2: these are in no document, escaped or not
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Published:
    """The policy as the domain published it on the day; `domain` is where the record is."""

    domain: str
    p: Disposition
    sp: Disposition
    adkim: str = "r"
    aspf: str = "r"
    pct: int = 100
    fo: str = "0"


@dataclass(frozen=True, slots=True)
class Override:
    """Why something else was done than the policy says."""

    kind: OverrideKind
    comment: str = ""


@dataclass(frozen=True, slots=True)
class DkimAuth:
    """One signature, whether it helped or not."""

    domain: str
    result: str
    selector: str = ""


@dataclass(frozen=True, slots=True)
class SpfAuth:
    """`scope` is mfrom or helo."""

    domain: str
    result: str
    scope: str = "mfrom"


@dataclass(frozen=True, slots=True)
class Row:
    """Messages of one day that are alike: `dkim` and `spf` say whether each passed *and* is aligned."""

    source_ip: str
    header_from: str
    disposition: Disposition
    dkim: bool
    spf: bool
    envelope_from: str = ""
    envelope_to: str = ""
    overrides: tuple[Override, ...] = ()
    dkim_auth: tuple[DkimAuth, ...] = ()
    spf_auth: tuple[SpfAuth, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class AggregateReport:
    """A whole report; the period is [begin, end] in Unix seconds."""

    organization: str
    email: str
    report_id: str
    begin: int
    end: int
    published: Published
    rows: tuple[Row, ...]
    extra_contact: str = ""


def write(report: AggregateReport) -> bytes:
    """The document, UTF-8."""
    return "\n".join(_lines(report)).encode("utf-8") + b"\n"


def _lines(report: AggregateReport) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield "<feedback>"
    yield "<version>1.0</version>"
    yield "<report_metadata>"
    yield from _texts(("org_name", report.organization), ("email", report.email))
    if report.extra_contact:
        yield _text("extra_contact_info", report.extra_contact)
    yield _text("report_id", report.report_id)
    yield f"<date_range><begin>{report.begin}</begin><end>{report.end}</end></date_range>"
    yield "</report_metadata>"
    yield "<policy_published>"
    policy = report.published
    yield from _texts(
        ("domain", policy.domain), ("adkim", policy.adkim), ("aspf", policy.aspf), ("p", policy.p), ("sp", policy.sp),
        ("pct", str(policy.pct)), ("fo", policy.fo),
    )  # fmt: skip
    yield "</policy_published>"
    for row in report.rows:
        yield from _record(row)
    yield "</feedback>"


def _record(row: Row) -> Iterator[str]:
    yield "<record>"
    yield f"<row>{_text('source_ip', row.source_ip)}<count>{row.count}</count>"
    yield f"<policy_evaluated>{_text('disposition', row.disposition)}"
    yield f"<dkim>{_word(row.dkim)}</dkim><spf>{_word(row.spf)}</spf>"
    for override in row.overrides:
        comment = _text("comment", override.comment) if override.comment else ""
        yield f"<reason>{_text('type', override.kind)}{comment}</reason>"
    yield "</policy_evaluated></row>"
    to = _text("envelope_to", row.envelope_to) if row.envelope_to else ""
    yield f"<identifiers>{to}{_text('envelope_from', row.envelope_from)}{_text('header_from', row.header_from)}"
    yield "</identifiers><auth_results>"
    for dkim in row.dkim_auth:
        selector = _text("selector", dkim.selector) if dkim.selector else ""
        yield f"<dkim>{_text('domain', dkim.domain)}{selector}{_text('result', dkim.result)}</dkim>"
    for spf in row.spf_auth:
        yield f"<spf>{_text('domain', spf.domain)}{_text('scope', spf.scope)}{_text('result', spf.result)}</spf>"
    yield "</auth_results></record>"


def _word(passed: bool) -> str:
    return "pass" if passed else "fail"


def _text(name: str, value: str) -> str:
    return f"<{name}>{_NO_XML.sub('?', value).translate(_ESCAPES)}</{name}>"


def _texts(*pairs: tuple[str, str]) -> Iterable[str]:
    return [_text(name, value) for name, value in pairs]
