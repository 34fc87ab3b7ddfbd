"""Who this server is: its addresses, domains and keys, as `pymx.admin.zone` needs them.

Addresses: those in the settings; else those by which the system would go out, if others can see them. Behind a router
that translates addresses they can't be known here, and are given (`--address`) or taken from DNS by the caller.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from pymx.admin.zone import Domain, Key, Port, Server
from pymx.config.listeners import endpoints
from pymx.config.model import Config
from pymx.mail.sts_policy import policy_id, policy_text
from pymx.mailauth.dkim import rotation
from pymx.mailauth.dkim.rotation import KeyState
from pymx.net.certificate import CertificateUnreadable, read_certificate
from pymx.net.source import system_addresses
from pymx.net.tls import certificate_files, certificates_directory

_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not bound


def server(config: Config, addresses: Sequence[str] = ()) -> Server:
    """`addresses`: what the server's name leads to, when the administrator says it. Raises KeyUnusable."""
    trouble = digest = issuer = ""
    try:
        digest, issuer = _certificate(config)
    except CertificateUnreadable as e:
        trouble = str(e)
    return Server(
        hostname=config.hostname.lower(),
        receives=tuple(addresses) or receiving_addresses(config),
        sends=sending_addresses(config) or tuple(addresses),
        ports=_ports(config),
        key_digests=(digest,) if digest else (),
        certificate_trouble=trouble,
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


def _certificate(config: Config) -> tuple[str, str]:
    """Digest of the default certificate's key, as port 25 shows it, and its issuer's domain for CAA; "" for none.

    Raises CertificateUnreadable.
    """
    try:
        # listed here too: files of a directory that is not ours to read are no files that are not there
        next(certificates_directory(config).iterdir(), None)
    except FileNotFoundError:
        pass
    except OSError as e:
        if not config.tls.certificate:
            raise CertificateUnreadable(f"can't read {certificates_directory(config)}: {e.strerror}") from None
    path = next(iter(certificate_files(config)), None)
    if path is None:
        return "", ""
    found = read_certificate(path)
    return found.spki_sha256.hex(), _AUTHORITIES.get(found.organization, "")


# CAA domains of the authorities that certificates for small servers come from
_AUTHORITIES = {
    "Let's Encrypt": "letsencrypt.org",
    "Google Trust Services": "pki.goog",
    "ZeroSSL": "sectigo.com",
    "Sectigo Limited": "sectigo.com",
    "Buypass AS-983163327": "buypass.com",
    "DigiCert Inc": "digicert.com",
}
