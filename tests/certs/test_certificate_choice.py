"""Which certificate a handshake gets: by name, after reloads, on both event loops, and with files that are no good."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pymx.certs import files
from pymx.config.load import parse
from pymx.config.model import Tls
from pymx.net.certificate import facts, self_signed
from pymx.net.tls import Certificates, PemError, certificate_files

HOST = "mx.example.test"


def put(directory: Path, name: str, *names: str) -> bytes:
    """A certificate for `names` as `install` would leave it; returns it as DER."""
    key, certificate = self_signed(names)
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.pem").write_bytes(key + certificate)
    return ssl.PEM_cert_to_DER_cert(certificate.decode())


def shown(context: ssl.SSLContext, name: str | None = None, *, ciphers: str = "") -> bytes:
    """What a client that asks for `name` gets (DER)."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    if ciphers:
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(ciphers)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return ours.getpeercert(binary_form=True) or b""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def test_name_decides(directory):
    """RFC 6066 s. 3: exact names before wildcards, whatever their case; the host's own for all else."""
    host = put(directory, HOST, HOST)
    first = put(directory, "a.test", "autoconfig.a.test", "mta-sts.a.test")
    star = put(directory, "b.test", "*.b.test")
    exact = put(directory, "c.test", "mail.b.test")
    certificates = Certificates(Tls(), directory, hostname=HOST)
    for context in (certificates.context(), certificates.mx_context()):
        for name, expected in (
            (None, host), (HOST, host), ("unknown.test", host), ("b.test", host), ("x.y.b.test", host),
            ("autoconfig.a.test", first), ("MTA-STS.A.Test", first), ("other.b.test", star), ("mail.b.test", exact),
        ):  # fmt: skip
            assert shown(context, name) == expected, name


def test_settings_come_before_files(directory, tls_files):
    """The administrator said so; the files serve other names."""
    put(directory, HOST, HOST)
    other = put(directory, "a.test", "a.test")
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key))
    context = Certificates(tls, directory, hostname=HOST).context()
    configured = ssl.PEM_cert_to_DER_cert(
        tls_files.certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    )
    assert (shown(context, HOST), shown(context, "a.test")) == (configured, other)


def test_reload_takes_over_what_came_changed_and_went(directory):
    """In the contexts that listeners have already."""
    put(directory, HOST, HOST)
    put(directory, "gone.test", "gone.test")
    certificates = Certificates(Tls(), directory, hostname=HOST)
    context = certificates.context()
    assert shown(context, "gone.test") != shown(context)
    host, new = put(directory, HOST, HOST), put(directory, "new.test", "new.test")
    (directory / "gone.test.pem").unlink()
    certificates.reload()
    assert (shown(context), shown(context, "new.test"), shown(context, "gone.test")) == (host, new, host)


def test_other_kind_of_key_replaces_the_old_one(directory):
    """Loaded into one and the same context, an RSA certificate would stand beside the EC one and be shown to some."""
    put(directory, HOST, HOST)
    certificates = Certificates(Tls(), directory, hostname=HOST)
    context = certificates.context()
    assert shown(context, HOST, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    (directory / f"{HOST}.pem").write_bytes(_rsa(HOST))
    certificates.reload()
    with pytest.raises(ssl.SSLError, match=r"NO_SHARED_CIPHER|HANDSHAKE_FAILURE"):
        shown(context, HOST, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    new = shown(context, HOST, ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    assert isinstance(x509.load_der_x509_certificate(new).public_key(), rsa.RSAPublicKey)


def _rsa(name: str) -> bytes:
    key = rsa.generate_private_key(65_537, 2048)
    subject, now = x509.Name([]), dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem + certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_damaged_file_takes_nobody_along(directory, content):
    """At the start it is left out, at a reload it stays what it was."""
    host = put(directory, HOST, HOST)
    (directory / "a.test.pem").write_bytes(content)
    context = Certificates(Tls(), directory, hostname=HOST).context()
    assert shown(context, "a.test") == host
    good = put(directory, "a.test", "a.test")
    certificates = Certificates(Tls(), directory, hostname=HOST)
    context = certificates.context()
    (directory / "a.test.pem").write_bytes(content)
    (directory / f"{HOST}.pem").write_bytes(content)
    certificates.reload()
    assert (shown(context, "a.test"), shown(context)) == (good, host)


def test_nothing_that_can_be_used_is_said(directory):
    """Without [acme] the server does not start, and says why."""
    assert not Certificates(Tls(), directory, hostname=HOST).configured
    directory.mkdir()
    (directory / "a.test.pem").write_bytes(b"")
    certificates = Certificates(Tls(), directory, hostname=HOST)
    assert certificates.configured
    with pytest.raises(PemError, match=r"no file in .*/tls has a certificate that can be used"):
        certificates.context()


def test_temporary_certificate_until_there_is_a_real_one(directory):
    """One key for as long as it is needed, none of it on disk; a domain's certificate does not make it superfluous."""
    directory.mkdir()
    certificates = Certificates(Tls(), directory, hostname=HOST, temporary=True)
    context = certificates.context()
    first = shown(context)
    assert facts(ssl.DER_cert_to_PEM_cert(first).encode(), directory).names == (HOST,)
    assert list(directory.iterdir()) == []
    domain = put(directory, "a.test", "autoconfig.a.test")
    certificates.reload()
    assert (shown(context), shown(context, "autoconfig.a.test")) == (first, domain)
    host = put(directory, HOST, HOST)
    certificates.reload()
    assert shown(context) == host
    assert not any(one.temporary for one in certificates.in_use())


def test_files_of_the_settings_may_lie_there_too(directory):
    """A chain and a key apart in data_dir/tls are not taken for two broken certificates."""
    key, chain = self_signed([HOST])
    directory.mkdir()
    (directory / "privkey.pem").write_bytes(key)
    (directory / "fullchain.pem").write_bytes(chain)
    text = (
        f'hostname = "{HOST}"\ndata_dir = "{directory.parent}"\n[tls]\ncertificate = "{directory}/fullchain.pem"\n'
        f'private_key = "{directory}/privkey.pem"'
    )
    config = parse(text)
    assert certificate_files(config) == [directory / "fullchain.pem"]
    assert len(Certificates(config.tls, directory, hostname=HOST).in_use()) == 1


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_both_event_loops_choose(directory, loop_factory):
    """Each has an implementation of TLS of its own. (STARTTLS: with real clients, in the test of the whole server.)"""
    expected = {HOST: put(directory, HOST, HOST), "a.test": put(directory, "a.test", "a.test")}
    context = Certificates(Tls(), directory, hostname=HOST).context()
    client = ssl._create_unverified_context()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        for name, certificate in expected.items():
            async with asyncio.timeout(20):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
            assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == certificate
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


def test_what_is_installed_is_what_is_read(tmp_path, certificate_authority):
    """`install` writes the one form that the server reads: 0600, key first, then the chain."""
    theirs = certificate_authority.issue("installed-choice", ("mail.a.test",))
    found = files.install(tmp_path, "a.test", theirs.private_key.read_bytes(), theirs.certificate.read_bytes())
    assert found.path == tmp_path / "tls" / "a.test.pem"
    assert found.path.stat().st_mode & 0o777 == 0o600
    certificates = Certificates(Tls(), tmp_path / "tls", hostname=HOST)
    assert shown(certificates.context(), "mail.a.test") == ssl.PEM_cert_to_DER_cert(
        theirs.certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    )
