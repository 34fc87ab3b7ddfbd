"""One SMTP or LMTP service: a policy and its settings, shared by the sessions of a listener.

`factory` makes the session of a new connection. What is the same for all of them (greeting, EHLO replies, the command
table) is made here once.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from pymx.config.model import Smtp
from pymx.mail.envelope import Listener
from pymx.net.listener import Caps
from pymx.net.sessions import Sessions
from pymx.proto.sasl.mechanisms import MECHANISMS
from pymx.smtpd.commands import LMTP_COMMANDS, SMTP_COMMANDS
from pymx.smtpd.handler import Handler
from pymx.smtpd.session import Session


class Engine:
    """What the sessions of one listener share. `implicit_tls` says that connections come in TLS already."""

    def __init__(
        self,
        handler: Handler,
        *,
        listener: Listener,
        hostname: str,
        smtp: Smtp,
        max_message_octets: int,
        spool_dir: Path,
        sessions: Sessions,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        auth: bool = False,
        repair_newlines: bool = False,
        caps: Caps | None = None,
    ) -> None:
        self.handler = handler
        self.listener = listener
        self.lmtp = listener is Listener.LMTP
        self.requires_tls_onward = not self.lmtp  # REQUIRETLS (RFC 8689); only offered inside TLS
        self.smtp = smtp
        self.max_message_octets = max_message_octets
        self.spool_dir = spool_dir
        self.sessions = sessions
        self.tls = None if implicit_tls else tls
        self.implicit_tls = implicit_tls
        self.auth = auth
        self.repair_newlines = repair_newlines
        self.caps = caps
        self.commands = LMTP_COMMANDS if self.lmtp else SMTP_COMMANDS
        self.greeting = f"220 {hostname} {'LMTP' if self.lmtp else 'ESMTP'} pymx\r\n".encode("ascii")
        self.helo = f"250 {hostname}\r\n".encode("ascii")
        self.ehlo = self._ehlo(hostname, in_tls=False)
        self.ehlo_in_tls = self._ehlo(hostname, in_tls=True)

    def factory(self) -> Session:
        """The protocol factory for `pymx.net.listener.Server`."""
        return Session(self)

    def _ehlo(self, hostname: str, *, in_tls: bool) -> bytes:
        lines = [
            hostname,
            "PIPELINING",
            f"SIZE {self.max_message_octets}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "CHUNKING",
        ]
        if self.tls is not None and not in_tls:
            lines.append("STARTTLS")
        if self.requires_tls_onward and in_tls:
            lines.append("REQUIRETLS")
        if self.auth and in_tls:
            lines.append("AUTH " + " ".join(MECHANISMS))
        return "".join(f"250{'-' if line is not lines[-1] else ' '}{line}\r\n" for line in lines).encode("ascii")
