"""What is done at a mail server, from what is known of it: the whole table (RFC 7672, RFC 8461, RFC 8689)."""

from __future__ import annotations

import pytest

from pymx.mail.address import Address
from pymx.mail.envelope import Envelope
from pymx.mta.dane import Tlsa
from pymx.mta.sts import Policy
from pymx.mta.tls_policy import Demand, How, TlsaFound, Wish, plan, wish

GOOD, USELESS = Tlsa(3, 1, 1, b"\1" * 32), Tlsa(1, 1, 1, b"\2" * 32)
TLSA = {
    "none": TlsaFound(),
    "good": TlsaFound((GOOD,), "mx.far.test", ("mx.far.test", "far.test")),
    "unusable": TlsaFound((USELESS,), "mx.far.test", ("mx.far.test",)),
    "failed": TlsaFound(trouble="SERVFAIL"),
}
STS = {
    "": None,
    "none": Policy("none", (), 1, ()),
    "testing": Policy("testing", ("mx.far.test",), 1, ("mode: testing",)),
    "testing elsewhere": Policy("testing", ("mx.other.test",), 1, ()),
    "enforce": Policy("enforce", ("*.far.test",), 1, ("mode: enforce",)),
    "enforce elsewhere": Policy("enforce", ("mx.other.test",), 1, ()),
}
ANYHOW = "opportunistic plain"


def told(tlsa: str, sts: str, wanted: Wish = Wish.ORDINARY, *, signed: bool = False) -> tuple[str, str, str]:
    """The ladder, or the event that forbids to connect; the kind of policy; what is complained of."""
    found = plan(
        "mx.far.test", tlsa=TLSA[tlsa], sts=STS[sts], wish=wanted, ca_file="roots.pem", mx_authenticated=signed
    )
    ladder = " ".join(d.how.value for d in found.ladder) if found.refusal is None else found.refusal.event.name
    assert all(d.requiretls is (wanted is Wish.REQUIRED) for d in found.ladder)
    complaint = found.complaint.result if found.complaint else ""
    return ladder, found.applied.kind if found.applied else "", complaint


@pytest.mark.parametrize(
    ("tlsa", "sts", "expected"),
    [
        ("none", "", (ANYHOW, "no-policy-found", "")),
        ("none", "none", (ANYHOW, "no-policy-found", "")),
        ("none", "testing", (f"verified {ANYHOW}", "sts", "")),
        ("none", "testing elsewhere", (ANYHOW, "sts", "validation-failure")),
        ("none", "enforce", ("verified", "sts", "")),
        ("none", "enforce elsewhere", ("NOT_IN_POLICY", "sts", "")),
        ("good", "", ("dane", "tlsa", "")),
        ("good", "enforce", ("dane", "tlsa", "")),  # RFC 8461 s. 2: DANE wins
        ("good", "enforce elsewhere", ("dane", "tlsa", "")),
        ("unusable", "", ("encrypted", "tlsa", "tlsa-invalid")),
        ("unusable", "testing", ("verified encrypted", "sts", "")),
        ("unusable", "enforce", ("verified", "sts", "")),
        ("unusable", "enforce elsewhere", ("NOT_IN_POLICY", "sts", "")),
        ("failed", "", ("NO_TLSA", "tlsa", "")),
        ("failed", "enforce", ("NO_TLSA", "tlsa", "")),
    ],
)
def test_the_ladder(tlsa: str, sts: str, expected: tuple[str, str, str]) -> None:
    assert told(tlsa, sts) == expected


@pytest.mark.parametrize(
    ("tlsa", "sts", "signed", "ladder"),
    [
        ("good", "", True, "dane"),
        ("none", "enforce", False, "verified"),
        ("none", "testing", False, "verified"),
        ("none", "testing elsewhere", False, "NO_REQUIRETLS"),
        ("none", "", False, "NO_REQUIRETLS"),
        ("none", "", True, "verified"),
        ("unusable", "", True, "verified"),
        ("unusable", "", False, "NO_REQUIRETLS"),
        ("failed", "", True, "NO_TLSA"),
        ("none", "enforce elsewhere", True, "NOT_IN_POLICY"),
    ],
)
def test_requiretls_leaves_only_what_authenticates(tlsa: str, sts: str, signed: bool, ladder: str) -> None:
    """RFC 8689 s. 4.2.1."""
    assert told(tlsa, sts, Wish.REQUIRED, signed=signed)[0] == ladder


@pytest.mark.parametrize("tlsa", list(TLSA))
@pytest.mark.parametrize("sts", list(STS))
def test_tls_required_no_leaves_policies_aside(tlsa: str, sts: str) -> None:
    """RFC 8689 s. 5; nothing is reported, because no policy was applied."""
    assert told(tlsa, sts, Wish.OPTIONAL) == (ANYHOW, "", "")


def test_names_that_are_asked_for() -> None:
    """SNI is the TLSA base domain (RFC 7672 s. 8.1), or the mail server of the policy (RFC 8461 s. 4)."""
    dane = plan("alias.far.test", tlsa=TLSA["good"], sts=None, wish=Wish.ORDINARY)
    assert dane.ladder == (Demand(How.DANE, "mx.far.test", tlsa=(GOOD,), names=("mx.far.test", "far.test")),)
    sts = plan("mx.far.test", tlsa=TLSA["none"], sts=STS["enforce"], wish=Wish.ORDINARY, ca_file="roots.pem")
    assert sts.ladder == (Demand(How.VERIFIED, "mx.far.test", "roots.pem"),)


@pytest.mark.parametrize(
    ("head", "requiretls", "expected"),
    [
        (b"", False, Wish.ORDINARY),
        (b"Subject: TLS-Required: No\r\n", False, Wish.ORDINARY),
        (b"TLS-Required: No\r\n", False, Wish.OPTIONAL),
        (b"tls-required:\r\n no \r\n", False, Wish.OPTIONAL),
        (b"TLS-Required: Yes\r\n", False, Wish.ORDINARY),
        (b"TLS-Required: No\r\n", True, Wish.REQUIRED),
        (b"", True, Wish.REQUIRED),
    ],
)
def test_what_a_message_wants(head: bytes, requiretls: bool, expected: Wish) -> None:
    """RFC 8689 s. 4.1, 5: the parameter wins over the field."""
    envelope = Envelope(Address("a", "b.test"), (), requiretls=requiretls)
    assert wish(envelope, head) is expected
