"""One finding of a check: what was seen, how bad it is, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """`WARN` costs something or soon will; `FAIL` means that mail is lost, refused or late now."""

    OK = 0
    INFO = 1
    WARN = 2
    FAIL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names check and object (`dns.mx:example.com`) and stays the same from run to run.

    `why` says what it means for mail, where the sentence alone does not.
    """

    check: str
    severity: Severity
    sentence: str
    remedy: str = ""
    why: str = ""


def ok(check: str, sentence: str) -> Finding:
    return Finding(check, Severity.OK, sentence)


def info(check: str, sentence: str, remedy: str = "", why: str = "") -> Finding:
    return Finding(check, Severity.INFO, sentence, remedy, why)


def warn(check: str, sentence: str, remedy: str = "", why: str = "") -> Finding:
    return Finding(check, Severity.WARN, sentence, remedy, why)


def fail(check: str, sentence: str, remedy: str = "", why: str = "") -> Finding:
    return Finding(check, Severity.FAIL, sentence, remedy, why)


def worst(findings: Iterable[Finding]) -> Severity:
    return max((finding.severity for finding in findings), default=Severity.OK)


def as_facts(finding: Finding) -> dict[str, object]:
    """For --json."""
    return {
        "id": finding.check,
        "severity": finding.severity.name.lower(),
        "sentence": finding.sentence,
        "remedy": finding.remedy,
        "why": finding.why,
    }
