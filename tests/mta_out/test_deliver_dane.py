"""Delivery to domains with TLSA records: a signed zone, a validating resolver, servers with right and wrong keys."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from delivery_samples import DEFERRED, FAILED, MESSAGE, OK, Start, attempt, settings
from support.dnssec import ValidatingResolver
from support.ports import free_port
from support.tls import CertificateAuthority, TlsFiles

from pymx.config.model import Dns, Outbound
from pymx.mail.tls_result import TlsResult
from pymx.mta.deliver import Deliver
from pymx.mta.tls_lookup import TlsPolicies
from pymx.queue.item import Outcome
from pymx.resolver.resolver import Resolver


@dataclass(frozen=True)
class Site:
    """The name servers, what the mail servers' certificates are, and the port of all of them."""

    dns: ValidatingResolver
    port: int
    good: TlsFiles
    other: TlsFiles
    expired: TlsFiles
    next_hop: TlsFiles


def certificates(files: TlsFiles) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(files.certificate.read_bytes())


def tlsa(certificate: x509.Certificate, usage: int, selector: int, matching: int) -> str:
    """A TLSA record for it, by another way than the one under test."""
    data = certificate.public_bytes(Encoding.DER)
    if selector:
        data = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if matching:
        data = (hashlib.sha256 if matching == 1 else hashlib.sha512)(data).digest()
    return f"{usage} {selector} {matching} {data.hex()}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, certificate_authority: CertificateAuthority) -> Iterator[Site]:
    """far.test is signed, open.test is not. Each label is a domain whose mail server is mx.<label>, on loopback."""
    ca = certificate_authority
    good = ca.issue("dane-good", ("mx.far.test", "*.names.far.test"))
    other = ca.issue("dane-other", ("mx.far.test",))
    expired = ca.issue("dane-expired", ("mx.ta.far.test", "mx.ee-key.far.test"), days=-1)
    next_hop = ca.issue("dane-next-hop", ("ta.far.test",))
    port = free_port()
    leaf, root = certificates(good)
    wrong = certificates(other)[0]
    records = {
        "ee-key": [tlsa(leaf, 3, 1, 1), tlsa(certificates(expired)[0], 3, 1, 1)],
        "ee-certificate": [tlsa(leaf, 3, 0, 2)],
        "ee-whole": [tlsa(leaf, 3, 1, 0)],
        "ee-whole-certificate": [tlsa(leaf, 3, 0, 0)],
        "ee-one-of-two": [tlsa(wrong, 3, 1, 1), tlsa(leaf, 3, 1, 1)],
        "ee-wrong": [tlsa(wrong, 3, 1, 1)],
        "ta": [tlsa(root, 2, 0, 1)],
        "names": [tlsa(root, 2, 1, 2)],
        "ta-wrong": [tlsa(wrong, 2, 0, 1)],
        "unusable": [tlsa(leaf, 1, 1, 1), tlsa(root, 0, 0, 1), "3 1 9 00", "3 1 1 0011"],
        "bogus": [tlsa(leaf, 3, 1, 1)],
    }
    lines = []
    for label, texts in records.items():
        lines += [f"{label} MX 10 mx.{label}", f"mx.{label} A 127.0.0.1"]
        lines += [f"_{port}._tcp.mx.{label} TLSA {text}" for text in texts]
    lines += [
        "none MX 10 mx.none\nmx.none A 127.0.0.1",
        # the mail server's name is an alias: records at its end, and at its beginning
        "alias MX 10 mx.alias\nmx.alias CNAME mx.ee-key",
        "alias-own MX 10 mx.alias-own\nmx.alias-own CNAME mx.none",
        f"_{port}._tcp.mx.alias-own TLSA {records['ee-wrong'][0]}",
        # no MX: the domain is its own mail server
        f"implicit A 127.0.0.1\n_{port}._tcp.implicit TLSA {tlsa(wrong, 3, 1, 1)}",
        # a signed list of mail servers with an unsigned address, behind which no TLSA record counts
        "abroad MX 10 mx.open.test.",
        # the second mail server works
        "two MX 10 mx.ee-wrong\ntwo MX 20 mx.none",
    ]
    with ValidatingResolver(tmp_path_factory.mktemp("dane")) as dns:
        dns.zone("far.test", "\n".join(lines), bogus=[f"_{port}._tcp.mx.bogus"])
        dns.zone(
            "open.test",
            "@ MX 10 mx\nmx A 127.0.0.1\nhalf MX 10 mx.ee-wrong.far.test.\n"
            f"_{port}._tcp.mx TLSA {tlsa(wrong, 3, 1, 1)}",
            signed=False,
        )
        dns.start()
        yield Site(dns, port, good, other, expired, next_hop)


@dataclass
class Sender:
    """A Deliver and what it told the TLS report."""

    deliver: Deliver
    told: list[TlsResult]

    async def to(self, address: str, **envelope: object) -> Outcome:
        (outcome,) = await self.deliver.attempt(attempt(address, **envelope))
        return outcome

    @property
    def verdicts(self) -> list[tuple[str, str]]:
        return [(r.policy_type, r.failure) for r in self.told]


@pytest.fixture
async def sender(site: Site, tmp_path: Path, scripted_remote: Start) -> AsyncIterator[Sender]:
    """Sends by way of the validating resolver. Hangs up before the remotes stop, which wait for that."""
    async with AsyncExitStack() as stack:
        yield await sending(stack, site, settings(site.port, ca_file=str(site.good.ca)), tmp_path)


async def sending(stack: AsyncExitStack, site: Site, outbound: Outbound, directory: Path, **dns: str) -> Sender:
    resolver = Resolver(Dns(nameservers=[site.dns.spec], timeout_s=5, **dns))  # type: ignore[arg-type]
    tls = TlsPolicies(resolver, outbound, state=directory / "tls.sqlite")
    told: list[TlsResult] = []
    tls.report = told.append
    stack.push_async_callback(tls.close)
    deliver = Deliver(resolver, outbound, "mx.ours.test", tls=tls)
    stack.push_async_callback(deliver.close)
    return Sender(deliver, told)


@pytest.mark.parametrize(
    "label", ["ee-key", "ee-certificate", "ee-whole", "ee-whole-certificate", "ee-one-of-two", "names", "alias"]
)
async def test_a_server_whose_certificate_fits_a_tlsa_record_gets_the_message(
    label: str, site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 3.1: DANE-EE by key or certificate, digest or whole; DANE-TA by a name of the certificate."""
    remote = scripted_remote(port=site.port, tls=site.good.server_context())
    outcome = await sender.to(f"a@{label}.far.test")
    assert (outcome.result, outcome.tls.endswith(" dane")) == (OK, True)
    assert remote.messages[0].content == MESSAGE
    assert sender.verdicts == [("tlsa", "")]
    assert sender.told[0].policy_strings
    assert (sender.told[0].domain, sender.told[0].address) == (f"{label}.far.test", "127.0.0.1")


@pytest.mark.parametrize("label", ["ee-key", "ta"])
def test_the_chain_is_seen_on_uvloop_too(label: str, site: Site, tmp_path: Path, scripted_remote: Start) -> None:
    """Python 3.11 has no public way to it, and uvloop its own TLS."""
    scripted_remote(port=site.port, tls=site.next_hop.server_context() if label == "ta" else site.good.server_context())

    async def scenario() -> Outcome:
        async with AsyncExitStack() as stack:
            return await (await sending(stack, site, settings(site.port), tmp_path)).to(f"a@{label}.far.test")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()).tls.endswith(" dane")


async def test_with_dane_ee_neither_names_nor_dates_count(site: Site, sender: Sender, scripted_remote: Start) -> None:
    """RFC 7672 s. 3.1.1."""
    scripted_remote(port=site.port, tls=site.expired.server_context())
    assert (await sender.to("a@ee-key.far.test")).result is OK


@pytest.mark.parametrize(
    ("label", "files", "failure"),
    [
        ("ee-wrong", "good", "certificate-not-trusted"),
        ("ta-wrong", "good", "certificate-not-trusted"),
        ("ta", "good", "certificate-host-mismatch"),
        ("ta", "expired", "certificate-expired"),
        ("implicit", "good", "certificate-not-trusted"),
        ("alias-own", "good", "certificate-not-trusted"),
    ],
)
async def test_a_server_whose_certificate_fits_none_gets_nothing_not_even_in_the_clear(
    label: str, files: str, failure: str, site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.2: no fall back."""
    remote = scripted_remote(port=site.port, tls=getattr(site, files).server_context())
    outcome = await sender.to(f"a@{label}.far.test")
    assert (outcome.result, outcome.status) == (DEFERRED, "4.7.5")
    assert not any(c.startswith("MAIL") for c in remote.commands)
    assert sender.verdicts == [("tlsa", failure)]


async def test_dane_ta_takes_the_next_hop_domain_as_a_name(site: Site, sender: Sender, scripted_remote: Start) -> None:
    """RFC 7672 s. 3.2.2: reference identifiers."""
    scripted_remote(port=site.port, tls=site.next_hop.server_context())
    assert (await sender.to("a@ta.far.test")).tls.endswith(" dane")


async def test_a_server_with_tlsa_records_must_offer_starttls(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.2: a missing STARTTLS is a downgrade attack."""
    remote = scripted_remote(port=site.port)
    outcome = await sender.to("a@ee-key.far.test")
    assert (outcome.result, outcome.status) == (DEFERRED, "4.7.4")
    assert sender.verdicts == [("tlsa", "starttls-not-supported")]
    assert remote.messages == []


async def test_tlsa_records_that_cannot_be_looked_up_defer_the_message(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.1.2: a bogus answer is an attack or an accident, and the host is not connected to."""
    remote = scripted_remote(port=site.port, tls=site.good.server_context())
    outcome = await sender.to("a@bogus.far.test")
    assert (outcome.result, outcome.status) == (DEFERRED, "4.4.3")
    assert remote.connections == 0
    assert sender.verdicts == [("tlsa", "dnssec-invalid")]


async def test_unusable_records_mean_tls_with_any_certificate(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.2: usages 0 and 1, unknown matching types and digests of a wrong length count for nothing."""
    scripted_remote(port=site.port, tls=site.other.server_context())
    outcome = await sender.to("a@unusable.far.test")
    assert (outcome.result, outcome.tls.startswith("TLS"), "dane" in outcome.tls) == (OK, True, False)
    assert sender.verdicts == [("tlsa", "tlsa-invalid")]


async def test_unusable_records_still_forbid_plain_text(site: Site, sender: Sender, scripted_remote: Start) -> None:
    """RFC 7672 s. 2.2."""
    remote = scripted_remote(port=site.port)
    assert (await sender.to("a@unusable.far.test")).result is DEFERRED
    assert remote.messages == []
    assert sender.verdicts == [("tlsa", "tlsa-invalid")]


@pytest.mark.parametrize("domain", ["open.test", "half.open.test", "abroad.far.test", "none.far.test"])
async def test_where_dnssec_does_not_lead_the_whole_way_tls_is_opportunistic(
    domain: str, site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.1, 2.2: an unsigned list of mail servers, address or record counts for nothing."""
    scripted_remote(port=site.port, tls=site.good.server_context())
    outcome = await sender.to(f"a@{domain}")
    assert (outcome.result, outcome.tls.startswith("TLS"), "dane" in outcome.tls) == (OK, True, False)
    assert sender.verdicts == [("no-policy-found", "")]


async def test_the_next_mail_server_is_tried_when_one_fails_its_records(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 7672 s. 2.2: each host by itself."""
    scripted_remote(port=site.port, tls=site.good.server_context())
    outcome = await sender.to("a@two.far.test")
    assert (outcome.result, outcome.mx) == (OK, "mx.none.far.test")


async def test_dnssec_counts_only_from_a_resolver_that_is_believed(
    site: Site, tmp_path: Path, scripted_remote: Start
) -> None:
    """RFC 7672 s. 1.3.1: [dns] authenticated."""
    scripted_remote(port=site.port, tls=site.good.server_context())
    async with AsyncExitStack() as stack:
        sender = await sending(stack, site, settings(site.port), tmp_path, authenticated="no")
        outcome = await sender.to("a@ee-wrong.far.test")
    assert (outcome.result, "dane" in outcome.tls) == (OK, False)


async def test_dane_can_be_turned_off(site: Site, tmp_path: Path, scripted_remote: Start) -> None:
    """[outbound] dane."""
    scripted_remote(port=site.port, tls=site.good.server_context())
    async with AsyncExitStack() as stack:
        sender = await sending(stack, site, settings(site.port, dane=False), tmp_path)
        assert (await sender.to("a@ee-wrong.far.test")).result is OK


@pytest.mark.parametrize(
    ("address", "extensions", "result"),
    [
        ("a@ee-key.far.test", ("REQUIRETLS",), (OK, "2.0.0")),
        ("a@ee-key.far.test", (), (FAILED, "5.7.30")),
        ("a@ee-wrong.far.test", ("REQUIRETLS",), (FAILED, "5.7.30")),
        ("a@bogus.far.test", ("REQUIRETLS",), (DEFERRED, "4.4.3")),
        ("a@open.test", ("REQUIRETLS",), (FAILED, "5.7.30")),
        # a signed list of mail servers makes a certificate of a trusted root good enough
        ("a@none.far.test", ("REQUIRETLS",), (FAILED, "5.7.30")),
    ],
)
async def test_requiretls_goes_only_to_authenticated_servers_that_offer_it(
    address: str, extensions: tuple[str, ...], result: object, site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 8689 s. 4.2.1."""
    remote = scripted_remote(port=site.port, tls=site.good.server_context(), extensions=extensions)
    outcome = await sender.to(address, requiretls=True)
    assert (outcome.result, outcome.status) == result
    assert [m.mail_options[-1] for m in remote.messages] == (["REQUIRETLS"] if outcome.result is OK else [])
    if outcome.result is FAILED:
        assert "authenticated TLS" in outcome.reply


async def test_requiretls_over_a_signed_list_of_mail_servers_and_a_trusted_root(
    site: Site, sender: Sender, scripted_remote: Start, certificate_authority: CertificateAuthority,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """RFC 8689 s. 4.2.1: DNSSEC proves the host's name, the certificate that it is this host."""
    files = certificate_authority.issue("dane-root", ("mx.none.far.test",))
    remote = scripted_remote(port=site.port, tls=files.server_context(), extensions=("REQUIRETLS",))
    with caplog.at_level(logging.WARNING, "pymx.mta"):
        assert (await sender.to("a@none.far.test", requiretls=True)).result is OK
        assert (await sender.to("a@none.far.test")).result is OK
    assert "tls_downgraded" not in caplog.text  # the domain itself never asked for that much
    assert remote.messages[0].mail_options[-1:] == ("REQUIRETLS",)


async def test_requiretls_waits_for_a_host_that_may_do_later(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """A refused connection is no proof that nobody offers it."""
    remote = scripted_remote(
        port=site.port, tls=site.good.server_context(), replies={"CONNECT": "421 4.3.2 busy"},
        extensions=("REQUIRETLS",),
    )  # fmt: skip
    outcome = await sender.to("a@ee-key.far.test", requiretls=True)
    assert (outcome.result, remote.messages) == (DEFERRED, [])


async def test_tls_required_no_is_honoured_even_against_tlsa_records(
    site: Site, sender: Sender, scripted_remote: Start
) -> None:
    """RFC 8689 s. 5: the sender would rather have it arrive; REQUIRETLS wins over the field."""
    message = b"TLS-Required: No\r\n" + MESSAGE
    remote = scripted_remote(port=site.port)
    assert (await sender.to("a@ee-key.far.test", content=message)).result is OK
    assert remote.messages[0].content == message
    assert (await sender.to("a@ee-key.far.test", content=message, requiretls=True)).result is not OK
    assert (await sender.to("a@ee-key.far.test")).result is DEFERRED
