"""What mail clients are told: the server's services as they are configured, encrypted ones first.

Only what a client may use without harm is told: implicit TLS before STARTTLS (RFC 8314 s. 3), nothing without TLS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymx.config.listeners import endpoints
from pymx.config.model import Config


@dataclass(frozen=True, slots=True)
class Service:
    """`implicit_tls`: TLS from the first octet, else STARTTLS."""

    host: str
    port: int
    implicit_tls: bool


@dataclass(frozen=True, slots=True)
class Services:
    imap: tuple[Service, ...]
    submission: tuple[Service, ...]


def services(config: Config) -> Services:
    """In the order in which clients should try them."""
    imap, submission = config.imap, config.submission
    return Services(
        _services(config.hostname, imap.listen_tls, imap.listen_starttls),
        _services(config.hostname, submission.listen_tls, submission.listen_starttls),
    )


def _services(host: str, listen_tls: Sequence[str], listen_starttls: Sequence[str]) -> tuple[Service, ...]:
    found = [Service(host, port, True) for port in _ports(listen_tls)]
    return (*found, *(Service(host, port, False) for port in _ports(listen_starttls)))


def _ports(specs: Sequence[str]) -> list[int]:
    """Each once: an address per IP version is the same service."""
    return list(dict.fromkeys(port for _host, port in endpoints(specs)))
