"""TLS contexts of the server, their reload, and STARTTLS.

`Certificates` keeps the same `SSLContext` objects for its whole life: `reload()` puts a new chain into them, so that
listeners need not be told. A chain that does not load leaves the old one in use. `PemError` names file and setting.

`upgrade` is STARTTLS on either event loop. The trap: decrypted octets may reach `data_received` before `start_tls`
has returned, and an answer written then would go out in plain text into the TLS stream. So a protocol drops its
input buffer, writes its go-ahead, calls `upgrade`, and until that returns only collects what arrives (RFC 3207 s. 4.2:
what came in plain text is discarded; what came through TLS is not).
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
from pathlib import Path

from pymx.config.model import Tls

HANDSHAKE_TIMEOUT_S = 30.0
_ASYNCIO_BUFFER_OCTETS = 16384  # one TLS record; asyncio's own 256 KB is zero-filled for every connection

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class PemError(Exception):
    """Certificate or key can't be used. The text names file and setting."""


class Certificates:
    """The contexts made from the `[tls]` section."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._mx_context: ssl.SSLContext | None = None

    @property
    def configured(self) -> bool:
        return bool(self._tls.certificate)

    def context(self) -> ssl.SSLContext:
        """For clients of our users. Raises PemError."""
        if self._context is None:
            self._context = self._build()
            self._context.num_tickets = 1
        return self._context

    def mx_context(self) -> ssl.SSLContext:
        """For port 25: no session tickets, other servers hardly ever resume. Raises PemError."""
        if self._mx_context is None:
            self._mx_context = self._build()
            self._mx_context.num_tickets = 0
            self._mx_context.options |= ssl.OP_NO_TICKET
        return self._mx_context

    def reload(self) -> None:
        """Read the files again for connections from now on. Raises PemError and keeps the old chain."""
        self._build()  # the rehearsal: load_cert_chain may leave a context half changed when it fails
        for context in (self._context, self._mx_context):
            if context is not None:
                self._load(context)

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _MINIMUM[self._tls.minimum]
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._tls.certificate, self._tls.private_key
        for setting, path in (("certificate", certificate), ("private_key", key)):
            if not path:
                raise PemError(f"[tls] {setting} is empty")
            try:
                Path(path).read_bytes()
            except OSError as e:
                raise PemError(f"[tls] {setting}: can't read {path}: {e.strerror}") from None
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as e:
            if e.reason == "KEY_VALUES_MISMATCH":
                raise PemError(f"[tls] private_key: {key} is not the key of {certificate}") from None
            raise PemError(f"[tls] certificate {certificate} with private_key {key}: {e.reason or e}") from None
        except ValueError as e:
            raise PemError(f"[tls] private_key: {key}: {e}") from None


def _no_password() -> bytes:
    raise ValueError("the key is encrypted; store it without a pass phrase")


def apply_asyncio_tls_buffer() -> None:
    """Cut the buffer that asyncio gives to every TLS connection. Call before serving on the asyncio loop."""
    asyncio.sslproto.SSLProtocol.max_size = _ASYNCIO_BUFFER_OCTETS


async def upgrade(
    protocol: asyncio.Protocol, transport: asyncio.Transport, context: ssl.SSLContext
) -> asyncio.Transport:
    """Start TLS on a connection whose go-ahead has been written. Raises OSError (ssl.SSLError is one).

    After an error the transport is closed and the protocol hears nothing more of it.
    """
    transport.pause_reading()
    try:
        upgraded = await asyncio.get_running_loop().start_tls(
            transport, protocol, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
    except RuntimeError as e:  # the loops' way of saying that the transport is closed already
        raise ConnectionResetError(str(e)) from None
    if upgraded is None:
        raise ConnectionResetError("connection lost during the TLS handshake")
    return upgraded


def describe(transport: asyncio.BaseTransport) -> str:
    """ "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" on a connection without TLS."""
    connection = transport.get_extra_info("ssl_object")
    if connection is None:
        return ""
    cipher = connection.cipher()
    return f"{connection.version()} {cipher[0]}" if cipher else str(connection.version())
