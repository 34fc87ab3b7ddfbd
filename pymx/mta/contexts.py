"""TLS as a client of other servers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field


@dataclass(slots=True)
class Contexts:
    """TLS for clients. Made once: a context costs milliseconds."""

    _opportunistic: ssl.SSLContext | None = None
    _verified: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def opportunistic(self) -> ssl.SSLContext:
        """Any certificate (RFC 7435): without TLS it would go in the clear."""
        if self._opportunistic is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            # with keys that OpenSSL's default level thinks too short it would go in the clear, too
            context.set_ciphers("DEFAULT:!aNULL:!eNULL:@SECLEVEL=1")
            context.options |= ssl.OP_NO_TICKET  # servers of one big provider broke on tickets
            self._opportunistic = context
        return self._opportunistic

    def verified(self, ca_file: str) -> ssl.SSLContext:
        """The host's name in a certificate of a trusted root. Raises OSError for an unreadable `ca_file`."""
        context = self._verified.get(ca_file)
        if context is None:
            context = ssl.create_default_context(cafile=ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_TICKET
            self._verified[ca_file] = context
        return context
