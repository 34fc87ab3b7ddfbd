"""Findings for people: the worst first, each with its remedy; what is right is only counted."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from pymx.admin.health.finding import Finding, Severity

_MARKS = {Severity.OK: "ok  ", Severity.INFO: "note", Severity.WARN: "warn", Severity.FAIL: "FAIL"}
_WIDTH = 118


def show(findings: Sequence[Finding], *, everything: bool, about: str) -> None:
    for finding in sorted(findings, key=lambda f: -f.severity):
        if everything or finding.severity > Severity.OK:
            for line in lines(finding):
                print(line)
    print(summary(findings, about))


def lines(finding: Finding) -> Iterator[str]:
    """One finding, wrapped; records in a remedy stay on one line, to be copied."""
    yield from _wrapped(f"{_MARKS[finding.severity]}  ", finding.sentence)
    if finding.why:
        yield from _wrapped("      why: ", finding.why)
    if finding.remedy:
        yield f"      do:  {_clean(finding.remedy)}"


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * max(len(head), 6)
    return textwrap.wrap(
        _clean(text), _WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _clean(text: str) -> str:
    # what others publish must not control a terminal
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def summary(findings: Sequence[Finding], about: str) -> str:
    counts = {severity: sum(f.severity is severity for f in findings) for severity in Severity}
    if not any(counts[s] for s in (Severity.WARN, Severity.FAIL)):
        return f"{about}: all {counts[Severity.OK]} checks are good" + (
            f", {counts[Severity.INFO]} with a note" if counts[Severity.INFO] else ""
        )
    parts = [
        f"{counts[s]} {word}"
        for s, word in ((Severity.FAIL, "failed"), (Severity.WARN, "to look at"), (Severity.INFO, "notes"))
        if counts[s]
    ]
    return f"{about}: {', '.join(parts)}, {counts[Severity.OK]} good"
