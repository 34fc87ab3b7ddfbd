"""Received, Return-Path, Delivered-To and Authentication-Results: exact, and closed to what a peer says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail import trace
from pymx.mail.address import Address
from pymx.mail.authres import Result, authentication_results, without_claims
from pymx.mail.envelope import Listener, Origin
from pymx.mail.header import iter_fields

NOW = 1_795_514_400.0


def received(origin: Origin, recipient: Address | None = None) -> str:
    raw = trace.received(hostname="mx.a.test", origin=origin, queue_id="Q1", now=NOW, recipient=recipient)
    return raw.decode().replace("\r\n\t", " ").removesuffix("\r\n")


DATE = "Tue, 24 Nov 2026 10:00:00 +0000"
CASES = [
    (
        Origin(Listener.SMTP, "s", "192.0.2.1", "c.test", tls="TLSv1.3 TLS_X"),
        f"from c.test ([192.0.2.1]) (using TLSv1.3 with cipher TLS_X) by mx.a.test with ESMTPS id Q1; {DATE}",
    ),
    (
        Origin(Listener.SMTP, "s", "2001:db8::1", "[IPv6:2001:db8::1]", esmtp=False, peer_name="c.test"),
        f"from [IPv6:2001:db8::1] (c.test [IPv6:2001:db8::1]) by mx.a.test with SMTP id Q1; {DATE}",
    ),
    (
        Origin(Listener.SUBMISSION, "s", "192.0.2.1", "laptop", tls="TLSv1.3 X", account="a@a.test"),
        f"from mx.a.test (using TLSv1.3 with cipher X) by mx.a.test with ESMTPSA id Q1; {DATE}",
    ),
    (Origin(Listener.LMTP, "s", "", "filter"), f"from filter by mx.a.test with LMTP id Q1; {DATE}"),
    (Origin(), f"from mx.a.test by mx.a.test id Q1; {DATE}"),
    (
        Origin(Listener.SMTP, "s", "192.0.2.1", "evil) by bank.test (\r\nX: y"),
        f"from evil??by?bank.test????X:?y ([192.0.2.1]) by mx.a.test with ESMTP id Q1; {DATE}",
    ),
]


@pytest.mark.parametrize(("origin", "expected"), CASES)
def test_received(origin: Origin, expected: str) -> None:
    """RFC 5321 s. 4.4, RFC 3848."""
    assert received(origin) == f"Received: {expected}"


def test_received_names_a_single_recipient() -> None:
    assert f"id Q1 for <bob@a.test>; {DATE}" in received(CASES[0][0], Address("bob", "a.test"))


@given(st.text(max_size=400), st.text(max_size=30))
def test_whatever_a_peer_calls_itself_makes_one_field(helo: str, name: str) -> None:
    raw = trace.received(
        hostname="mx", origin=Origin(Listener.SMTP, "s", "::1", helo, peer_name=name), queue_id="Q", now=NOW
    )
    assert [field.name for field in iter_fields(raw)] == ["received"]
    assert raw.count(b"(") == 1


def test_return_path_and_delivered_to() -> None:
    assert trace.return_path(None) == b"Return-Path: <>\r\n"
    assert trace.return_path(Address("a b", "x.test")) == b'Return-Path: <"a b"@x.test>\r\n'
    assert trace.delivered_to(Address("bob", "a.test")) == b"Delivered-To: bob@a.test\r\n"


def test_delivered_to_fields_are_found_again() -> None:
    block = b"Delivered-To: Bob@A.test\r\nX: y\r\ndelivered-to:\r\n eve@a.test\r\n"
    assert trace.was_delivered_to(block) == {"bob@a.test", "eve@a.test"}
    assert trace.count_received(b"Received: a\r\nreceived : b\r\nX-Received: c\r\n") == 2


def test_authentication_results() -> None:
    """RFC 8601 s. 2.2."""
    results = [
        Result("spf", "pass", (("smtp.mailfrom", "bob@a.test"),)),
        Result("dkim", "fail", (("header.d", "a.test"), ("header.b", "ab/c=")), reason='bad "sig"'),
    ]
    assert authentication_results("mx", results).replace(b"\r\n\t", b" ") == (
        b"Authentication-Results: mx; spf=pass smtp.mailfrom=bob@a.test; "
        b'dkim=fail reason="bad \\"sig\\"" header.d=a.test header.b="ab/c="\r\n'
    )
    assert authentication_results("mx", []) == b"Authentication-Results: mx; none\r\n"


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        (b"mx.a.test; spf=pass", True),
        (b" MX.A.TEST 1; spf=pass", True),
        (b'"mx.a.test"; spf=pass', True),
        (b"((nested) \\) comment) mx.a.test; spf=pass", True),
        (b"(comment) mx.a.test (x); spf=pass", True),
        (b"\r\n mx.a.test;\r\n spf=pass", True),
        (b"", True),
        (b"mx.b.test; spf=pass", False),
        (b"x; mx.a.test", False),
    ],
)
def test_results_from_outside_that_claim_to_be_ours_are_removed(value: bytes, ours: bool) -> None:
    """RFC 8601 s. 5."""
    field = b"Authentication-Results:" + value + b"\r\n"
    block = b"X: 1\r\n" + field + b"Y: 2\r\n"
    assert without_claims(block, "mx.a.test") == (b"X: 1\r\nY: 2\r\n" if ours else block)
