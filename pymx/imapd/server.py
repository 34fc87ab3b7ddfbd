"""What all IMAP sessions of a listener share: the store, the authenticator, the settings, and the protocol factory."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from pymx import log
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.limits import LoginLimits
from pymx.config.model import Imap, Mail
from pymx.imapd import capability
from pymx.imapd.namespace import Namespace
from pymx.imapd.session import Session
from pymx.imapd.sink import AppendSink
from pymx.ms.store import Store
from pymx.net.listener import Caps
from pymx.net.sessions import Sessions


class ImapServer:
    """One listener's sessions are made by `factory`.

    `implicit_tls`: the listener speaks TLS from the first octet. Without it and with `tls`, STARTTLS is offered and
    nobody may log in before it; without any certificate only clients on this machine may.
    `spool_dir` takes messages being appended (default: the root of the mail).
    """

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        *,
        imap: Imap,
        mail: Mail,
        hostname: str,
        tls: ssl.SSLContext | None,
        implicit_tls: bool,
        caps: Caps,
        sessions: Sessions,
        limits: LoginLimits | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        self.store = store
        self.authenticator = authenticator
        self.imap = imap
        self.mail = mail
        self.hostname = hostname
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.caps = caps
        self.sessions = sessions
        self.limits = limits
        self.spool_dir = spool_dir or Path(mail.root)
        self.namespace = Namespace(mail.prefix, store.separator)
        self.kept_octets = 0  # see Client.keep_message
        self.running_commands = 0
        self.log = log.get("imapd")
        self.capabilities = capability.after_login(mail.max_message_octets)

    def factory(self) -> asyncio.Protocol:
        return Session(self)

    def sink(self) -> AppendSink:
        """A new place for a message that is being appended."""
        imap = self.imap
        return AppendSink(
            self.spool_dir, memory_octets=imap.append_memory_octets, max_header_octets=imap.max_header_octets
        )

    def login_allowed(self, peer_ip: str, *, secure: bool) -> bool:
        """Whether a password may be sent now."""
        if secure:
            return True
        return self.tls is None and (not peer_ip or peer_ip.startswith("127.") or peer_ip == "::1")

    def greeting_capabilities(self, peer_ip: str, *, secure: bool) -> bytes:
        return capability.before_login(
            starttls=self.tls is not None and not secure,
            login_allowed=self.login_allowed(peer_ip, secure=secure),
        )
