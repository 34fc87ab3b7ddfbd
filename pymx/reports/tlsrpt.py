"""A TLS report (RFC 8460 s. 4): what it says, how it is written, and how those of others are read.

The reader takes what is there: a missing list is empty, a missing text "". Numbers that are none, or are not where they
have to be, spoil the report. Raises `ReportError` and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pymx.reports.error import ReportError

MAX_POLICIES = 100
MAX_FAILURES = 10_000
_MAX_TEXT = 1024
_MAX_STRINGS = 100
_MAX_COUNT = 10**12


@dataclass(frozen=True, slots=True)
class Failure:
    """Sessions that failed alike (s. 4.4); texts that are not known are ""."""

    result_type: str
    sending_ip: str = ""
    receiving_mx: str = ""
    receiving_ip: str = ""
    receiving_helo: str = ""
    reason: str = ""
    information: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy that was applied, and what came of it."""

    policy_type: str
    domain: str
    strings: tuple[str, ...] = ()
    mx_hosts: tuple[str, ...] = ()
    successes: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsReport:
    """A whole report; the period is [begin, end] in Unix seconds."""

    organization: str
    contact: str
    report_id: str
    begin: int
    end: int
    policies: tuple[Policy, ...]


def write(report: TlsReport) -> bytes:
    """The JSON document."""
    document = {
        "organization-name": report.organization,
        "date-range": {"start-datetime": _iso(report.begin), "end-datetime": _iso(report.end)},
        "contact-info": report.contact,
        "report-id": report.report_id,
        "policies": [_policy_out(policy) for policy in report.policies],
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _policy_out(policy: Policy) -> dict[str, object]:
    described: dict[str, object] = {"policy-type": policy.policy_type, "policy-domain": policy.domain}
    if policy.strings:
        described["policy-string"] = list(policy.strings)
    if policy.mx_hosts:
        described["mx-host"] = list(policy.mx_hosts)
    out: dict[str, object] = {
        "policy": described,
        "summary": {
            "total-successful-session-count": policy.successes,
            "total-failure-session-count": policy.failed,
        },
    }
    if policy.failures:
        out["failure-details"] = [_failure_out(failure) for failure in policy.failures]
    return out


def _failure_out(failure: Failure) -> dict[str, object]:
    texts = {
        "sending-mta-ip": failure.sending_ip,
        "receiving-mx-hostname": failure.receiving_mx,
        "receiving-mx-helo": failure.receiving_helo,
        "receiving-ip": failure.receiving_ip,
        "additional-information": failure.information,
        "failure-reason-code": failure.reason,
    }
    known = {name: text for name, text in texts.items() if text}
    return {"result-type": failure.result_type, **known, "failed-session-count": failure.count}


def _iso(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(document: bytes) -> TlsReport:
    """The report in a JSON document."""
    try:
        data = json.loads(document)
    except (ValueError, RecursionError) as e:
        raise ReportError(f"it is no JSON: {e}") from None
    report = _object(data, "the document")
    if "policies" not in report:
        raise ReportError("the document has no policies")
    period = _object(report.get("date-range", {}), "date-range")
    policies = _list(report["policies"], "policies", MAX_POLICIES)
    return TlsReport(
        organization=_text(report, "organization-name") or "unknown",
        contact=_text(report, "contact-info"),
        report_id=_text(report, "report-id"),
        begin=_time(period, "start-datetime"),
        end=_time(period, "end-datetime"),
        policies=tuple(_policy_in(_object(policy, "a policy")) for policy in policies),
    )


def _policy_in(entry: Mapping[str, object]) -> Policy:
    described = _object(entry.get("policy", {}), "policy")
    summary = _object(entry.get("summary", {}), "summary")
    details = _list(entry.get("failure-details") or [], "failure-details", MAX_FAILURES)
    domain = _text(described, "policy-domain").lower().rstrip(".")
    if not domain:
        raise ReportError("a policy does not say which domain it is about")
    return Policy(
        policy_type=_text(described, "policy-type"),
        domain=domain,
        strings=_texts(described, "policy-string"),
        mx_hosts=_texts(described, "mx-host"),
        successes=_count(summary, "total-successful-session-count"),
        failed=_count(summary, "total-failure-session-count"),
        failures=tuple(_failure_in(_object(detail, "failure-details")) for detail in details),
    )


def _failure_in(detail: Mapping[str, object]) -> Failure:
    return Failure(
        result_type=_text(detail, "result-type"),
        sending_ip=_text(detail, "sending-mta-ip"),
        receiving_mx=_text(detail, "receiving-mx-hostname"),
        receiving_ip=_text(detail, "receiving-ip"),
        receiving_helo=_text(detail, "receiving-mx-helo"),
        reason=_text(detail, "failure-reason-code"),
        information=_text(detail, "additional-information"),
        count=_count(detail, "failed-session-count"),
    )


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ReportError(f"{name} is no object")
    return value


def _list(value: object, name: str, most: int) -> list[object]:
    if not isinstance(value, list):
        raise ReportError(f"{name} is no list")
    if len(value) > most:
        raise ReportError(f"{name} has more than {most} entries")
    return value


def _text(data: Mapping[str, object], name: str) -> str:
    value = data.get(name)
    # lone surrogates are valid JSON, and nothing that can be stored
    return value[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def _texts(data: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = data.get(name)
    if isinstance(value, str):  # seen in the wild for mx-host
        value = [value]
    if not isinstance(value, list):
        return ()
    return tuple(_text({"": text}, "") for text in value[:_MAX_STRINGS] if isinstance(text, str))


def _count(data: Mapping[str, object], name: str) -> int:
    value = data.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise ReportError(f"{name} is no number")
    return value


def _time(data: Mapping[str, object], name: str) -> int:
    text = _text(data, name)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ReportError(f"{name} is no time: {text[:40]!r}") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    try:
        return max(0, int(when.timestamp()))
    except (OverflowError, ValueError):
        raise ReportError(f"{name} is no time: {text[:40]!r}") from None
