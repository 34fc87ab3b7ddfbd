"""TLSA records, and chains of certificates held against them (RFC 6698, RFC 7671, RFC 7672)."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from pymx.mta.dane import DaneFailure, Tlsa, parse_tlsa, usable, verify

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.binary(min_size=1, max_size=80))
def test_a_record_that_is_written_is_read(usage: int, selector: int, matching: int, data: bytes) -> None:
    record = Tlsa(usage, selector, matching, data)
    assert parse_tlsa(str(record)) == record


@given(st.text(max_size=40) | st.text("0123456789 abcdefg", max_size=40))
def test_any_text_is_a_record_or_an_error(text: str) -> None:
    try:
        record = parse_tlsa(text)
    except ValueError:
        return
    assert max(record.usage, record.selector, record.matching) <= 255


D32, D64 = "00" * 32, "11" * 64


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([f"3 1 1 {D32}", f"2 0 1 {D32}"], [0, 1]),
        ([f"0 0 1 {D32}", f"1 1 1 {D32}"], []),  # RFC 7672 s. 3.1.3
        ([f"3 2 1 {D32}", f"4 1 1 {D32}", f"3 1 3 {D32}"], []),
        ([f"3 1 1 {D64}", f"3 1 2 {D32}", "3 1 1 00"], []),
        ([f"3 1 1 {D32}", f"3 1 2 {D64}"], [1]),  # RFC 7671 s. 9: the strongest digest alone
        ([f"3 1 1 {D32}", f"3 0 2 {D64}", f"2 1 2 {D64}"], [0, 1, 2]),
        (["3 1 0 30", f"3 1 2 {D64}"], [0, 1]),
    ],
)
def test_which_records_count(records: list[str], expected: list[int]) -> None:
    parsed = [parse_tlsa(text) for text in records]
    assert usable(parsed) == tuple(parsed[n] for n in expected)


class Made:
    """A certificate and its key."""

    def __init__(self, name: str, issuer: Made | None = None, *, ca: bool = True, length: int | None = None,
                 days: tuple[int, int] = (-10, 10), alternative: tuple[str, ...] = (), usage: bool = True,
                 forged: bool = False) -> None:  # fmt: skip
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        builder = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(signer.name)
            .public_key(self.key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(NOW + dt.timedelta(days=days[0])).not_valid_after(NOW + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=length if ca else None), critical=True)
        )  # fmt: skip
        if ca:
            builder = builder.add_extension(
                x509.KeyUsage(True, False, False, False, False, usage, usage, False, False), critical=True
            )
        if alternative:
            names = [x509.DNSName(n) for n in alternative]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        key = ec.generate_private_key(ec.SECP256R1()) if forged else signer.key
        self.certificate = builder.sign(key, hashes.SHA256())
        self.der = self.certificate.public_bytes(Encoding.DER)

    def record(self, usage: int, selector: int = 0) -> Tlsa:
        data = self.der
        if selector:
            data = self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Tlsa(usage, selector, 1, hashlib.sha256(data).digest())


ROOT = Made("root")
MIDDLE = Made("middle", ROOT)
LEAF = Made("mx.far.test", MIDDLE, ca=False)
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]


def outcome(chain: list[bytes], *records: Tlsa, names: tuple[str, ...] = ("mx.far.test",)) -> str:
    try:
        return str(verify(chain, records, names, NOW).usage)
    except DaneFailure as e:
        return e.result


@pytest.mark.parametrize("anchor", [ROOT, MIDDLE])
@pytest.mark.parametrize("selector", [0, 1])
def test_a_chain_that_leads_to_the_anchor_is_good(anchor: Made, selector: int) -> None:
    """RFC 7671 s. 5.2: any certificate above the server's own, in any order behind it."""
    assert outcome(CHAIN, anchor.record(2, selector)) == "2"
    assert outcome([LEAF.der, ROOT.der, Made("other").der, MIDDLE.der], anchor.record(2, selector)) == "2"


def test_the_anchor_must_be_in_the_chain_and_above_the_server() -> None:
    """RFC 7672 s. 3.1.2; the server's own certificate is what usage 3 is for."""
    assert outcome(CHAIN[:2], ROOT.record(2)) == "certificate-not-trusted"
    assert outcome(CHAIN, LEAF.record(2)) == "certificate-not-trusted"
    assert outcome(CHAIN, LEAF.record(3)) == "3"
    assert outcome(CHAIN, ROOT.record(3)) == "certificate-not-trusted"
    assert outcome([ROOT.der], ROOT.record(2), names=("root",)) == "certificate-not-trusted"
    assert outcome([], LEAF.record(3)) == "certificate-not-trusted"


@pytest.mark.parametrize(
    ("middle", "result"),
    [
        (Made("middle", ROOT, forged=True), "certificate-not-trusted"),
        (Made("middle", ROOT, ca=False), "certificate-not-trusted"),
        (Made("middle", ROOT, usage=False), "certificate-not-trusted"),
        (Made("middle", ROOT, days=(-10, -1)), "certificate-expired"),
        (Made("middle", ROOT, days=(1, 10)), "certificate-expired"),
        (Made("middle", Made("root", length=0)), "certificate-not-trusted"),
    ],
)
def test_every_link_is_checked(middle: Made, result: str) -> None:
    """RFC 5280 s. 6.1: signature, CA, key usage, dates."""
    leaf = Made("mx.far.test", middle, ca=False)
    assert outcome([leaf.der, middle.der, ROOT.der], ROOT.record(2)) == result


def test_a_path_longer_than_an_issuer_allows_is_refused() -> None:
    """RFC 5280 s. 4.2.1.9."""
    root = Made("root", length=0)
    middle = Made("middle", root)
    leaf = Made("mx.far.test", middle, ca=False)
    assert outcome([leaf.der, middle.der, root.der], root.record(2)) == "certificate-not-trusted"
    direct = Made("mx.far.test", root, ca=False)
    assert outcome([direct.der, root.der], root.record(2)) == "2"


@pytest.mark.parametrize(
    ("alternative", "wanted", "result"),
    [
        (("mx.far.test",), "MX.far.test.", "2"),
        (("*.far.test",), "mx.far.test", "2"),
        (("*.far.test",), "a.mx.far.test", "certificate-host-mismatch"),
        (("*.far.test",), "far.test", "certificate-host-mismatch"),
        (("m*.far.test",), "mx.far.test", "certificate-host-mismatch"),
        (("*",), "far", "certificate-host-mismatch"),
        (("other.test",), "mx.far.test", "certificate-host-mismatch"),  # s. 3.2.3: then the common name counts not
        ((), "mx.far.test", "2"),
        ((), "other.test", "certificate-host-mismatch"),
    ],
)
def test_names_are_compared_as_smtp_does(alternative: tuple[str, ...], wanted: str, result: str) -> None:
    """RFC 7672 s. 3.2.3."""
    leaf = Made("mx.far.test", ROOT, ca=False, alternative=alternative)
    assert outcome([leaf.der, ROOT.der], ROOT.record(2), names=("", wanted)) == result


def test_dane_ee_needs_neither_names_nor_dates() -> None:
    """RFC 7672 s. 3.1.1."""
    leaf = Made("whatever", ROOT, ca=False, days=(-10, -1))
    assert outcome([leaf.der, ROOT.der], ROOT.record(2), leaf.record(3, 1)) == "3"


@given(st.lists(st.binary(max_size=100), max_size=3))
def test_any_octets_in_a_chain_are_a_failure(chain: list[bytes]) -> None:
    assert outcome([*chain, LEAF.der], ROOT.record(2), MIDDLE.record(3)) == "certificate-not-trusted"
