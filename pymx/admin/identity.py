"""Who this server is: its addresses, domains and keys, as `pymx.admin.zone` needs them.

Addresses: those in the settings; else those by which the system would go out, if others can see them. Behind a router
that translates addresses they can't be known here, and are given (`--address`) or taken from DNS by the caller.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from pymx.admin.zone import Domain, Key, Port, Server
from pymx.config.listeners import endpoints
from pymx.config.model import Config
from pymx.mail.sts_policy import policy_id, policy_text
from pymx.mailauth.dkim import rotation
from pymx.mailauth.dkim.rotation import KeyState
from pymx.net.source import system_addresses
from pymx.net.tls import certificate_files

_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not bound


def server(config: Config, addresses: Sequence[str] = ()) -> Server:
    """`addresses`: what the server's name leads to, when the administrator says it. Raises KeyUnusable."""
    digest, issuer = _certificate(_certificate_file(config))
    return Server(
        hostname=config.hostname.lower(),
        receives=tuple(addresses) or receiving_addresses(config),
        sends=sending_addresses(config) or tuple(addresses),
        ports=_ports(config),
        key_digests=(digest,) if digest else (),
        keys=_keys(config, config.hostname.lower()),
        authority=issuer,
        client_pages=bool(config.web.listen_tls),
        smarthost=next((r.host for r in config.outbound.route if r.domain == "*"), ""),
    )


def domain(config: Config, name: str) -> Domain:
    """Raises KeyUnusable."""
    return Domain(name, _keys(config, name), _policy_id(config))


def _policy_id(config: Config) -> str:
    """The id of the MTA-STS policy that we serve, "" when we serve none."""
    if not config.web.listen_tls or config.mta_sts.mode == "none":
        return ""
    settings = config.mta_sts
    return policy_id(policy_text(settings.mode, settings.mx or [config.hostname], settings.max_age_s))


def sending_addresses(config: Config) -> tuple[str, ...]:
    """The addresses that we send from and others see."""
    configured = config.outbound.source_addresses
    found = [
        address
        for family in (4, 6)
        for address in (
            [a for a in configured if ipaddress.ip_address(a).version == family] or system_addresses(family)
        )
    ]
    return tuple(a for a in found if _is_seen(config, a))


def receiving_addresses(config: Config) -> tuple[str, ...]:
    """The addresses that port 25 listens on and others see."""
    found: list[str] = []
    for host, _port in endpoints(config.smtp.listen):
        if host in _WILDCARDS:
            found += [a for a in system_addresses(6 if ":" in host else 4) if _is_seen(config, a)]
        elif _is_seen(config, host):
            found.append(host)
    return tuple(dict.fromkeys(sorted(found, key=lambda a: ":" in a)))


def _is_seen(config: Config, address: str) -> bool:
    return config.outbound.allow_private or ipaddress.ip_address(address).is_global


def _ports(config: Config) -> tuple[Port, ...]:
    def first(specs: Sequence[str]) -> int:
        return next((port for _host, port in endpoints(specs)), 0)

    return (
        Port("submissions", first(config.submission.listen_tls)),
        Port("submission", first(config.submission.listen_starttls)),
        Port("imaps", first(config.imap.listen_tls)),
        Port("imap", first(config.imap.listen_starttls)),
        Port("pop3s", 0),
        Port("pop3", 0),
    )


def _keys(config: Config, name: str) -> tuple[Key, ...]:
    """The keys of a domain whose records must be in DNS, or soon."""
    directory = Path(config.data_dir) / "dkim"
    if not (directory / name).is_dir():
        return ()
    found = []
    for state in rotation.states(directory, name):
        word = key_state(state)
        if word and state.key is not None:
            found.append(Key(state.key.record_name, state.key.record, word))
    return tuple(found)


def key_state(state: KeyState) -> str:
    """In use, waiting or replaced; "" for one whose record nobody needs."""
    if state.key is None:
        return ""
    if state.active:
        return "in use"
    if state.dates.waiting:
        return "waiting"
    return "replaced" if state.dates.replaced else ""


def _certificate_file(config: Config) -> Path | None:
    """The default one, as port 25 shows it."""
    return next(iter(certificate_files(config)), None)


def _certificate(path: Path | None) -> tuple[str, str]:
    """Digest of the public key, and the issuer's domain for CAA; "" where that can't be told."""
    if path is None:
        return "", ""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return "", ""
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    names = certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    organization = str(names[0].value) if names else ""
    return hashlib.sha256(public).hexdigest(), _AUTHORITIES.get(organization, "")


# CAA domains of the authorities that certificates for small servers come from
_AUTHORITIES = {
    "Let's Encrypt": "letsencrypt.org",
    "Google Trust Services": "pki.goog",
    "ZeroSSL": "sectigo.com",
    "Sectigo Limited": "sectigo.com",
    "Buypass AS-983163327": "buypass.com",
    "DigiCert Inc": "digicert.com",
}
