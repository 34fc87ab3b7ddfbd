"""From a message that fails DMARC to what the other domain's administrator sees: two whole servers and DNS between."""

from __future__ import annotations

import gzip
import re
import smtplib
import sqlite3
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.wait import wait_for

from pymx.reports import aggregate_reader

COUNTED = "SELECT sum(count) FROM dmarc_result WHERE domain = 'shop.test'"
LETTER = "From: boss@shop.test\r\nTo: alice@example.test\r\nSubject: pay\r\nMessage-ID: <1@x>\r\n\r\nPay!\r\n"


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    server = DnsServer()
    server.zone(
        "shop.test",
        """
        @        MX   10 mx
        @        TXT  "v=spf1 ip4:127.0.0.7 -all"
        mx       A    127.0.0.1
        _smtp._tls TXT "v=TLSRPTv1; rua=mailto:tls-reports@shop.test"
        _dmarc   TXT  "v=DMARC1; p=quarantine; rua=mailto:dmarc-reports@shop.test, mailto:x@elsewhere.test!10m"
        """,
    )
    server.add("mx.example.test", "A", "127.0.0.1")
    server.add("example.test", "TXT", '"v=spf1 ip4:127.0.0.1 -all"')
    server.add("other.test", "A", "127.0.0.1")
    server.add("_dmarc.other.test", "TXT", '"v=DMARC1; p=none; rua=mailto:r@other.test"')
    server.add("_dmarc.example.test", "TXT", '"v=DMARC1; p=reject"')
    yield server
    server.close()


@pytest.fixture(scope="module")
def shop(dns: DnsServer) -> Iterator[Appliance]:
    """The domain that is reported on."""
    server = Appliance(hostname="mx.shop.test", extra={"dns": f'nameservers = ["{dns.spec}"]\n', "checks": ""})
    with server.serving(("dmarc-reports", "tls-reports", "carol")):
        yield server


@pytest.fixture(scope="module")
def reporting(dns: DnsServer, shop: Appliance) -> Iterator[Appliance]:
    """The server that reports, with a session process and a runner."""
    server = Appliance(
        workers=2,
        extra={
            "dns": f'nameservers = ["{dns.spec}"]\n',
            "checks": "",
            "outbound": f"port = {shop.ports['smtp']}\nallow_private = true\nkeep_connection_s = 0\n",
            "reports": "dmarc = true\ntls = true\norganization = 'Example Inc'\n",
        },
    )
    server.populate(("alice",))
    record = server.ctl_json("dkim", "generate", "example.test", "--selector", "k1")
    dns.add(record["name"], "TXT", " ".join(f'"{text}"' for text in record["strings"]))
    server.start()
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.remove()


def bring(server: Appliance, letter: str, sender: str = "x@nowhere.test", to: str = "alice@example.test") -> int:
    with smtplib.SMTP("127.0.0.1", server.ports["smtp"], "host.test", source_address=("127.0.0.9", 0)) as client:
        client.ehlo()
        client.mail(sender)
        client.rcpt(to)
        return client.data(letter.encode())[0]


def database(server: Appliance) -> Path:
    return server.directory / "data" / "reports" / "reports.sqlite"


def rows(server: Appliance, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"file:{database(server)}?mode=ro", uri=True) as db:
        found = db.execute(query).fetchall()
    db.close()
    return found


def let_the_day_end(server: Appliance, kind: str) -> None:
    """What was counted today about shop.test was counted yesterday."""
    with sqlite3.connect(database(server)) as db:
        db.execute(f"UPDATE {kind}_result SET day = day - 1 WHERE domain = 'shop.test'")
    db.close()


def stored(server: Appliance, user: str) -> list[bytes]:
    home = server.directory / "vmail" / server.domain / user
    return [path.read_bytes() for path in (*home.glob("new/*"), *home.glob("cur/*"))]


def test_failing_mail_is_reported_to_its_domain_which_shows_it(
    reporting: Appliance, shop: Appliance, dns: DnsServer
) -> None:
    """RFC 7489 s. 7.2: counted, sent signed through the queue, received, read, shown with what to do."""
    for _ in range(3):
        assert bring(reporting, LETTER) == 250
    wait_for(
        lambda: database(reporting).exists() and rows(reporting, COUNTED) == [(3,)],
        timeout_s=30,
        what="three messages counted",
    )
    planned = reporting.ctl_json("reports", "send", "--dry-run")
    (today,) = [plan for plan in planned if (plan["kind"], plan["domain"]) == ("dmarc", "shop.test")]
    assert (today["domain"], today["to"]) == ("shop.test", ["mailto:dmarc-reports@shop.test"])
    assert today["remark"] == "the day is not over"
    assert "x@elsewhere.test" in today["not_to"][0]
    assert reporting.ctl_json("reports", "send") == {"ok": True, "sent": 0, "refused": 0, "waiting": 0, "expired": 0}
    let_the_day_end(reporting, "dmarc")
    done = reporting.ctl_json("reports", "send")
    assert (done["sent"], done["refused"], done["waiting"]) == (1, 1, 0), reporting.log()[-3000:]
    wait_for(lambda: stored(shop, "dmarc-reports"), timeout_s=30, what="the report in its mailbox")
    (delivered,) = stored(shop, "dmarc-reports")
    message = message_from_bytes(delivered, policy=policy.default)
    assert isinstance(message, EmailMessage)
    subject = r"Report Domain: shop\.test Submitter: mx\.example\.test Report-ID: <[0-9a-f]+>"
    assert re.fullmatch(subject, message["Subject"])
    assert "dmarc=pass" in message["Authentication-Results"]
    (attachment,) = message.iter_attachments()
    assert attachment.get_content_type() == "application/gzip"
    name = attachment.get_filename() or ""
    assert re.fullmatch(r"mx\.example\.test!shop\.test!\d+!\d+![0-9a-f]+\.xml\.gz", name)
    report = aggregate_reader.read(gzip.decompress(attachment.get_content()))
    (row,) = report.rows
    assert (row.source_ip, row.count, row.disposition, row.dkim, row.spf) == (
        "127.0.0.9",
        3,
        "quarantine",
        False,
        False,
    )
    assert (row.header_from, row.envelope_from) == ("shop.test", "nowhere.test")
    assert report.organization == "Example Inc"

    wait_for(lambda: shop.ctl_json("reports", "list", "--kind", "dmarc"), timeout_s=30, what="the report read")
    (listed,) = shop.ctl_json("reports", "list", "--kind", "dmarc")
    assert (listed["domain"], listed["organization"], listed["bad"]) == ("shop.test", "Example Inc", 3)
    assert listed["proof"].startswith("dkim=pass dmarc=pass")
    (domain,) = shop.ctl_json("reports", "show", "shop.test")["domains"]
    (source,) = domain["sources"]
    assert (source["source_ip"], source["failed"], source["dispositions"]) == ("127.0.0.9", 3, {"quarantine": 3})
    assert "your policy stopped it" in source["advice"]
    assert "127.0.0.9" in shop.ctl("reports", "show").stdout
    assert [r["state"] for r in reporting.ctl_json("reports", "list", "--sent", "--kind", "dmarc")] == [
        "sent",
        "refused",
    ]
    # the same day is not reported twice
    assert reporting.ctl_json("reports", "send")["sent"] == 0


def test_tls_of_a_delivery_is_reported_to_its_domain_which_shows_it(reporting: Appliance, shop: Appliance) -> None:
    """RFC 8460: counted per connection, sent signed, received, read, shown. Connections for reports don't count."""
    reporting.submit("alice", "carol@shop.test", "hello")
    shop.wait_for_subject("carol", "hello", timeout_s=30)
    wait_for(
        lambda: rows(reporting, "SELECT domain, failure, count FROM tls_result") == [("shop.test", "", 1)],
        timeout_s=30,
        what="one connection counted",
    )
    let_the_day_end(reporting, "tls")
    assert reporting.ctl_json("reports", "send")["sent"] == 1
    wait_for(lambda: stored(shop, "tls-reports"), timeout_s=30, what="the report in its mailbox")
    (delivered,) = stored(shop, "tls-reports")
    assert b"TLS-Required: No" in delivered
    assert b"dkim=pass" in delivered
    wait_for(lambda: shop.ctl_json("reports", "list", "--kind", "tls"), timeout_s=30, what="the report read")
    (domain,) = shop.ctl_json("reports", "show", "shop.test")["domains"]
    (policy,) = domain["tls"]
    assert (policy["policy_type"], policy["successes"], policy["failed"]) == ("no-policy-found", 1, 0)
    assert "TLS to shop.test (no-policy-found): 1 good, 0 failed" in shop.ctl("reports", "show").stdout
    (count,) = rows(reporting, "SELECT sum(count) FROM tls_result")
    assert count == (1,)


def test_a_report_is_not_reported_on(reporting: Appliance) -> None:
    """The mail that carries a report makes no rows in the next one."""
    letter = LETTER.replace("boss@shop.test", "boss@other.test")
    assert (
        bring(reporting, letter.replace("Subject: pay", "Subject: Report Domain: x Submitter: y Report-ID: <1>")) == 250
    )
    assert bring(reporting, letter) == 250
    wait_for(
        lambda: database(reporting).exists() and rows(reporting, COUNTED.replace("shop", "other")) != [(None,)],
        timeout_s=30,
        what="the other counted",
    )
    assert rows(reporting, COUNTED.replace("shop", "other")) == [(1,)]


HOSTILE = {
    "more than 10240 KB": gzip.compress(b"\0" * 50_000_000),
    "DOCTYPE": gzip.compress(b'<!DOCTYPE x [<!ENTITY a "b">]><feedback>&a;</feedback>'),
    "too early": gzip.compress(b"<feedback></feedback>")[:-6],
    "no XML": b"hello",
}


def test_hostile_reports_are_delivered_and_logged(shop: Appliance) -> None:
    """The message reaches its mailbox whatever is in it; the log says why it could not be read."""
    for reason, attachment in HOSTILE.items():
        message = EmailMessage()
        message["From"], message["To"] = "r@nowhere.test", "carol@shop.test"
        message["Subject"] = "Report Domain: shop.test Submitter: nowhere.test Report-ID: <1>"
        message["X-Case"] = reason
        message.set_content("A report")
        message.add_attachment(attachment, maintype="application", subtype="gzip", filename="report.xml.gz")
        letter = message.as_bytes().replace(b"\n", b"\r\n").decode()
        assert bring(shop, letter, to="carol@shop.test") == 250
        assert any(f"X-Case: {reason}".encode() in text for text in stored(shop, "carol"))
    for reason in HOSTILE:
        wait_for(
            lambda: any("event=report_unread" in line and reason in line for line in shop.log().splitlines()),  # noqa: B023  # asked at once
            timeout_s=30,
            what=reason,
        )
    wait_for(lambda: not list((shop.directory / "data/reports/incoming").iterdir()), what="nothing left behind")
