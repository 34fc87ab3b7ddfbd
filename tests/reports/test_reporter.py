"""A day's reports: who gets them, how they are packed and signed, and what happens when that does not work."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import dkim
import dns.resolver
import pytest
from support.dns_server import DnsServer, Failure

from pymx.config.model import Dns, Reports
from pymx.mail.address import Address, parse_address
from pymx.mail.report import is_report
from pymx.mail.tls_result import TlsResult
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.dmarc.evaluate import DmarcResult
from pymx.mailauth.spf.check import SpfResult
from pymx.reports import aggregate_reader, tlsrpt
from pymx.reports.error import NotTaken
from pymx.reports.outcome import Judged, dmarc_key, tls_key
from pymx.reports.reporter import Reporter
from pymx.reports.store import DAY_S, Store
from pymx.resolver.resolver import Resolver

DAY = 20_000
NOON = DAY * DAY_S + 43_200.0
NEXT_NOON = NOON + DAY_S


class Bench:
    """A reporter with its database, what it handed over, and the time of day."""

    def __init__(self, directory: Path, dns_server: DnsServer, settings: Reports) -> None:
        self.now = NEXT_NOON
        self.dns = dns_server
        self.store = Store(directory / "reports" / "reports.sqlite", max_octets=50 << 20)
        self.signer = Signer(directory / "dkim")
        self.directory = directory
        self.resolver = Resolver(Dns(nameservers=[dns_server.spec], timeout_s=2))
        self.sent: list[tuple[Address, Address, bytes]] = []
        self.trouble: NotTaken | None = None
        self.reporter = Reporter(
            self.store, self.resolver, self.signer, self._submit, settings,
            hostname="mx.example.test", clock=lambda: self.now,
        )  # fmt: skip

    async def _submit(self, sender: Address, to: Address, message: bytes) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.sent.append((sender, to, message))

    def make_key(self, domain: str = "example.test") -> None:
        key = keys.generate(self.directory / "dkim", domain, "k1")
        strings = " ".join(f'"{key.record[i : i + 250]}"' for i in range(0, len(key.record), 250))
        self.dns.add(key.record_name, "TXT", strings)

    def judged(self, domain: str = "good.test", *, ip: str = "192.0.2.1", count: int = 1, **changes: object) -> None:
        dmarc: dict[str, object] = {
            "result": "fail", "policy": "reject", "disposition": "reject", "domain": domain, "header_from": domain,
            "record": {"v": "DMARC1", "p": "reject", "rua": "mailto:r@good.test"},
        }  # fmt: skip
        found = Judged(
            peer_ip=ip,
            mail_from=parse_address("bounce@else.test"),
            dmarc=DmarcResult(**{**dmarc, **changes}),  # type: ignore[arg-type]  # a table of its fields
            spf=SpfResult("softfail", "mailfrom", "else.test"),
            dkim=(DkimResult("fail", domain, "s1"),),
            refused=True,
        )
        key = dmarc_key(found, NOON)
        assert key is not None
        self.store.add_dmarc({key: count})

    def connected(self, domain: str = "good.test", failure: str = "", count: int = 1) -> None:
        result = TlsResult(
            domain, "sts", ("version: STSv1", "mode: enforce"), ("*.good.test",), "mx.good.test", "192.0.2.7",
            "192.0.2.8", failure, "no STARTTLS" if failure else "",
        )  # fmt: skip
        self.store.add_tls({tls_key(result, NOON): count})

    def messages(self) -> list[EmailMessage]:
        found = [message_from_bytes(message, policy=policy.default) for _, _, message in self.sent]
        return [message for message in found if isinstance(message, EmailMessage)]


Start = Callable[..., Bench]


@pytest.fixture
async def bench(tmp_path: Path, dns_server: DnsServer) -> AsyncIterator[Start]:
    """`bench(dmarc=…, tls=…)`."""
    made: list[Bench] = []

    def start(**settings: object) -> Bench:
        options = {"dmarc": True, "tls": True, **settings}
        made.append(Bench(tmp_path, dns_server, Reports(**options)))  # type: ignore[arg-type]  # a table of its fields
        return made[-1]

    yield start
    for one in made:
        await one.store.aclose()


def verified(message: bytes, server: DnsServer) -> bool:
    """By a library that is not ours."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], server.port

    def txt(name: bytes, timeout: int = 5) -> bytes:
        (answer,) = resolver.resolve(name.decode(), "TXT")
        return b"".join(answer.strings)

    return bool(dkim.verify(message, dnsfunc=txt))


async def test_aggregate_report_is_sent_signed(bench: Start, dns_server: DnsServer) -> None:
    """RFC 7489 s. 7.2.1.1: subject, file name, media type; one report for each domain and day."""
    one = bench(organization="Example Inc")
    one.make_key()
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=reject; rua=mailto:r@good.test"')
    one.judged(count=4)
    one.judged(ip="192.0.2.2", result="pass", disposition="none", aligned=("dkim",))
    assert await one.reporter.send() == {"sent": 1, "refused": 0, "waiting": 0, "expired": 0}
    (message,) = one.messages()
    assert message["From"] == "Example Inc <postmaster@mx.example.test>"
    assert message["To"] == "r@good.test"
    assert message["Auto-Submitted"] == "auto-generated"
    assert verified(one.sent[0][2], dns_server)
    assert is_report(one.sent[0][2])
    (attachment,) = message.iter_attachments()
    assert attachment.get_content_type() == "application/gzip"
    report = aggregate_reader.read(gzip.decompress(attachment.get_content()))
    expected = f"mx.example.test!good.test!{DAY * DAY_S}!{(DAY + 1) * DAY_S - 1}!{report.report_id}.xml.gz"
    assert attachment.get_filename() == expected
    subject = f"Report Domain: good.test Submitter: mx.example.test Report-ID: <{report.report_id}>"
    assert message["Subject"] == subject
    assert (report.begin, report.end) == (DAY * DAY_S, (DAY + 1) * DAY_S - 1)
    assert [(row.source_ip, row.count, row.dkim) for row in report.rows] == [
        ("192.0.2.1", 4, False),
        ("192.0.2.2", 1, True),
    ]
    assert await one.reporter.send() == {"sent": 0, "refused": 0, "waiting": 0, "expired": 0}


async def test_tls_report_is_sent_signed(bench: Start, dns_server: DnsServer) -> None:
    """RFC 8460 s. 5.3: multipart/report, the two fields, TLS-Required: No, the media type."""
    one = bench()
    one.make_key()
    dns_server.add("_smtp._tls.good.test", "TXT", '"v=TLSRPTv1; rua=mailto:tls@good.test"')
    one.connected(count=10)
    one.connected(failure="starttls-not-supported", count=2)
    assert (await one.reporter.send())["sent"] == 1
    (message,) = one.messages()
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "tlsrpt"
    assert (message["TLS-Report-Domain"], message["TLS-Report-Submitter"]) == ("good.test", "mx.example.test")
    assert message["TLS-Required"] == "No"
    assert verified(one.sent[0][2], dns_server)
    text, attachment = message.iter_parts()
    assert "good.test" in text.get_content()
    assert attachment.get_content_type() == "application/tlsrpt+gzip"
    assert attachment.get_filename().endswith(".json.gz")
    document = gzip.decompress(attachment.get_content())
    assert json.loads(document)["policies"][0]["policy"]["policy-type"] == "sts"
    (found,) = tlsrpt.read(document).policies
    assert (found.successes, found.failed, found.failures[0].receiving_mx) == (10, 2, "mx.good.test")


async def test_tls_report_without_a_key_waits(bench: Start, dns_server: DnsServer) -> None:
    """RFC 8460 s. 3: reports sent by mail must be signed. The key may come within the day."""
    one = bench()
    dns_server.add("_smtp._tls.good.test", "TXT", '"v=TLSRPTv1; rua=mailto:tls@good.test"')
    one.connected()
    assert (await one.reporter.send())["waiting"] == 1
    assert not one.sent
    assert not one.reporter.is_signed()
    one.make_key()
    one.now += 7200
    assert (await one.reporter.send())["sent"] == 1


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ("", "dmarc"),
        ("v=DMARC1; p=none", "dmarc"),
        ("v=DMARC1; p=none; rua=https://good.test/", "dmarc"),
        ("v=DMARC1; p=none; rua=mailto:not-an-address", "dmarc"),
        ("", "tls"),
        ("v=TLSRPTv1; rua=ftp://good.test", "tls"),
        ("v=TLSRPTv2; rua=mailto:tls@good.test", "tls"),
    ],
)
async def test_nobody_who_does_not_ask_gets_a_report(
    bench: Start, dns_server: DnsServer, record: str, kind: str
) -> None:
    """And the day is done with."""
    one = bench()
    one.make_key()
    if record:
        dns_server.add(f"{'_dmarc' if kind == 'dmarc' else '_smtp._tls'}.good.test", "TXT", f'"{record}"')
    one.judged() if kind == "dmarc" else one.connected()
    assert (await one.reporter.send())["sent"] == 0
    assert not one.sent
    assert one.store.groups(kind, DAY + 1, one.now) == []


async def test_two_tls_records_are_none(bench: Start, dns_server: DnsServer) -> None:
    """RFC 8460 s. 3."""
    one = bench()
    one.make_key()
    dns_server.add(
        "_smtp._tls.good.test", "TXT", '"v=TLSRPTv1; rua=mailto:a@good.test"', '"v=TLSRPTv1; rua=mailto:b@good.test"'
    )
    one.connected()
    await one.reporter.send()
    assert not one.sent


async def test_another_organization_must_agree(bench: Start, dns_server: DnsServer) -> None:
    """RFC 7489 s. 7.1: `good.test._report._dmarc.<host>`, which may name another address, but only of that host."""
    one = bench()
    one.make_key()
    uris = [
        "mailto:a@yes.test",
        "mailto:b@no.test",
        "mailto:c@moved.test",
        "mailto:d@evil.test",
        "mailto:e@sub.good.test",
    ]
    dns_server.add("_dmarc.good.test", "TXT", f'"v=DMARC1; p=none; rua={",".join(uris)}"')
    dns_server.add("good.test._report._dmarc.yes.test", "TXT", '"v=DMARC1"')
    dns_server.add("good.test._report._dmarc.moved.test", "TXT", '"v=DMARC1; rua=mailto:new@moved.test"')
    dns_server.add("good.test._report._dmarc.evil.test", "TXT", '"v=DMARC1; rua=mailto:victim@elsewhere.test"')
    dns_server.add("no.test", "A", "192.0.2.1")
    one.judged()
    counts = await one.reporter.send()
    assert (counts["sent"], counts["refused"]) == (4, 1)
    assert {str(to) for _, to, _ in one.sent} == {"a@yes.test", "new@moved.test", "d@evil.test", "e@sub.good.test"}


async def test_size_limits_are_kept(bench: Start, dns_server: DnsServer) -> None:
    """RFC 7489 s. 6.2: !10m and the like; what has none gets the report."""
    one = bench()
    one.make_key()
    uris = ["a@good.test!1k", "b@good.test!10m", "c@good.test!100", "d@good.test!9x", "f%21@good.test"]
    rua = ", ".join(f"mailto:{uri}" for uri in uris)
    dns_server.add("_dmarc.good.test", "TXT", f'"v=DMARC1; p=none; rua={rua}"')
    one.judged()
    counts = await one.reporter.send()
    assert {str(to) for _, to, _ in one.sent} == {"a@good.test", "b@good.test", "f!@good.test"}
    assert counts["refused"] == 2
    reasons = {s.destination: s.reason for s in one.store.sendings(DAY)}
    assert "100 are taken" in reasons["mailto:c@good.test"]


async def test_dns_that_fails_is_asked_again_for_a_day(bench: Start, dns_server: DnsServer) -> None:
    """RFC 8460 s. 5.5; a failing name server is no "no"."""
    one = bench()
    one.make_key()
    dns_server.fail("_dmarc.good.test", Failure.SERVFAIL)
    one.judged()
    assert (await one.reporter.send())["waiting"] == 1
    assert (await one.reporter.send())["waiting"] == 0  # not yet again
    one.now += 3600
    assert (await one.reporter.send())["waiting"] == 1
    dns_server.fail("_dmarc.good.test", None)
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=none; rua=mailto:r@good.test"')
    one.resolver.forget()
    one.now += 3 * 3600
    assert (await one.reporter.send())["sent"] == 1


async def test_a_destination_that_fails_for_a_day_is_given_up(bench: Start, dns_server: DnsServer) -> None:
    """One that works gets its report once, whatever the other does."""
    one = bench()
    one.make_key()
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=none; rua=mailto:a@good.test"')
    one.judged()
    one.trouble = NotTaken("queue full", temporary=True)
    states = []
    for _ in range(20):
        states += [state for state, count in (await one.reporter.send()).items() if count]
        one.now += 4 * 3600
    assert states.count("waiting") >= 3
    assert states[-1] == "expired"
    assert one.store.groups("dmarc", DAY + 9, one.now) == []


async def test_no_more_than_the_limit_are_sent_in_a_day(bench: Start, dns_server: DnsServer) -> None:
    """`max_per_day`: the rest waits for the next day."""
    one = bench(max_per_day=2)
    one.make_key()
    for name in ("a.test", "b.test", "c.test"):
        dns_server.add(f"_dmarc.{name}", "TXT", f'"v=DMARC1; p=none; rua=mailto:r@{name}"')
        one.judged(name)
    counts = await one.reporter.send()
    assert (counts["sent"], counts["waiting"]) == (2, 1)
    one.now += 13 * 3600
    assert (await one.reporter.send())["sent"] == 1


async def test_a_policy_that_changed_makes_two_reports(bench: Start, dns_server: DnsServer) -> None:
    """RFC 7489 s. 7.2: a report has one policy; their ids differ, and are the same each time."""
    one = bench()
    one.make_key()
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=none; rua=mailto:r@good.test"')
    one.judged()
    one.judged(record={"v": "DMARC1", "p": "none", "rua": "mailto:r@good.test"}, policy="none", disposition="none")
    planned = await one.reporter.plan()
    assert [(p.domain, p.reports) for p in planned] == [("good.test", 2)]
    await one.reporter.send()
    subjects = {message["Subject"] for message in one.messages()}
    assert len(subjects) == 2


async def test_what_was_not_asked_for_in_the_settings_is_not_sent(bench: Start, dns_server: DnsServer) -> None:
    """`[reports] dmarc` and `tls` are off by default."""
    one = bench(dmarc=False, tls=False)
    one.make_key()
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=none; rua=mailto:r@good.test"')
    one.judged()
    one.connected()
    await one.reporter.send()
    assert not one.sent
    assert {p.kind for p in await one.reporter.plan()} == {"dmarc", "tls"}


async def test_https_leads_to_no_private_address(bench: Start, dns_server: DnsServer) -> None:
    """Where a stranger's record leads: our own network is not reached, and it is not tried again."""
    one = bench()
    one.make_key()
    dns_server.add("inside.good.test", "A", "10.0.0.1")
    dns_server.add(
        "_smtp._tls.good.test", "TXT", '"v=TLSRPTv1; rua=https://inside.good.test/report,mailto:tls@good.test"'
    )
    one.connected()
    counts = await one.reporter.send()
    assert (counts["sent"], counts["refused"]) == (1, 1)
    reasons = {s.destination: s.reason for s in one.store.sendings(DAY)}
    assert "no public address" in reasons["https://inside.good.test/report"]


async def test_what_a_sent_report_was_made_of_is_forgotten(bench: Start, dns_server: DnsServer) -> None:
    """Who sent from where is kept for the report only."""
    one = bench()
    one.make_key()
    dns_server.add("_dmarc.good.test", "TXT", '"v=DMARC1; p=none; rua=mailto:r@good.test"')
    one.judged()
    await one.reporter.send()
    assert one.store.dmarc_rows(DAY, "good.test", 1) == []


async def test_an_error_with_one_domain_does_not_cost_the_others_their_reports(
    bench: Start, dns_server: DnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that can't be read, for one."""
    one = bench()
    one.make_key()
    for name in ("bad.test", "good.test"):
        dns_server.add(f"_dmarc.{name}", "TXT", f'"v=DMARC1; p=none; rua=mailto:r@{name}"')
    one.store.add_dmarc({(DAY, "bad.test", "{}", "not JSON"): 1})
    one.judged()
    assert (await one.reporter.send())["sent"] == 1
    assert "reports_failed" in [r.getMessage() for r in caplog.records]
