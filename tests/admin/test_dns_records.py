"""The records to publish: complete, and readable by a name server that we did not write."""

from __future__ import annotations

import io

import dns.rdata
import dns.rdataclass
import dns.zone
import pytest

from pymx.admin.zone import Domain, Key, Need, Port, Record, Server, all_records

LONG = "v=DKIM1; k=rsa; p=" + "A" * 392
SERVER = Server(
    "mx.example.com", ("192.0.2.1", "2001:db8::1"), ("192.0.2.1", "2001:db8::1"),
    (Port("submissions", 465), Port("imaps", 993), Port("imap", 0)), ("ab" * 32,), (), "letsencrypt.org", True,
)  # fmt: skip
DOMAIN = Domain("example.com", (Key("s1._domainkey.example.com", LONG, "in use"),), "20261124")


def of(kind: str, *domains: Domain, server: Server = SERVER) -> list[str]:
    return [r.zone_line for r in all_records(server, domains or (DOMAIN,)) if r.kind == kind]


def test_every_record_of_a_server_and_its_domain() -> None:
    """RFC 5321, 7208, 7489, 8460, 8461, 7672, 6186, 8314, 8659: name, type and value of each."""
    assert of("a") == ["mx.example.com. IN A 192.0.2.1", "mx.example.com. IN AAAA 2001:db8::1"]
    assert of("ptr")[0] == "1.2.0.192.in-addr.arpa. IN PTR mx.example.com."
    assert of("ptr")[1].endswith("8.b.d.0.1.0.0.2.ip6.arpa. IN PTR mx.example.com.")
    assert of("mx") == ["example.com. IN MX 10 mx.example.com."]
    assert of("spf") == ['example.com. IN TXT "v=spf1 mx -all"']
    assert of("spf-helo") == ['mx.example.com. IN TXT "v=spf1 a -all"']
    assert of("dmarc") == ['_dmarc.example.com. IN TXT "v=DMARC1; p=quarantine; rua=mailto:postmaster@example.com"']
    assert of("tlsrpt") == ['_smtp._tls.example.com. IN TXT "v=TLSRPTv1; rua=mailto:postmaster@example.com"']
    assert of("mta-sts") == ['_mta-sts.example.com. IN TXT "v=STSv1; id=20261124"']
    assert of("tlsa") == ["_25._tcp.mx.example.com. IN TLSA 3 1 1 " + "ab" * 32]
    assert of("caa") == ['mx.example.com. IN CAA 0 issue "letsencrypt.org"']
    assert of("client") == [
        "mta-sts.example.com. IN CNAME mx.example.com.",
        "autoconfig.example.com. IN CNAME mx.example.com.",
        "autodiscover.example.com. IN CNAME mx.example.com.",
    ]
    assert of("srv") == [
        "_submissions._tcp.example.com. IN SRV 0 1 465 mx.example.com.",
        "_imaps._tcp.example.com. IN SRV 0 1 993 mx.example.com.",
        "_imap._tcp.example.com. IN SRV 0 0 0 .",
    ]


def test_a_long_key_is_given_in_three_forms() -> None:
    """RFC 1035 s. 3.3: a character-string has at most 255 octets."""
    record = next(r for r in all_records(SERVER, [DOMAIN]) if r.kind == "dkim")
    assert record.value == LONG
    assert [len(s) for s in record.strings] == [255, len(LONG) - 255]
    assert "".join(record.strings) == LONG
    parsed = dns.rdata.from_text(dns.rdataclass.IN, "TXT", record.rdata.strip("( )"))
    assert b"".join(parsed.strings).decode() == LONG  # type: ignore[attr-defined]


def test_the_zone_is_one_that_others_read() -> None:
    text = "\n".join(r.zone_line for r in all_records(SERVER, [DOMAIN]))
    zone = dns.zone.from_file(io.StringIO("$TTL 300\n" + text + "\n"), origin=".", check_origin=False, relativize=False)
    assert len(list(zone.iterate_rdatas())) == len(all_records(SERVER, [DOMAIN]))


def test_addresses_that_only_send_are_in_the_spf_records() -> None:
    server = Server("mx.example.com", ("192.0.2.1",), ("192.0.2.9", "2001:db8::9"))
    assert of("spf", server=server) == ['example.com. IN TXT "v=spf1 mx ip4:192.0.2.9 ip6:2001:db8::9 -all"']
    assert of("spf-helo", server=server) == ['mx.example.com. IN TXT "v=spf1 a ip4:192.0.2.9 ip6:2001:db8::9 -all"']


def test_a_smarthost_may_send_too_and_the_record_is_not_strict() -> None:
    server = Server("mx.example.com", ("192.0.2.1",), ("192.0.2.1",), smarthost="smtp.example.net")
    assert of("spf", server=server) == ['example.com. IN TXT "v=spf1 mx a:smtp.example.net ~all"']


def test_a_server_named_like_its_domain_has_one_spf_record() -> None:
    """RFC 7208 s. 3.2: two records at one name are an error."""
    server = Server("example.com", ("192.0.2.1",), ("192.0.2.1",))
    assert of("spf-helo", server=server) == []
    assert of("spf", server=server) == ['example.com. IN TXT "v=spf1 mx -all"']


def test_without_pages_and_policy_their_records_are_not_advised() -> None:
    """A name whose page nobody serves makes clients wait, and MTA-STS without a policy says nothing."""
    server = Server("mx.example.com", ("192.0.2.1",), ("192.0.2.1",))
    assert not [
        r for r in all_records(server, [Domain("example.com")]) if r.kind in ("client", "mta-sts", "tlsa", "caa")
    ]


@pytest.mark.parametrize("text", ['quote " and \\ backslash', ""])
def test_strings_are_quoted(text: str) -> None:
    record = Record("spf", "example.com", "TXT", text, Need.REQUIRED, "")
    parsed = dns.rdata.from_text(dns.rdataclass.IN, "TXT", record.rdata)
    assert b"".join(parsed.strings).decode() == text  # type: ignore[attr-defined]
