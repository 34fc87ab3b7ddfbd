"""The published test suite of RFC 7208: 203 cases, all through our door."""

from __future__ import annotations

import pytest
from spf_suite import Case, SuiteUnavailable, cases

from pymx.mail.address import Address
from pymx.mailauth.spf.check import check

DEFAULT_EXPLANATION = "SPF fail - not authorized"


def sender(case: Case) -> Address | None:
    """MAIL FROM as the session would have it; a missing local part is "postmaster" (RFC 7208 s. 4.3)."""
    local_part, at, domain = case.mail_from.rpartition("@")
    return Address(local_part, domain.lower()) if at or domain else None


async def problem(case: Case) -> str:
    found = await check(case.names, ip=case.host, mail_from=sender(case), helo=case.helo)
    if found.result not in case.results:
        return f"{case.id}: {found.result} ({found.explanation}), expected {' or '.join(case.results)}"
    wanted = DEFAULT_EXPLANATION if case.explanation == "DEFAULT" else case.explanation
    if wanted is not None and found.explanation != wanted:
        return f"{case.id}: explains {found.explanation!r}, expected {wanted!r}"
    return ""


async def test_published_suite_of_rfc_7208_passes() -> None:
    """openspf.org, release 2014.04, results and explanations."""
    try:
        suite = cases()
    except SuiteUnavailable as e:
        pytest.skip(f"THE RFC 7208 SUITE DID NOT RUN: {e}")
    assert len(suite) == 203
    assert [text for case in suite if (text := await problem(case))] == []
