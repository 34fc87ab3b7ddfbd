"""TLS reports: the JSON of RFC 8460 s. 4.4, written and read back; hostile ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.reports.error import ReportError
from pymx.reports.tlsrpt import Failure, Policy, TlsReport, read, write

REPORT = TlsReport(
    organization="Company-X",
    contact="sts-reporting@company-x.example",
    report_id="5065427c-23d3-47ca-b6e0-946ea0e8c4be",
    begin=1_459_468_800,
    end=1_459_555_199,
    policies=(
        Policy(
            "sts",
            "company-y.example",
            ("version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"),
            ("*.mail.company-y.example",),
            5326,
            303,
            (
                Failure("certificate-expired", "2001:db8:abcd:12::1", "mx1.mail.company-y.example", "", count=100),
                Failure(
                    "starttls-not-supported", "2001:db8:abcd:13::1", "mx2.mail.company-y.example", "203.0.113.56",
                    reason="no STARTTLS", information="https://reports.company-x.example/", count=203,
                ),
            ),
        ),
    ),
)  # fmt: skip
# RFC 8460 appendix B, as it is printed there
RFC_EXAMPLE = """{
 "organization-name": "Company-X",
 "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
 "contact-info": "sts-reporting@company-x.example",
 "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
 "policies": [{
   "policy": {"policy-type": "sts", "policy-string": ["version: STSv1","mode: testing",
        "mx: *.mail.company-y.example","max_age: 86400"],
     "policy-domain": "company-y.example", "mx-host": ["*.mail.company-y.example"]},
   "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 303},
   "failure-details": [{
     "result-type": "certificate-expired", "sending-mta-ip": "2001:db8:abcd:0012::1",
     "receiving-mx-hostname": "mx1.mail.company-y.example", "failed-session-count": 100
   }, {
     "result-type": "starttls-not-supported", "sending-mta-ip": "2001:db8:abcd:0013::1",
     "receiving-mx-hostname": "mx2.mail.company-y.example", "receiving-ip": "203.0.113.56",
     "failed-session-count": 200, "additional-information":
     "https://reports.company-x.example/report_info ? id = 5065427 c - 23 d3# StarttlsNotSupported "
   }]
 }]
}"""


def test_report_is_read_back() -> None:
    """Every field."""
    assert read(write(REPORT)) == REPORT


def test_report_has_the_names_of_the_rfc() -> None:
    """RFC 8460 s. 4.4, figure 3."""
    document = json.loads(write(REPORT))
    assert set(document) == {"organization-name", "date-range", "contact-info", "report-id", "policies"}
    assert document["date-range"] == {
        "start-datetime": "2016-04-01T00:00:00Z",
        "end-datetime": "2016-04-01T23:59:59Z",
    }
    (policy,) = document["policies"]
    assert set(policy) == {"policy", "summary", "failure-details"}
    assert set(policy["policy"]) == {"policy-type", "policy-string", "policy-domain", "mx-host"}
    assert set(policy["summary"]) == {"total-successful-session-count", "total-failure-session-count"}
    assert set(policy["failure-details"][1]) == {
        "result-type", "sending-mta-ip", "receiving-mx-hostname", "receiving-ip", "failed-session-count",
        "additional-information", "failure-reason-code",
    }  # fmt: skip


def test_example_of_the_rfc_is_read() -> None:
    """RFC 8460 appendix B."""
    found = read(RFC_EXAMPLE.encode())
    assert (found.begin, found.end) == (REPORT.begin, REPORT.end)
    assert found.policies[0].strings == REPORT.policies[0].strings
    assert [(f.result_type, f.count) for f in found.policies[0].failures] == [
        ("certificate-expired", 100),
        ("starttls-not-supported", 200),
    ]


@given(
    st.lists(
        st.builds(
            Policy,
            st.sampled_from(["sts", "tlsa", "no-policy-found"]),
            st.from_regex(r"[a-z0-9]{1,10}\.test", fullmatch=True),
            st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=3).map(tuple),
            st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=3).map(tuple),
            st.integers(0, 10**9),
            st.integers(0, 10**9),
            st.lists(
                st.builds(Failure, st.text(st.characters(codec="utf-8"), max_size=10), count=st.integers(0, 10**9)),
                max_size=2,
            ).map(tuple),
        ),
        max_size=3,
    )
)
def test_any_report_is_read_back(policies: list[Policy]) -> None:
    """read ∘ write = id."""
    report = replace(REPORT, policies=tuple(policies))
    assert read(write(report)) == report


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no object"),
        (b"{}", "no policies"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 50_000, "no JSON"),
        (b'{"policies": 1e999}', "no list"),
        (b"\xff\xfe{}", "no JSON"),
        (b'{"policies": {}, "date-range": {}}', "no list"),
        (json.dumps({"policies": [{}] * 101}).encode(), "more than 100"),
        (write(REPORT).replace(b":203}", b":-1}"), "no number"),
        (write(REPORT).replace(b":203}", b":1e3}"), "no number"),
        (write(REPORT).replace(b":203}", b":" + b"9" * 5000 + b"}"), "no JSON"),
        (write(REPORT).replace(b":203}", b":true}"), "no number"),
        (write(REPORT).replace(b"2016-04-01T00:00:00Z", b"yesterday"), "no time"),
        (write(REPORT).replace(b"company-y.example", b""), "which domain"),
        (write(REPORT).replace(b'"failure-details":[', b'"failure-details":[[],'), "no object"),
    ],
    ids=lambda value: "document" if isinstance(value, bytes) else value,
)
def test_hostile_document_is_refused_with_the_reason(document: bytes, reason: str) -> None:
    """Nesting, sizes, types."""
    with pytest.raises(ReportError, match=reason):
        read(document)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=10), inner, max_size=3)),
    max_leaves=10,
)


@given(st.sampled_from(["policies", "date-range", "organization-name", "report-id", "contact-info"]), JSON)
def test_any_value_anywhere_is_a_report_or_a_report_error(name: str, value: object) -> None:
    """Never anything but our error."""
    document = {**json.loads(write(REPORT)), name: value}
    try:
        read(json.dumps(document).encode())
    except ReportError:
        pass


@given(st.binary(max_size=200))
def test_any_octets_are_a_report_or_a_report_error(data: bytes) -> None:
    """Never anything but our error."""
    try:
        read(data)
    except ReportError:
        pass
