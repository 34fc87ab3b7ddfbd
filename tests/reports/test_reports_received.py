"""Reports of others: what is looked into, read by a process with limits, kept if it is about us, and told in words."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymx.mail.address import parse_address
from pymx.mail.report import is_report
from pymx.reports import aggregate, tlsrpt
from pymx.reports.aggregate import AggregateReport, DkimAuth, Published, Row, SpfAuth
from pymx.reports.error import ReportError
from pymx.reports.inbox import MAX_OCTETS, MAX_WAITING, MAX_WAITING_OCTETS, Collector, Inbox
from pymx.reports.reader import read_message
from pymx.reports.store import Store
from pymx.reports.summary import sources, tls_summaries
from pymx.reports.tlsrpt import Failure, Policy, TlsReport

ROW = Row(
    "192.0.2.1", "good.test", "none", dkim=True, spf=True, envelope_from="good.test",
    dkim_auth=(DkimAuth("good.test", "pass", "k"),), spf_auth=(SpfAuth("good.test", "pass"),), count=10,
)  # fmt: skip
DMARC = AggregateReport("google.com", "n@google.com", "1", 1_700_000_000, 1_700_086_399,
                        Published("good.test", "none", "none"), (ROW,))  # fmt: skip
TLS = TlsReport(
    "Google Inc.", "smtp-tls@google.com", "2026-01-01", 1_700_000_000, 1_700_086_399,
    (
        Policy("sts", "good.test", successes=7, failed=2, failures=(
            Failure("certificate-expired", receiving_mx="mx.good.test", count=2),)),
        Policy("no-policy-found", "other.test", successes=1),
    ),
)  # fmt: skip


def zipped(data: bytes, name: str = "r.xml") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def letter(
    attachment: bytes | None,
    media_type: str = "application/gzip",
    *,
    name: str = "r.xml.gz",
    subject: str = "Report Domain: good.test Submitter: google.com Report-ID: 1",
    results: str = "",
    text: bool = True,
) -> bytes:
    message = EmailMessage()
    if results:
        message["Authentication-Results"] = results
    message["From"], message["To"], message["Subject"] = "noreply@google.com", "dmarc@good.test", subject
    main, _, sub = media_type.partition("/")
    if text:
        message.set_content("This is a report.")
        if attachment is not None:
            message.add_attachment(attachment, maintype=main, subtype=sub, filename=name)
    elif attachment is not None:
        message.set_content(attachment, maintype=main, subtype=sub, disposition="attachment", filename=name)
    return message.as_bytes().replace(b"\n", b"\r\n")


XML = aggregate.write(DMARC)


@pytest.mark.parametrize(
    "message",
    [
        letter(gzip.compress(XML)),
        letter(gzip.compress(XML), "application/x-gzip"),
        letter(zipped(XML), "application/zip", name="google.com!good.test!1!2.zip", text=False),
        letter(zipped(XML), "application/x-zip-compressed", name="r.zip"),
        letter(gzip.compress(XML), "application/octet-stream", name="r"),
        letter(gzip.compress(XML), "image/png", name="REPORT.XML.GZ"),
        letter(zipped(XML), "application/gzip", name="lie.xml.gz"),
        letter(XML, "application/xml", name="r.xml"),
        letter(XML.replace(b"\n", b""), "application/xml", name="=?utf-8?q?r=2Exml?="),
    ],
    ids=lambda _: "message",
)
def test_reports_are_found_however_they_are_packed(message: bytes) -> None:
    """Media types and names are wrong too often to be relied on."""
    (entry,) = read_message(message, hostname="mx.good.test", now=5)
    received = entry.received
    assert (received.kind, received.domain, received.organization) == ("dmarc", "good.test", "google.com")
    assert (received.good, received.bad, received.received_s) == (10, 0, 5)


def test_tls_report_is_told_apart_by_domain() -> None:
    """RFC 8460 s. 4.4: policies of several domains may be in one."""
    message = letter(gzip.compress(tlsrpt.write(TLS)), "application/tlsrpt+gzip", name="r.json.gz")
    first, second = (entry.received for entry in read_message(message, hostname="mx.good.test", now=5))
    assert (first.kind, first.domain, first.good, first.bad) == ("tls", "good.test", 7, 2)
    assert (second.domain, second.good) == ("other.test", 1)


@pytest.mark.parametrize(
    ("results", "proof"),
    [
        (
            "mx.good.test; spf=pass smtp.mailfrom=google.com; dkim=pass header.d=google.com; "
            "dmarc=pass header.from=google.com",
            "dkim=pass dmarc=pass google.com",
        ),
        ("mx.good.test; dkim=none; dmarc=fail header.from=google.com", "dkim=none dmarc=fail google.com"),
        ("evil.test; dmarc=pass header.from=google.com", ""),
        ("mx.good.test; none", ""),
        ("mx.good.test", ""),
        (";;;", ""),
    ],
)
def test_what_we_found_out_about_the_sender_is_kept(results: str, proof: str) -> None:
    """Only our own Authentication-Results count."""
    (entry,) = read_message(letter(gzip.compress(XML), results=results), hostname="MX.good.test", now=5)
    assert entry.received.proof == proof


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (letter(None), "no attachment"),
        (letter(b"\x89PNG", "image/png", name="logo.png"), "no attachment"),
        (letter(gzip.compress(b"\0" * 30_000_000)), "more than 10240 KB"),
        (letter(gzip.compress(XML)[:50]), "too early"),
        (letter(b"", "application/gzip"), "no XML"),
        (b"", "no attachment"),
        (b"\r\n", "no attachment"),
        (letter(gzip.compress(XML.replace(b"UTF-8", b"utf-16"))), "no XML"),
    ],
    ids=lambda value: "message" if isinstance(value, bytes) else value,
)
def test_what_is_no_report_is_refused_with_the_reason(message: bytes, reason: str) -> None:
    """Never anything but our error."""
    with pytest.raises(ReportError, match=reason):
        read_message(message, hostname="mx.good.test", now=5)


@settings(max_examples=50)
@given(st.data())
def test_any_damage_to_a_message_is_a_report_or_a_report_error(data: st.DataObject) -> None:
    """A flipped, lost or added octet anywhere."""
    message = bytearray(letter(zipped(XML), "application/zip"))
    place = data.draw(st.integers(0, len(message) - 1))
    message[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    try:
        read_message(bytes(message), hostname="mx.good.test", now=5)
    except ReportError:
        pass


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"Subject: Report Domain: example.com Submitter: x Report-ID: <1>\r\n", True),
        (b"Subject: [Preview] Report Domain: example.com\r\n Submitter: y\r\n", True),
        (b"Subject: Report domain:example.com\r\n", True),
        (b'Content-Type: multipart/report; report-type="tlsrpt"; boundary=x\r\n', True),
        (b"content-type: multipart/report;\r\n\tboundary=x; report-type=TLSRPT\r\n", True),
        (b"Content-Type: application/tlsrpt+gzip\r\n", True),
        (b"TLS-Report-Domain: example.com\r\n", True),
        (b"Subject: Your report on domains\r\n", False),
        (b"Content-Type: multipart/report; report-type=delivery-status\r\n", False),
        (b"X-Subject: Report Domain: example.com\r\n", False),
        (b"", False),
    ],
)
def test_reports_are_known_by_their_header(head: bytes, expected: bool) -> None:
    """RFC 7489 s. 7.2.1.1, RFC 8460 s. 5.3, and what providers make of it."""
    assert is_report(head) is expected


# --- from the session to the database -----------------------------------------------------------------------------


@dataclass
class Letter:
    """As spool.Content looks to the inbox."""

    data: bytes

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def size_octets(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


class Bench:
    def __init__(self, directory: Path) -> None:
        self.incoming = directory / "incoming"
        self.store = Store(directory / "reports.sqlite", max_octets=50 << 20)
        self.inbox = Inbox(self.incoming, ["dmarc", "odd@good.test"])
        self.ours: set[str] | None = {"good.test"}
        self.collector = Collector(self.incoming, self.store, self._is_ours, hostname="mx.good.test")

    async def _is_ours(self, domain: str) -> bool | None:
        return None if self.ours is None else domain in self.ours

    async def take(self, *messages: bytes, to: str = "someone@good.test") -> None:
        for number, message in enumerate(messages):
            self.inbox.offer(f"q{number}", [parse_address(to)], Letter(message))
        await self.inbox.close()

    def files(self) -> list[str]:
        return sorted(os.listdir(self.incoming)) if self.incoming.exists() else []


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.store.aclose()


async def test_report_goes_from_session_to_database(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Both kinds; what is about others is left out, with the reason."""
    caplog.set_level("INFO")
    await bench.take(
        letter(gzip.compress(XML)),
        letter(gzip.compress(tlsrpt.write(TLS)), "application/tlsrpt+gzip", name="x.json.gz"),
    )
    assert len(bench.files()) == 2
    await bench.collector.collect()
    assert bench.files() == []
    assert sorted((r.kind, r.domain) for r in bench.store.received()) == [("dmarc", "good.test"), ("tls", "good.test")]
    reasons = [vars(r)["fields"]["reason"] for r in caplog.records if r.getMessage() == "report_unread"]
    assert reasons == ["it is about other.test, which is not ours"]


@pytest.mark.parametrize(
    ("to", "subject", "copied"),
    [
        ("dmarc@good.test", "Hello", True),
        ("DMARC@other.test", "Hello", True),
        ("odd@good.test", "Hello", True),
        ("odd@other.test", "Hello", False),
        ("someone@good.test", "Hello", False),
        ("someone@good.test", "Report Domain: good.test", True),
    ],
)
async def test_only_what_may_be_a_report_is_copied(bench: Bench, to: str, subject: str, copied: bool) -> None:
    """By the header, or by `[reports] addresses`."""
    await bench.take(letter(gzip.compress(XML), subject=subject), to=to)
    assert bool(bench.files()) is copied


async def test_copies_are_bounded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """In number at once, in number on disk, and in size; the rest is left out."""
    await bench.take(*[letter(gzip.compress(XML))] * 20)
    assert len(bench.files()) == 8
    for number in range(MAX_WAITING):
        (bench.incoming / f"{number}.eml").touch()
    await bench.take(letter(gzip.compress(XML)))
    assert len(bench.files()) == MAX_WAITING + 8
    await bench.take(letter(None) + b"x" * MAX_OCTETS)
    reasons = {vars(r)["fields"]["reason"] for r in caplog.records if r.getMessage() == "report_unread"}
    assert reasons == {"too many at once", f"{MAX_WAITING} wait to be read", "it is too large"}


async def test_report_waits_while_the_accounts_cannot_be_asked(bench: Bench) -> None:
    """Whether a domain is ours is not guessed."""
    bench.ours = None
    await bench.take(letter(gzip.compress(XML)))
    await bench.collector.collect()
    assert [name.endswith(".eml") for name in bench.files()] == [True]
    bench.ours = {"good.test"}
    await bench.collector.collect()
    assert bench.files() == []
    assert len(bench.store.received()) == 1


async def test_all_of_a_batch_waits_while_the_accounts_cannot_be_asked(bench: Bench) -> None:
    """Not just the first of it: what stays called .reading would be given up at the next start."""
    bench.ours = None
    await bench.take(*[letter(gzip.compress(aggregate.write(replace(DMARC, report_id=f"{n}")))) for n in range(3)])
    await bench.collector.collect()
    assert [name.endswith(".eml") for name in bench.files()] == [True] * 3
    bench.ours = {"good.test"}
    await bench.collector.collect()
    assert bench.files() == []
    assert len(bench.store.received()) == 3


async def test_octets_that_wait_are_bounded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The disk is for mail."""
    bench.incoming.mkdir()
    with (bench.incoming / "1.x.q1.eml").open("wb") as file:
        file.truncate(MAX_WAITING_OCTETS)
    await bench.take(letter(gzip.compress(XML)))
    assert bench.files() == ["1.x.q1.eml"]
    assert "256 MB wait" in str([vars(r)["fields"] for r in caplog.records if r.getMessage() == "report_unread"])


def swollen(count: int) -> bytes:
    """A small message whose attachments unpack to `count` times some megabytes of TLS reports."""
    big = replace(TLS, policies=(replace(TLS.policies[0], failures=TLS.policies[0].failures * 9_000),))
    packed = gzip.compress(tlsrpt.write(big))
    message = EmailMessage()
    message["Subject"] = "Report Domain: good.test"
    message.set_content("x")
    for number in range(count):
        message.add_attachment(packed, maintype="application", subtype="tlsrpt+gzip", filename=f"{number}.json.gz")
    return message.as_bytes().replace(b"\n", b"\r\n")


def test_what_the_reader_says_is_bounded(tmp_path: Path) -> None:
    """A message by its documents, and all of them together: the server takes the answer into its memory."""
    with pytest.raises(ReportError, match="in one message"):
        read_message(swollen(10), hostname="mx.good.test", now=0)
    files = [tmp_path / f"{n}.x.q{n}.eml" for n in range(12)]
    for path in files:
        path.write_bytes(swollen(2))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pymx.reports.reader", "mx.good.test", *map(str, files)],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert len(done.stdout) < 40 << 20
    assert 0 < done.stdout.count(b"\n") < 12
    assert sum(path.exists() for path in files) == 12 - done.stdout.count(b"\n")


async def test_file_that_stopped_the_server_is_not_read_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """One try for each."""
    await bench.take(letter(gzip.compress(XML)))
    (name,) = bench.files()
    (bench.incoming / name).rename(bench.incoming / f"{name}.reading")
    task = asyncio.create_task(bench.collector.run())
    async with asyncio.timeout(20):
        while bench.files():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "report_unread" in [r.getMessage() for r in caplog.records]
    assert bench.store.received() == []


def test_reader_is_stopped_by_its_limits(tmp_path: Path) -> None:
    """Memory that a message takes is the child's own: it ends, and says nothing of that file."""
    nasty = tmp_path / "1.x.q1.eml"
    with nasty.open("wb") as file:
        file.truncate(900 << 20)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pymx.reports.reader", "mx.good.test", str(nasty)], capture_output=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout == b""
    assert (tmp_path / "1.x.q1.eml.reading").exists()


async def test_reader_that_dies_costs_one_file(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Those before it are kept, those after it read the next time."""
    await bench.take(*[letter(gzip.compress(aggregate.write(replace(DMARC, report_id=f"{n}")))) for n in range(3)])
    for place, name in enumerate(bench.files()):
        (bench.incoming / name).rename(bench.incoming / f"{place}.x.q{place}.eml")
    with (bench.incoming / "1.x.q1.eml").open("wb") as file:
        file.truncate(900 << 20)
    await bench.collector.collect()
    assert bench.files() == ["2.x.q2.eml"]
    await bench.collector.collect()
    assert bench.files() == []
    assert len(bench.store.received()) == 2
    reasons = [vars(r)["fields"]["reason"] for r in caplog.records if r.getMessage() == "report_unread"]
    assert reasons == ["its reader was stopped: too much memory or time"]


# --- in words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (ROW, "Fine."),
        (replace(ROW, spf=False), "usual for forwarders"),
        (replace(ROW, dkim=False), "have this host sign with DKIM"),
        (
            replace(ROW, dkim=False, spf=False, dkim_auth=(DkimAuth("sendgrid.net", "pass"),)),
            "Sent through sendgrid.net, which is not your domain",
        ),
        (
            replace(ROW, dkim=False, spf=False, dkim_auth=(DkimAuth("good.test", "fail"),), spf_auth=()),
            "the signature broke",
        ),
        (
            replace(ROW, dkim=False, spf=False, dkim_auth=(), spf_auth=(SpfAuth("bad.test", "fail"),)),
            "it was delivered all the same",
        ),
        (
            replace(ROW, dkim=False, spf=False, dkim_auth=(), spf_auth=(), disposition="reject"),
            "your policy stopped it",
        ),
    ],
)
def test_advice_fits_what_happened(row: Row, advice: str) -> None:
    """One thing to do for each host."""
    (source,) = sources([replace(DMARC, rows=(row,))])
    assert advice in source.advice


def test_hosts_are_added_up_over_reports() -> None:
    """Those that fail most come first."""
    bad = replace(ROW, source_ip="2001:db8::1", dkim=False, spf=False, disposition="reject", count=2)
    first, second = sources([replace(DMARC, rows=(ROW, bad)), replace(DMARC, organization="yahoo.com", rows=(ROW,))])
    assert (first.ip, first.failed, first.dispositions) == ("2001:db8::1", 2, {"reject": 2})
    assert (second.ip, second.count, second.passed, second.reporters) == (
        "192.0.2.1",
        20,
        20,
        {"google.com", "yahoo.com"},
    )


def test_tls_is_added_up_by_policy() -> None:
    """Sessions of all reporters."""
    (sts,) = tls_summaries([replace(TLS, policies=TLS.policies[:1])] * 2)
    assert (sts.successes, sts.failed) == (14, 4)
    assert sts.failures == {("certificate-expired", "mx.good.test", ""): 4}
