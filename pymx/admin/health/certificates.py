"""Certificates: those in the files, and those that each listener really shows.

A chain is judged as a client would: by a handshake in memory, so that no server need run. What a listener shows may be
older than the file, if nobody reloaded the server since.
"""

from __future__ import annotations

import asyncio
import ipaddress
import smtplib
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pymx.admin.health.finding import Finding, fail, ok, warn
from pymx.admin.health.subject import Subject
from pymx.config.listeners import endpoints

_DAY_S = 86_400.0
_SOON, _VERY_SOON = 0.2, 0.07  # of its whole life, but not more than these:
_SOON_S, _VERY_SOON_S = 21 * _DAY_S, 5 * _DAY_S
_CONNECT_S = 10.0
_RENEW = "pymxctl cert renew (or: certbot renew)"


async def check(subject: Subject) -> list[Finding]:
    found = await asyncio.to_thread(lambda: list(_files(subject)))
    if subject.running:
        shown = await asyncio.gather(*(asyncio.to_thread(_live, subject, *where) for where in _listeners(subject)))
        found += [finding for findings in shown for finding in findings]
    return found


# --- files


def _files(subject: Subject) -> Iterator[Finding]:
    tls = subject.config.tls
    own = subject.data_dir / "tls" / f"{subject.server.hostname}.pem"
    if tls.certificate:
        yield from _file(subject, Path(tls.certificate), Path(tls.private_key), [subject.server.hostname])
    elif not own.exists():
        remedy = "[acme] enabled = true, or pymxctl cert install"
        yield fail(
            "certificate", "the server has no certificate", remedy, "nobody can log in, and mail comes in the clear"
        )
    for path in sorted((subject.data_dir / "tls").glob("*.pem")):
        yield from _file(subject, path, path, [path.name.removesuffix(".pem")] if path == own else [])


def _file(subject: Subject, path: Path, key_path: Path, wanted: Sequence[str]) -> Iterator[Finding]:
    check = f"certificate:{path}"
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), None)
    except OSError as e:
        remedy = f"the user {subject.config.user} must be able to read it; pymxctl cert install copies certbot's files"
        yield fail(check, f"{e.filename}: {e.strerror}", remedy, "TLS can't be offered without it: nobody can log in")
        return
    except (ValueError, TypeError) as e:
        yield fail(
            check,
            f"{path} or {key_path} is no certificate with its key: {e}",
            _RENEW,
            "TLS can't be offered with it: nobody can log in",
        )
        return
    leaf = chain[0]
    bad = False
    for finding in _judge(subject, check, path, leaf, wanted):
        bad = True
        yield finding
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public != leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        yield fail(
            f"{check}:key",
            f"the key in {key_path} is not that of the certificate in {path}",
            _RENEW,
            "TLS can't be offered with it: nobody can log in",
        )
        return
    trouble = _distrust(path, key_path, wanted[0] if wanted else next(iter(names(leaf)), ""), subject.places.ca_file)
    if trouble and not bad:
        remedy = (
            "the file must hold the whole chain (certbot: fullchain.pem); a certificate of one's own is not trusted"
        )
        why = "mail clients warn or refuse; servers with MTA-STS in mode enforce don't deliver"
        yield warn(f"{check}:chain", f"clients don't trust the certificate in {path}: {trouble}", remedy, why)
        bad = True
    if not bad:
        days = (leaf.not_valid_after_utc.timestamp() - subject.now) / _DAY_S
        yield ok(check, f"the certificate in {path} is good for {days:.0f} days more")


def _judge(
    subject: Subject, check: str, what: object, leaf: x509.Certificate, wanted: Sequence[str]
) -> Iterator[Finding]:
    """What is wrong with one certificate: its time and its names."""
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    left_s, life_s = ends - subject.now, ends - begins
    why = "mail clients refuse to connect"
    if left_s <= 0:
        yield fail(check, f"the certificate in {what} expired {-left_s / _DAY_S:.0f} days ago", _RENEW, why)
    elif begins > subject.now:
        yield fail(check, f"the certificate in {what} is not valid yet: is the clock right?", "see the clock", why)
    elif left_s < min(life_s * _VERY_SOON, _VERY_SOON_S):
        yield fail(check, f"the certificate in {what} expires in {left_s / _DAY_S:.0f} days", _RENEW, why)
    elif left_s < min(life_s * _SOON, _SOON_S):
        text = f"the certificate in {what} expires in {left_s / _DAY_S:.0f} days and was not renewed"
        yield warn(
            check, text, f"{_RENEW}; the log says why it failed: pymxctl log --warnings", f"when it has expired, {why}"
        )
    missing = [name for name in wanted if not _covers(names(leaf), name)]
    if missing:
        text = f"the certificate in {what} is for {', '.join(names(leaf)) or 'no name'}, not for {', '.join(missing)}"
        yield fail(f"{check}:names", text, "get one for the server's name: pymxctl cert issue", why)


def names(certificate: x509.Certificate) -> list[str]:
    """The DNS names that it is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]


def _covers(found: Sequence[str], name: str) -> bool:
    return name in found or f"*.{name.partition('.')[2]}" in found


def _distrust(path: Path, key_path: Path, name: str, ca_file: str) -> str:
    """Why a client would not believe this certificate; "" if it would."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(path, key_path)
    except (OSError, ssl.SSLError) as e:
        return str(e)
    client = ssl.create_default_context(cafile=ca_file or None)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=name or None),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done = [False, False]
    for _ in range(10):
        for i, end in enumerate(ends):
            try:
                if not done[i]:
                    end.do_handshake()
                    done[i] = True
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as e:
                return e.verify_message
            except ssl.SSLError as e:
                return str(e.reason or e)
        if all(done):
            return ""
    return "the handshake does not end"


# --- listeners


def _listeners(subject: Subject) -> Iterator[tuple[str, str, int]]:
    """(way to TLS, address to connect to, port) of one listener of each kind and port."""
    config = subject.config
    for way, service, specs in (
        ("smtp", "smtp", config.smtp.listen),
        ("implicit", "submissions", config.submission.listen_tls),
        ("smtp", "submission", config.submission.listen_starttls),
        ("implicit", "imaps", config.imap.listen_tls),
        ("imap", "imap", config.imap.listen_starttls),
    ):
        seen: set[int] = set()
        for host, port in subject.activation.endpoints(service) or endpoints(specs):
            address = ipaddress.ip_address(host)
            if address.is_unspecified:
                address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
            if port not in seen:
                seen.add(port)
                yield way, str(address), port


def _live(subject: Subject, way: str, host: str, port: int) -> list[Finding]:
    """What one listener shows. Blocking."""
    check = f"listener:{host}:{port}"
    try:
        shown = _shown(way, host, port, subject.server.hostname)
    except (OSError, smtplib.SMTPException, imap_error()) as e:
        remedy = "pymxctl status; journalctl -u pymx"
        return [fail(check, f"no TLS at port {port} of {host}: {e}", remedy, "mail clients or servers can't connect")]
    leaf = x509.load_der_x509_certificate(shown)
    found = list(_judge(subject, check, f"use at port {port}", leaf, [subject.server.hostname]))
    if not found and _is_outdated(subject, leaf):
        text = (
            f"port {port} shows another certificate than the one in the file, until {leaf.not_valid_after_utc:%Y-%m-%d}"
        )
        found = [warn(check, text, "systemctl reload pymx", "when the older one expires, clients refuse to connect")]
    return found or [ok(check, f"port {port} shows the certificate of {subject.server.hostname}")]


def imap_error() -> type[Exception]:
    import imaplib

    return imaplib.IMAP4.error


def _is_outdated(subject: Subject, leaf: x509.Certificate) -> bool:
    """Is it none of those in the files?"""
    paths = [Path(subject.config.tls.certificate)] if subject.config.tls.certificate else []
    paths += sorted((subject.data_dir / "tls").glob("*.pem"))
    on_disk = []
    for path in paths:
        try:
            on_disk.append(x509.load_pem_x509_certificate(path.read_bytes()))
        except (OSError, ValueError):
            continue  # said above
    return bool(on_disk) and leaf not in on_disk


def _shown(way: str, host: str, port: int, name: str) -> bytes:
    """The certificate at a listener, whoever it is for: it is looked at afterwards."""
    import imaplib
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if way == "implicit":
        with (
            socket.create_connection((host, port), _CONNECT_S) as raw,
            context.wrap_socket(raw, server_hostname=name) as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""
    if way == "imap":
        client = imaplib.IMAP4(host, port, _CONNECT_S)
        try:
            client.starttls(context)
            return client.sock.getpeercert(binary_form=True) or b""  # type: ignore[attr-defined]  # it is one of TLS now
        finally:
            client.shutdown()
    with smtplib.SMTP(host, port, local_hostname=name, timeout=_CONNECT_S) as smtp:
        smtp._host = name  # type: ignore[attr-defined]  # what it asks for by SNI
        smtp.starttls(context=context)
        assert isinstance(smtp.sock, ssl.SSLSocket)
        return smtp.sock.getpeercert(binary_form=True) or b""
