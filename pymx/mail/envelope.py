"""The envelope of a message in transit and where it came from (RFC 5321 s. 2.3.1, RFC 3461)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from pymx.mail.address import Address


class Listener(enum.Enum):
    """The kind of door a message came through (RFC 5598 roles)."""

    SMTP = "smtp"
    SUBMISSION = "submission"
    LMTP = "lmtp"
    LOCAL = "local"  # made here: DSNs, notices


@dataclass(frozen=True, slots=True)
class Origin:
    """Facts about the session that brought the message; `account` is the authenticated login's address or ""."""

    listener: Listener = Listener.LOCAL
    session: str = ""
    peer_ip: str = ""
    helo: str = ""
    esmtp: bool = True
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" without TLS
    account: str = ""
    peer_name: str = ""  # forward-confirmed name of peer_ip, or ""
    early_talker: bool = False  # the peer sent something before the greeting; not kept in the queue
    sender_proven: bool = False  # SPF or DMARC passed for the domain of MAIL FROM

    @property
    def protocol(self) -> str:
        """The "with" word of a Received field (RFC 3848)."""
        if self.listener is Listener.LMTP:
            return "LMTP" + ("S" if self.tls else "") + ("A" if self.account else "")
        if not self.esmtp:
            return "SMTP"
        return "ESMTP" + ("S" if self.tls else "") + ("A" if self.account else "")


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO. `notify` holds NEVER, or some of SUCCESS FAILURE DELAY; empty means FAILURE and DELAY (RFC 3461)."""

    address: Address
    notify: frozenset[str] = frozenset()
    orcpt: str = ""  # "rfc822;user@example.com" as the client gave it, xtext decoded


@dataclass(frozen=True, slots=True)
class Envelope:
    """`mail_from` None is the null reverse-path. `body` is 7BIT, 8BITMIME or BINARYMIME."""

    mail_from: Address | None
    recipients: tuple[Recipient, ...]
    origin: Origin = field(default_factory=Origin)
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""  # FULL, HDRS or "" (RFC 3461 s. 4.3)
    envid: str = ""
    requiretls: bool = False  # RFC 8689: over authenticated TLS all the way, or not at all
    source_address: str = ""  # of ours, to send from, and no other; "" = as the settings have it

    def with_recipients(self, recipients: tuple[Recipient, ...]) -> Envelope:
        return replace(self, recipients=recipients)
