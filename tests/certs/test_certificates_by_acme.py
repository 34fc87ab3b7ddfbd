"""Certificates by ACME in a whole server: a real authority (pebble), real challenges, real clients."""

from __future__ import annotations

import contextlib
import imaplib
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from support.appliance import Appliance
from support.dns_server import DnsServer
from support.pebble import Pebble
from support.ports import free_port
from support.tls import CertificateAuthority
from support.wait import wait_for

from pymx.certs import files, state
from pymx.net.certificate import read_certificate

HOST = "mx.example.test"


@dataclass
class Site:
    server: Appliance
    pebble: Pebble
    dns: DnsServer
    web: int
    tls: int
    first: dict[str, set[str]] = field(default_factory=dict)  # the names in the certificates that came by themselves
    first_log: str = ""

    @property
    def data_dir(self) -> Path:
        return self.server.directory / "data"

    def file(self, name: str) -> Path:
        return files.place(self.data_dir, name)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.server.ctl("cert", *arguments, check=False)

    def names(self, name: str) -> set[str]:
        return set(read_certificate(self.file(name)).names)

    def serial(self, name: str) -> int:
        chain = self.file(name).read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2]
        return x509.load_pem_x509_certificate(chain).serial_number

    def wait_until_shown(self, name: str, host: str) -> None:
        """By every worker and the runner: the file called `name` to who asks for `host`."""
        imaps, serial = self.server.ports["imaps"], self.serial(name)
        wait_for(
            lambda: all(self.shown(port, host).serial_number == serial for port in (imaps, imaps, imaps, self.tls)),
            what=f"the new certificate of {name}",
        )

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.pebble.roots())

    def shown(self, port: int, name: str, starttls: str = "") -> x509.Certificate:
        """The certificate that openssl's client gets."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name]
        command += ["-starttls", starttls] if starttls else []
        done = subprocess.run(command, input=b"", capture_output=True, timeout=30)
        found = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", done.stdout, re.DOTALL)
        assert found, done.stderr
        return x509.load_pem_x509_certificate(found[0])


def _names_of(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, certificate_authority: CertificateAuthority) -> Iterator[Site]:
    """Two workers and a runner; example.test has all its names, other.test only autoconfig."""
    with contextlib.ExitStack() as stack:
        dns = DnsServer()
        stack.callback(dns.close)
        for name in (HOST, "mta-sts.example.test", "autoconfig.example.test", "autoconfig.other.test"):
            dns.add(name, "A", "127.0.0.1")
        dns.add("autodiscover.example.test", "CNAME", HOST)
        dns.add("mta-sts.other.test", "A", "127.0.0.9")  # somebody else's
        web, tls = free_port(), free_port()
        pebble = Pebble(
            tmp_path_factory.mktemp("pebble"), certificate_authority.issue("pebble"), dns=dns.spec, http_port=web
        )
        pebble.start()
        stack.callback(pebble.stop)
        server = Appliance(
            workers=2,
            own_certificate=False,
            extra={
                "dns": f'nameservers = ["{dns.spec}"]',
                "web": f'listen = ["127.0.0.1:{web}"]\nlisten_tls = ["127.0.0.1:{tls}"]',
                "acme": f'enabled = true\ndirectory_url = "{pebble.directory_url}"\nca_file = "{pebble.ca_file}"\n'
                "retry_first_s = 1",
            },
        )
        stack.callback(server.remove)
        server.populate()
        server.ctl("domain", "add", "other.test")
        server.start()
        made = Site(server, pebble, dns, web, tls)
        wait_for(
            lambda: (
                server.log().count("event=certificate_issued") >= 3
                and server.log().count("event=configuration_reloaded") >= 3
            ),
            timeout_s=60,
            what="certificates",
        )
        made.first = {name: made.names(name) for name in (HOST, "example.test", "other.test")}
        made.first_log = server.log()
        yield made
        assert server.stop() == 0


def test_server_gets_its_certificates_by_itself(site):
    """It started with a temporary one and said so; then came one for the host, and one for each domain with the names
    that lead here."""
    assert "event=certificate_temporary" in site.first_log
    assert site.first == {
        HOST: {HOST},
        "example.test": {f"{prefix}.example.test" for prefix in ("mta-sts", "autoconfig", "autodiscover")},
        "other.test": {"autoconfig.other.test"},
    }
    skipped = [line for line in site.first_log.splitlines() if "event=certificate_name_skipped" in line]
    assert len(skipped) == 2
    assert "host=mta-sts.other.test" in skipped[0]
    assert "leads to 127.0.0.9, and mx.example.test to 127.0.0.1" in skipped[0]
    assert 'host=autodiscover.other.test reason="has no address in DNS"' in skipped[1]


def test_private_things_are_private(site):
    """Keys, of the account too, are the server's alone; proofs are gone when they have been looked at."""
    acme = site.data_dir / "acme"
    for path in (site.file(HOST), *acme.glob("account-*.pem")):
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(acme.glob("account-*.pem"))) == 1
    assert list(files.challenges_directory(site.data_dir).iterdir()) == []
    assert not [p for p in site.file(HOST).parent.iterdir() if p.suffix != ".pem"]


@pytest.mark.parametrize(
    ("service", "starttls"),
    [("submissions", ""), ("submission", "smtp"), ("imaps", ""), ("imap", "imap"), ("smtp", "smtp"), ("https", "")],
)
def test_certificate_fits_the_name_that_is_asked_for(site, service, starttls):
    """RFC 6066 s. 3, on every listener, with TLS from the first octet and after STARTTLS; the host's for any other."""
    port = {**site.server.ports, "https": site.tls}[service]
    for asked, name in (
        (HOST, HOST), ("autoconfig.example.test", "example.test"), ("AutoConfig.Other.Test", "other.test"),
        ("unknown.test", HOST),
    ):  # fmt: skip
        assert _names_of(site.shown(port, asked, starttls)) == site.names(name)


def test_clients_verify_it(site):
    """With the authority's root: an IMAP login, and the MTA-STS policy over HTTPS."""
    assert site.ctl("issue", HOST, "example.test").returncode == 0
    site.wait_until_shown(HOST, HOST)
    site.wait_until_shown("example.test", "mta-sts.example.test")
    client = imaplib.IMAP4_SSL("127.0.0.1", site.server.ports["imaps"], ssl_context=_named(site.trust()), timeout=30)
    assert client.login("alice@example.test", "secret")[0] == "OK"
    client.logout()
    (site.server.directory / "roots.pem").write_text(site.pebble.roots())
    fetched = subprocess.run(
        ["curl", "-sS", "--cacert", str(site.server.directory / "roots.pem"),
         "--resolve", f"mta-sts.example.test:{site.tls}:127.0.0.1",
         f"https://mta-sts.example.test:{site.tls}/.well-known/mta-sts.txt"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert fetched.stdout.startswith("version: STSv1\nmode: testing\nmx: mx.example.test\n"), fetched.stderr


class _Named(ssl.SSLContext):
    """Asks for the server's name at 127.0.0.1."""

    def wrap_socket(self, *args, **options):
        return super().wrap_socket(*args, **{**options, "server_hostname": HOST})


def _named(context: ssl.SSLContext) -> ssl.SSLContext:
    named = _Named(ssl.PROTOCOL_TLS_CLIENT)
    named.load_verify_locations(cadata="".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True))))
    return named


def expire_soon(site: Site, authority: CertificateAuthority, name: str) -> int:
    """Put an old certificate in place of the one in use; returns its serial number."""
    old = authority.issue(f"old-{name}-{time.monotonic_ns()}", tuple(site.names(name)), days=1)
    key = files.private_key(site.file(name))
    assert key is not None
    files.install(site.data_dir, name, old.private_key.read_bytes(), old.certificate.read_bytes())
    return x509.load_pem_x509_certificate(old.certificate.read_bytes()).serial_number


def test_renewal_reaches_new_sessions_and_leaves_old_ones_alone(site, certificate_authority):
    """A third of its life before its end it is renewed; a session in IDLE goes on, the next connection has the new
    one, in every worker; the key stays, so that TLSA records do."""
    expire_soon(site, certificate_authority, HOST)
    assert site.server.ctl("cert", "show").returncode == 0
    key = read_certificate(site.file(HOST)).spki_sha256
    port = site.server.ports["imaps"]
    client = imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=ssl._create_unverified_context(), timeout=30)
    client.login("alice@example.test", "secret")
    client.select()
    client.send(b"x IDLE\r\n")
    assert client.readline().startswith(b"+ ")
    done = site.ctl("renew")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{HOST}: new certificate for {HOST}" in done.stdout
    assert "example.test: good until" in done.stdout
    new = read_certificate(site.file(HOST))
    assert new.spki_sha256 == key
    assert new.issuer.startswith("Pebble")
    site.wait_until_shown(HOST, HOST)
    client.send(b"DONE\r\n")
    assert client.readline().startswith(b"x OK")
    assert client.noop()[0] == "OK"
    client.logout()


def test_failing_authority_leaves_the_old_certificate(site, certificate_authority):
    """It is down: an error with its reason in log and output, waits that grow, everything serves on; it is back (and
    knows nobody any more): the next try succeeds, by itself."""
    serial = expire_soon(site, certificate_authority, "example.test")
    site.pebble.stop()
    done = site.ctl("renew")
    assert done.returncode == 1
    assert re.search(r"^example.test: FAILED: https://localhost:\d+/dir: .*refused", done.stdout, re.MULTILINE)
    assert "good until" in done.stdout  # the others are not touched
    assert _names_of(site.shown(site.tls, "autoconfig.example.test")) == site.names("example.test")
    known = state.load(site.data_dir, "example.test")
    assert known is not None
    assert known.failures == 1
    assert "refused" in known.reason
    shown = site.server.ctl_json("cert", "show")
    assert [row["trouble"] for row in shown if "autoconfig.example.test" in row["names"]] == [known.reason]
    site.pebble.start()
    wait_for(lambda: known.not_before < time.time(), what="the wait")
    done = site.ctl("renew", "--patient")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.serial("example.test") != serial
    site.wait_until_shown("example.test", "autoconfig.example.test")


def test_name_that_fails_is_left_out(site):
    """Its proof can't be fetched (DNS leads elsewhere for the authority): the others are issued, it is reported and
    tried again much later; when it works, it comes in."""
    assert site.first["other.test"] == {"autoconfig.other.test"}
    site.dns.add("autodiscover.other.test", "A", "127.0.0.1")
    site.dns.add("autodiscover.other.test", "AAAA", "::1")  # tried first, and nobody listens there
    done = site.ctl("issue", "other.test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.names("other.test") == {"autoconfig.other.test"}
    assert "without autodiscover.other.test: " in done.stdout
    known = state.load(site.data_dir, "other.test")
    assert known is not None
    assert set(known.left_out) == {"autodiscover.other.test"}
    # the timer leaves it alone for a while
    known.left_out["autodiscover.other.test"].not_before = time.time() + 3600
    state.save(site.data_dir, "other.test", known)
    assert "other.test: good until" in site.ctl("renew", "--patient").stdout
    site.dns.remove("autodiscover.other.test", "AAAA")
    assert "new certificate for" in site.ctl("renew").stdout
    assert site.names("other.test") == {"autoconfig.other.test", "autodiscover.other.test"}
    site.wait_until_shown("other.test", "autodiscover.other.test")


def test_certbots_files_are_taken_over_and_left_alone(site, certificate_authority):
    """`install` with $RENEWED_LINEAGE or --from: checked, private, used at once; ACME does not renew it any more."""
    lineage = site.server.directory / "live" / HOST
    lineage.mkdir(parents=True)
    theirs = certificate_authority.issue("certbot", (HOST, "imap.example.test"))
    other = certificate_authority.issue("certbot-other", ("imap.example.test",))
    (lineage / "fullchain.pem").write_bytes(theirs.certificate.read_bytes())
    (lineage / "privkey.pem").write_bytes(other.private_key.read_bytes())
    done = site.ctl("install", "--from", str(lineage))
    assert (done.returncode, done.stderr) == (
        1, "pymxctl: not installed: the private key is not the key of the certificate\n",
    )  # fmt: skip
    (lineage / "privkey.pem").write_bytes(theirs.private_key.read_bytes())
    done = site.ctl("install", "--from", str(lineage))
    assert done.returncode == 0, done.stderr
    assert site.file(HOST).stat().st_mode & 0o777 == 0o600
    for name in (HOST, "imap.example.test", "unknown.test"):
        site.wait_until_shown(HOST, name)
    assert f"{HOST}: installed by other means" in site.ctl("renew").stdout
    assert f"{HOST}: new certificate" in site.ctl("issue", HOST).stdout
    site.wait_until_shown(HOST, HOST)
