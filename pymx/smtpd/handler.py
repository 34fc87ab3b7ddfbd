"""What the SMTP engine asks of a policy (MTA in, MSA, LMTP), and the facts it gives.

The engine owns syntax, order of commands, limits and timeouts; a `Handler` owns policy. A refusal is `SmtpError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pymx.mail.address import Address
from pymx.mail.envelope import Listener, Origin, Recipient
from pymx.proto.smtp.reply import Reply
from pymx.spool import Content


@dataclass(slots=True)
class SessionFacts:
    """One SMTP connection as policies see it; the engine keeps it up to date."""

    id: str
    listener: Listener
    peer_ip: str
    peer_port: int
    helo: str = ""
    esmtp: bool = False
    tls: str = ""
    account: str = ""  # address of the authenticated login, "" before AUTH
    early_talker: bool = False  # sent something before the greeting

    def origin(self) -> Origin:
        return Origin(
            listener=self.listener,
            session=self.id,
            peer_ip=self.peer_ip,
            helo=self.helo,
            esmtp=self.esmtp,
            tls=self.tls,
            account=self.account,
            early_talker=self.early_talker,
        )


@dataclass(frozen=True, slots=True)
class MailParameters:
    """Parameters of MAIL FROM (RFC 1870, 6152, 6531, 3461, 8689). `size` is None when not given."""

    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    requiretls: bool = False


class Transaction(Protocol):
    """One mail transaction, from MAIL to the reply after the data."""

    async def rcpt(self, recipient: Recipient) -> None:
        """Accept the recipient, or raise SmtpError."""

    def body(self, head: bytes) -> Callable[[bytes], None] | None:
        """The header block has come: who wants the octets of the body as they come, beginning with the empty line."""

    async def data(self, content: Content) -> Reply:
        """Take responsibility for the message: a 250 means it is durable. Raises SmtpError."""

    async def data_per_recipient(self, content: Content) -> list[Reply]:
        """As `data`, but one reply per accepted recipient in order (LMTP, RFC 2033 s. 4.2)."""


class Handler(Protocol):
    """A policy. One object serves all sessions of its listener."""

    async def connected(self, session: SessionFacts) -> None:
        """A peer is there; raise SmtpError (421 or 554) to turn it away."""

    async def authenticate(self, session: SessionFacts, login: str, password: str) -> str:
        """The account's address. Raises SmtpError (535, 454)."""

    async def mail(self, session: SessionFacts, mail_from: Address | None, parameters: MailParameters) -> Transaction:
        """Begin a transaction. Raises SmtpError."""

    def closed(self, session: SessionFacts, counts: Mapping[str, int]) -> None:
        """The connection ended; for the canonical log line."""
