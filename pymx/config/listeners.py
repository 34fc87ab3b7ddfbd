"""What the configuration listens at: one table for binding, checking and examining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pymx.config.model import Config


class Listener(NamedTuple):  # not a dataclass: `pymxctl` would import those for nothing else
    """`service` is the name that systemd's FileDescriptorName= has for it; `specs` are addresses as in the setting."""

    service: str
    setting: str
    specs: Sequence[str]


def listeners(config: Config) -> tuple[Listener, ...]:
    return (
        Listener("smtp", "[smtp] listen", config.smtp.listen),
        Listener("submissions", "[submission] listen_tls", config.submission.listen_tls),
        Listener("submission", "[submission] listen_starttls", config.submission.listen_starttls),
        Listener("imaps", "[imap] listen_tls", config.imap.listen_tls),
        Listener("imap", "[imap] listen_starttls", config.imap.listen_starttls),
        Listener("lmtp", "[lmtp] listen", config.lmtp.listen),
        Listener("status", "[status] listen", config.status.listen),
        Listener("http", "[web] listen", config.web.listen),
        Listener("https", "[web] listen_tls", config.web.listen_tls),
    )


def endpoints(specs: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(address, port) of the TCP ones among checked `specs`; an IPv6 address without its brackets."""
    for spec in specs:
        if not spec.startswith("unix:"):
            host, _, port = spec.rpartition(":")
            yield host.strip("[]"), int(port)
