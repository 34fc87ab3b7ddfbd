"""TLS contexts: what they are made from, how they fail, how they are reloaded."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from cryptography.hazmat.primitives import serialization

from pymx.config.model import Tls
from pymx.net.tls import Certificates, PemError


def settings(files) -> Tls:
    return Tls(certificate=str(files.certificate), private_key=str(files.private_key))


def presented(context: ssl.SSLContext, version: ssl.TLSVersion | None = None) -> tuple[bytes, str]:
    """The certificate and TLS version a client gets from a server with `context`."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    if version is not None:
        client.maximum_version = version
    try:
        with client.wrap_socket(ours) as connection:
            return connection.getpeercert(binary_form=True) or b"", str(connection.version())
    finally:
        ours.close()
        thread.join()


def test_reload_changes_the_chain_in_the_same_contexts(certificate_authority, tls_files, tmp_path):
    """Listeners keep their context; a certificate renewed on disk is used after reload()."""
    files = certificate_authority.issue("renewed-before")
    certificates = Certificates(settings(files))
    context, mx_context = certificates.context(), certificates.mx_context()
    first = presented(context)[0]
    newer = certificate_authority.issue("renewed-after")
    files.certificate.write_bytes(newer.certificate.read_bytes())
    files.private_key.write_bytes(newer.private_key.read_bytes())
    certificates.reload()
    assert certificates.context() is context
    assert presented(context)[0] != first
    assert presented(mx_context)[0] == presented(context)[0]


def test_failed_reload_keeps_the_old_chain(certificate_authority):
    """Half a renewal must not stop the server."""
    files = certificate_authority.issue("half-renewed")
    certificates = Certificates(settings(files))
    context = certificates.context()
    first = presented(context)[0]
    files.certificate.write_bytes(certificate_authority.issue("other-half").certificate.read_bytes())
    with pytest.raises(PemError, match="is not the key of"):
        certificates.reload()
    assert presented(context)[0] == first


def test_errors_name_file_and_setting(certificate_authority, tmp_path):
    files = certificate_authority.issue("faulty")
    certificate, key = str(files.certificate), str(files.private_key)
    missing = str(tmp_path / "missing.pem")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    encrypted = tmp_path / "encrypted.pem"
    loaded = serialization.load_pem_private_key(files.private_key.read_bytes(), None)
    encrypted.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"geheim"),
        )
    )
    for tls, pattern in (
        (Tls(), r"\[tls\] certificate is empty"),
        (Tls(certificate=missing, private_key=key), rf"\[tls\] certificate: can't read {missing}"),
        (Tls(certificate=certificate, private_key=missing), rf"\[tls\] private_key: can't read {missing}"),
        (Tls(certificate=str(rubbish), private_key=key), rf"\[tls\] certificate {rubbish}"),
        (Tls(certificate=certificate, private_key=str(encrypted)), rf"\[tls\] private_key: {encrypted}: .*encrypted"),
    ):
        with pytest.raises(PemError, match=pattern):
            Certificates(tls).context()


@pytest.mark.parametrize(("minimum", "works"), [("1.2", True), ("1.3", False)])
def test_minimum_version(tls_files, minimum, works):
    """[tls] minimum."""
    tls = Tls(certificate=str(tls_files.certificate), private_key=str(tls_files.private_key), minimum=minimum)
    context = Certificates(tls).context()
    if works:
        assert presented(context, ssl.TLSVersion.TLSv1_2)[1] == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError):
            presented(context, ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_port_25_gives_no_session_tickets(tls_files, version):
    """Servers of one big provider break on them; nor is a session resumed by its number."""
    certificates = Certificates(settings(tls_files))
    for context, resumable in ((certificates.mx_context(), False), (certificates.context(), True)):
        assert tickets(context, version) is resumable


def tickets(context: ssl.SSLContext, version: ssl.TLSVersion) -> bool:
    """Whether a client of a server with `context` could resume its session."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with context.wrap_socket(theirs, server_side=True) as connection:
            connection.sendall(b"220 hello")
            connection.recv(100)

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    with client.wrap_socket(ours) as connection:
        assert connection.recv(100) == b"220 hello"  # with TLS 1.3 tickets come before it
        session = connection.session
        connection.sendall(b"bye")
        thread.join()
        return session is not None and session.has_ticket
