"""What the public pages say, to whom, and what they don't."""

from __future__ import annotations

import json
import plistlib
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import xmlschema
from pages_rig import Pages, config, pages

from pymx.config.check import check
from pymx.mail.sts_policy import policy_id, policy_text
from pymx.mta.sts import parse_policy

RESPONSE = "{http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a}"
OUTLOOK = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
ACTIVESYNC = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006"


@pytest.fixture
async def site(tmp_path, tls_files) -> AsyncIterator[Pages]:
    """Over HTTP, with HTTPS somewhere else."""
    settings = config('[web]\nlisten_tls = ["0.0.0.0:443"]')
    async with pages(tmp_path, settings, (tls_files.certificate, tls_files.private_key)) as made:
        yield made


def outlook(email: str, schema: str = OUTLOOK) -> bytes:
    """The request as Outlook sends it (MS-OXDSCLI s. 2.2.3)."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006">'
        f"<Request><EMailAddress>{email}</EMailAddress>"
        f"<AcceptableResponseSchema>{schema}</AcceptableResponseSchema></Request></Autodiscover>"
    ).encode()


@pytest.mark.parametrize(
    "url",
    [
        "example.test/",
        "example.test/metrics",
        "example.test/healthz",
        "example.test/.well-known/mta-sts.txt",
        "mta-sts.elsewhere.test/.well-known/mta-sts.txt",
        "mta-sts./.well-known/mta-sts.txt",
        "autoconfig.elsewhere.test/mail/config-v1.1.xml",
        "autoconfig.elsewhere.test/mail/config-v1.1.xml?emailaddress=alice@example.test",
        "autoconfig.example.test/mail/config-v1.1.xml?emailaddress=alice@elsewhere.test",
        "autoconfig.example.test/mail/config-v1.1.xml?emailaddress=nonsense",
        "elsewhere.test/.well-known/autoconfig/mail/config-v1.1.xml",
        "elsewhere.test/mail/profile.mobileconfig",
        "autodiscover.example.test/autodiscover/autodiscover.json?Email=alice@elsewhere.test&Protocol=ActiveSync",
        "autodiscover.example.test/autodiscover/autodiscover.json",
        "example.test/.well-known/acme-challenge/",
        "example.test/.well-known/acme-challenge/../account.json",
        "example.test/.well-known/acme-challenge/..%2faccount.json",
        "example.test/.well-known/acme-challenge/unknown",
        "\xff\xfe.test/.well-known/mta-sts.txt",
    ],
)
async def test_what_is_not_ours_is_not_found(site, url):
    """Only these pages, only for domains that are in the database, whatever the host is called."""
    (site.challenges.parent / "account.json").write_text("secret")
    assert (await site.ask(url)).status == 404


async def test_challenge_is_what_lies_in_the_directory(site):
    """RFC 8555 s. 8.3: the token's file, whatever host is asked, as application/octet-stream."""
    site.challenges.mkdir()
    (site.challenges / "tok_EN-1").write_text("tok_EN-1.thumbprint")
    site.down = True  # no database is needed for it
    answer = await site.ask("whatever.test/.well-known/acme-challenge/tok_EN-1")
    assert (answer.status, answer.body) == (200, b"tok_EN-1.thumbprint")
    assert answer.fields["content-type"] == "application/octet-stream"


async def test_sts_policy_is_read_by_a_sender(site):
    """RFC 8461 s. 3.2: what our own sending side reads from it."""
    answer = await site.ask("mta-sts.example.test/.well-known/mta-sts.txt")
    assert answer.status == 200
    assert answer.fields["content-type"] == "text/plain"
    policy = parse_policy(answer.body)
    assert (policy.mode, policy.mx, policy.max_age_s) == ("testing", ("mx.example.test",), 604_800)


@pytest.mark.parametrize(("mode", "mx"), [("enforce", ["a.test", "*.b.test"]), ("testing", ["a.test"]), ("none", [])])
def test_sts_policy_text_is_what_the_grammar_wants(mode, mx):
    """RFC 8461 s. 3.2; the id changes with the text and keeps to s. 3.1."""
    text = policy_text(mode, mx or ["unused.test"], 86_400)
    policy = parse_policy(text.encode())
    assert (policy.mode, policy.mx, policy.max_age_s) == (mode, tuple(mx), 86_400)
    assert policy_id(text).isalnum()
    assert len(policy_id(text)) <= 32
    assert policy_id(text) != policy_id(policy_text(mode, mx, 86_401))


AUTOCONFIG = [
    "autoconfig.example.test/mail/config-v1.1.xml?emailaddress=alice%40example.test",  # desktop
    "autoconfig.example.test/mail/config-v1.1.xml",  # Android
    "AutoConfig.Example.TEST:443/mail/config-v1.1.xml",
    "example.test/.well-known/autoconfig/mail/config-v1.1.xml",
    "example.test/.well-known/autoconfig/mail/config-v1.1.xml?emailaddress=EVOLUTIONUSER@example.test&emailmd5=0",
    "mx.example.test/mail/config-v1.1.xml?emailaddress=alice@example.test",
    "autoconfig.other.test/mail/config-v1.1.xml?emailaddress=alice@example.test",  # a CNAME for many domains
]


@pytest.mark.parametrize("url", AUTOCONFIG)
async def test_autoconfig_is_what_thunderbird_reads(site, url):
    """The rules of its readFromXML: domain, type, host, port, socketType, username, authentication; the best first."""
    answer = await site.ask(url)
    assert answer.status == 200
    assert answer.fields["content-type"] == "text/xml; charset=utf-8"
    root = ET.fromstring(answer.body)
    assert (root.tag, root.get("version"), [child.tag for child in root]) == (
        "clientConfig", "1.1", ["emailProvider"],
    )  # fmt: skip
    provider = root[0]
    assert provider.get("id") == provider.findtext("domain") == "example.test"
    assert provider.findtext("displayName") == provider.findtext("displayShortName") == "example.test"
    found = []
    for server in provider:
        if server.tag in ("incomingServer", "outgoingServer"):
            assert {child.tag for child in server} == {"hostname", "port", "socketType", "username", "authentication"}
            assert server.findtext("hostname") == "mx.example.test"
            assert server.findtext("authentication") == "password-cleartext"
            # every client puts the address there, also those that did not tell us
            assert server.findtext("username") == "%EMAILADDRESS%"
            found.append((server.tag, server.get("type"), server.findtext("port"), server.findtext("socketType")))
    assert found == [
        ("incomingServer", "imap", "993", "SSL"),
        ("incomingServer", "imap", "143", "STARTTLS"),
        ("outgoingServer", "smtp", "465", "SSL"),
        ("outgoingServer", "smtp", "587", "STARTTLS"),
    ]
    assert b"%EMAILDOMAIN%" not in answer.body  # not every client replaces it there


async def test_international_domain_is_told_in_a_labels(site):
    """K-9 and Thunderbird compare the domain with what they asked for, which is ASCII."""
    answer = await site.ask("autoconfig.xn--bcher-kva.test/mail/config-v1.1.xml")
    assert ET.fromstring(answer.body).findtext("emailProvider/domain") == "xn--bcher-kva.test"


@pytest.mark.parametrize("path", ["autodiscover/autodiscover.xml", "Autodiscover/Autodiscover.xml"])
async def test_autodiscover_keeps_to_the_schema(site, path):
    """MS-OXDSCLI; the schema here has no other protocols than POP3, IMAP and SMTP."""
    answer = await site.ask(f"autodiscover.example.test/{path}", method="POST", body=outlook("alice@example.test"))
    assert (answer.status, answer.fields["content-type"]) == (200, "text/xml; charset=utf-8")
    root = ET.fromstring(answer.body)
    assert root.tag == "{http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006}Autodiscover"
    xmlschema.XMLSchema(str(Path(__file__).parent / "autodiscover.xsd")).validate(root[0])
    protocols = [
        {child.tag.removeprefix(RESPONSE): child.text for child in p} for p in root.iter(f"{RESPONSE}Protocol")
    ]
    assert [(p["Type"], p["Server"], p["Port"], p["SSL"], p["Encryption"], p["LoginName"]) for p in protocols] == [
        ("IMAP", "mx.example.test", "993", "on", "SSL", "alice@example.test"),
        ("SMTP", "mx.example.test", "465", "on", "SSL", "alice@example.test"),
    ]


async def test_exchange_is_never_announced(site):
    """A client that asks for ActiveSync's schema hears 601, and the probe says no to all but the XML form."""
    url = "autodiscover.example.test/autodiscover/autodiscover"
    body = outlook("alice@example.test", ACTIVESYNC)
    answer = await site.ask(f"{url}.xml", method="POST", body=body)
    assert answer.status == 200
    assert ET.fromstring(answer.body).findtext(".//{*}ErrorCode") == "601"
    for protocol in ("ActiveSync", "Ews", "Rest", "Substrate", ""):
        for query in (
            f"?Email=alice@example.test&Protocol={protocol}",
            f"/v1.0/alice%40example.test?Protocol={protocol}",
        ):
            probe = await site.ask(f"{url}.json{query}")
            assert (probe.status, json.loads(probe.body)["ErrorCode"]) == (400, "ProtocolNotSupported")
    probe = await site.ask(f"{url}.json?Email=alice@example.test&Protocol=AutodiscoverV1")
    assert json.loads(probe.body) == {
        "Protocol": "AutodiscoverV1", "Url": "https://autodiscover.example.test/autodiscover/autodiscover.xml",
    }  # fmt: skip


BOMB = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>
<Autodiscover><Request><EMailAddress>&y;@example.test</EMailAddress></Request></Autodiscover>"""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<Autodiscover/>",
        BOMB,
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x"><a/>',
        b"<a>" * 2000,
        b'<?xml version="1.0" encoding="utf-99"?><a/>',
        b"\xff\xfe\x00",
        outlook("alice@example.test" + "x" * 600),
        outlook("alice"),
        outlook("<b>alice@example.test</b>"),
    ],
)
async def test_hostile_request_is_invalid(site, body):
    """Error 600, whatever came: entities are not read, depth and length are limited."""
    answer = await site.ask("autodiscover.example.test/autodiscover/autodiscover.xml", method="POST", body=body)
    assert answer.status == 200
    assert ET.fromstring(answer.body).findtext(".//{*}ErrorCode") == "600"


async def test_autodiscover_for_others_is_not_found(site):
    """Also the body decides whose domain it is."""
    url = "autodiscover.example.test/autodiscover/autodiscover.xml"
    assert (await site.ask(url, method="POST", body=outlook("a@elsewhere.test"))).status == 404


async def test_outlook_is_sent_from_http_to_https(site):
    """MS-OXDISCO s. 3.1.5.4: it asks by GET over HTTP and follows a redirect; never for a foreign host."""
    answer = await site.ask("autodiscover.example.test/autodiscover/autodiscover.xml")
    assert (answer.status, answer.fields["location"]) == (
        302, "https://autodiscover.example.test/autodiscover/autodiscover.xml",
    )  # fmt: skip
    assert (await site.ask("elsewhere.test/autodiscover/autodiscover.xml")).status == 405


@pytest.mark.parametrize("address", ["alice@example.test", ""])
async def test_profile_is_signed_and_complete(site, tls_files, tmp_path, address):
    """openssl verifies it against the CA of the server's certificate, plistlib reads what is inside."""
    query = f"?emailaddress={address}" if address else ""
    answer = await site.ask(f"autoconfig.example.test/mail/profile.mobileconfig{query}")
    assert (answer.status, answer.fields["content-type"]) == (200, "application/x-apple-aspen-config")
    (tmp_path / "profile").write_bytes(answer.body)
    verify = ["openssl", "cms", "-verify", "-inform", "DER", "-in", str(tmp_path / "profile")]
    done = subprocess.run([*verify, "-CAfile", str(tls_files.ca), "-purpose", "any"], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    profile = plistlib.loads(done.stdout)
    (mail,) = profile["PayloadContent"]
    assert (profile["PayloadType"], mail["PayloadType"]) == ("Configuration", "com.apple.mail.managed")
    assert len({profile["PayloadUUID"], mail["PayloadUUID"]}) == 2
    for direction, port in (("Incoming", 993), ("Outgoing", 465)):
        assert mail[f"{direction}MailServerHostName"] == "mx.example.test"
        assert mail[f"{direction}MailServerPortNumber"] == port
        assert mail[f"{direction}MailServerUseSSL"] is True
        assert mail.get(f"{direction}MailServerUsername", "") == address
    assert mail.get("EmailAddress", "") == address
    again = await site.ask(f"autoconfig.example.test/mail/profile.mobileconfig{query}")
    (tmp_path / "profile").write_bytes(again.body)
    done = subprocess.run([*verify, "-CAfile", str(tls_files.ca), "-purpose", "any"], capture_output=True, timeout=30)
    assert plistlib.loads(done.stdout) == profile  # installed again it takes its own place


async def test_profile_without_a_readable_key_is_not_signed(tmp_path, tls_files):
    """It still works: the device says that it is unsigned."""
    async with pages(tmp_path, config(), (tls_files.certificate, tmp_path / "missing.key")) as site:
        answer = await site.ask("autoconfig.example.test/mail/profile.mobileconfig")
        assert plistlib.loads(answer.body)["PayloadOrganization"] == "example.test"


async def test_pages_wait_for_the_database(site):
    """Not 404: that would be remembered."""
    site.down = True
    answer = await site.ask("mta-sts.example.test/.well-known/mta-sts.txt")
    assert (answer.status, answer.fields["retry-after"]) == (503, "300")


async def test_pages_over_tls(tmp_path, tls_files):
    """The same pages, and no redirect to where one is already."""
    async with pages(
        tmp_path, config('[web]\nlisten_tls = ["0.0.0.0:443"]'), (tls_files.certificate, tls_files.private_key),
        tls=tls_files.server_context(), client=tls_files.client_context(),
    ) as site:  # fmt: skip
        assert (await site.ask("mta-sts.example.test/.well-known/mta-sts.txt")).status == 200
        assert (await site.ask("autodiscover.example.test/autodiscover/autodiscover.xml")).status == 405


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET // HTTP/1.1\r\n\r\n", b"404"),
        (b"GET //[x HTTP/1.1\r\n\r\n", b"404"),
        (b"GET http://[x/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET * HTTP/1.1\r\n\r\n", b"400"),
        (b"DELETE /mail/config-v1.1.xml HTTP/1.1\r\nHost: autoconfig.example.test\r\n\r\n", b"405"),
        (b"GET http://mta-sts.example.test/.well-known/mta-sts.txt HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"POST /autodiscover/autodiscover.xml HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /autodiscover/autodiscover.xml HTTP/1.1\r\nContent-Length: 16385\r\n\r\n", b"413"),
        (b"POST /autodiscover/autodiscover.xml HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", b"413"),
        (b"POST /autodiscover/autodiscover.xml HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", b"100"),
    ],
)
async def test_http_is_read_strictly(site, octets, status):
    """RFC 9112: what is ambiguous or too large is refused."""
    assert (await site.raw(octets)).split(b" ")[1] == status


def test_settings_of_the_pages_are_checked():
    """A pattern with a star stands for one label only at the front (RFC 8461 s. 4.1)."""
    problems = check(config('[mta_sts]\nmx = ["mx.*.test", "*.good.test"]'))
    assert [p for p in problems if "mta_sts" in p] == ['[mta_sts] mx = "mx.*.test": expected a host name, or *.DOMAIN']
