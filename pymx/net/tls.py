"""TLS contexts of the server: which certificate for which name, their reload, and STARTTLS.

There may be several certificates: the one of the `[tls]` section, and every `NAME.pem` in `<data_dir>/tls` (key and
chain in one file, so that both change together). A client that names a host in its handshake (SNI, RFC 6066 s. 3) gets
the first that is good for that name, else the default: that of the `[tls]` section, else the one for the server's own
name. With `temporary` there is always one, self-signed if need be.

`Certificates` keeps the same two `SSLContext` objects for its whole life, so that listeners need not be told. They hold
no certificate themselves: each handshake is switched to an inner context, which `reload()` replaces. (Loading a new
chain into an old context would leave a chain of another key type in it.) What does not load leaves the old one in use.
`PemError` names file and setting.

`upgrade` is STARTTLS on either event loop. The trap: decrypted octets may reach `data_received` before `start_tls`
has returned, and an answer written then would go out in plain text into the TLS stream. So a protocol drops its
input buffer, writes its go-ahead, calls `upgrade`, and until that returns only collects what arrives (RFC 3207 s. 4.2:
what came in plain text is discarded; what came through TLS is not).
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pymx import log
from pymx.config.model import Config, Tls
from pymx.net.certificate import CertificateUnreadable, Facts, facts, read_certificate, self_signed

HANDSHAKE_TIMEOUT_S = 30.0
TEMPORARY_DAYS = 90
_ASYNCIO_BUFFER_OCTETS = 16384  # one TLS record; asyncio's own 256 KB is zero-filled for every connection

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_log = log.get("net")


class PemError(Exception):
    """Certificate or key can't be used. The text names file and setting."""


def certificates_directory(config: Config) -> Path:
    """Where certificates lie that are not the `[tls]` section's: NAME.pem, key and chain."""
    return Path(config.data_dir) / "tls"


def certificate_files(config: Config) -> list[Path]:
    """The files that certificates are read from, the default one first if it is known by its name."""
    named = [Path(config.tls.certificate)] if config.tls.certificate else []
    own = certificates_directory(config) / f"{config.hostname.lower()}.pem"
    found = _pem_files(certificates_directory(config), config.tls)
    return [*named, *sorted(found, key=lambda path: (path != own, path.name))]


def _pem_files(directory: Path | None, tls: Tls) -> list[Path]:
    """Those of `directory`, but for what the `[tls]` section has there."""
    try:
        found = list(directory.iterdir()) if directory else []
    except OSError:
        return []  # not there yet, or not ours to read: then the server can't use them either
    return sorted(
        path for path in found
        if path.suffix == ".pem" and path.name[0] != "." and str(path) not in (tls.certificate, tls.private_key)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A certificate in use. `private_key` may be the same file."""

    certificate: Path
    private_key: Path
    facts: Facts
    context: ssl.SSLContext
    temporary: bool = False


class _Names:
    """Which certificate for which name: the first that has it, exact names before wildcards."""

    def __init__(self, loaded: Sequence[Loaded]) -> None:
        self.loaded = tuple(loaded)
        self.default = loaded[0]
        self._by_name: dict[str, Loaded] = {}
        for one in loaded:
            for name in one.facts.names:
                self._by_name.setdefault(name, one)

    def find(self, name: str | None) -> Loaded:
        if not name:
            return self.default
        name = name.lower()
        return self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2]) or self.default


class Certificates:
    """The contexts made from the `[tls]` section and the files in `directory`; `hostname` is the server's name."""

    def __init__(self, tls: Tls, directory: Path | None = None, *, hostname: str = "", temporary: bool = False) -> None:
        self._tls = tls
        self._directory = directory
        self._hostname = hostname.lower()
        self._temporary = temporary
        self._context: ssl.SSLContext | None = None
        self._mx_context: ssl.SSLContext | None = None
        self._names: _Names | None = None

    @property
    def configured(self) -> bool:
        """Is there TLS at all? Settled at the first look, for listeners are made by it."""
        return bool(self._names or self._tls.certificate or self._temporary or _pem_files(self._directory, self._tls))

    def context(self) -> ssl.SSLContext:
        """For clients of our users. Raises PemError."""
        if self._context is None:
            self._context = self._outer()
            self._context.num_tickets = 1
        return self._context

    def mx_context(self) -> ssl.SSLContext:
        """For port 25: no session tickets, other servers hardly ever resume. Raises PemError."""
        if self._mx_context is None:
            self._mx_context = self._outer()
            self._mx_context.num_tickets = 0
            self._mx_context.options |= ssl.OP_NO_TICKET
        return self._mx_context

    def reload(self) -> None:
        """Read the files again for connections from now on. Raises PemError and keeps the old chains."""
        self._names = self._load()

    def in_use(self) -> tuple[Loaded, ...]:
        """All certificates, the default one first. Raises PemError."""
        if self._names is None:
            self._names = self._load()
        return self._names.loaded

    def find(self, host: str) -> Loaded:
        """The one that a client of that name gets. Raises PemError."""
        self.in_use()
        assert self._names is not None
        return self._names.find(host)

    def _outer(self) -> ssl.SSLContext:
        self.in_use()
        context = self._empty()

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            assert self._names is not None
            connection.context = self._names.find(name).context

        context.sni_callback = choose
        return context

    def _empty(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _MINIMUM[self._tls.minimum]
        context.options |= ssl.OP_NO_RENEGOTIATION
        return context

    def _load(self) -> _Names:
        loaded = []
        if self._tls.certificate or self._tls.private_key:
            loaded.append(self._load_configured())
        found = []
        for path in _pem_files(self._directory, self._tls):
            try:
                found.append(self._load_file(path))
            except PemError as e:
                # one of many: the others are needed all the same, and so is what it was until now
                _log.error("certificate_unusable", path=path, reason=str(e))
                found += [old for old in (self._names.loaded if self._names else ()) if old.certificate == path]
        own = [one for one in found if one.facts.covers(self._hostname)]
        if not loaded and not own and self._temporary:
            loaded.append(self._load_temporary())
        # the server's own name first, it is the default where the settings name none
        loaded += [*own, *(one for one in found if one not in own)]
        if not loaded:
            if _pem_files(self._directory, self._tls):
                raise PemError(f"no file in {self._directory} has a certificate that can be used")
            raise PemError("[tls] certificate is empty")
        return _Names(loaded)

    def _load_configured(self) -> Loaded:
        certificate, key = self._tls.certificate, self._tls.private_key
        for setting, path in (("certificate", certificate), ("private_key", key)):
            if not path:
                raise PemError(f"[tls] {setting} is empty")
            try:
                Path(path).read_bytes()
            except OSError as e:
                raise PemError(f"[tls] {setting}: can't read {path}: {e.strerror}") from None
        context = self._empty()
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
            return Loaded(Path(certificate), Path(key), read_certificate(Path(certificate)), context)
        except ssl.SSLError as e:
            if e.reason == "KEY_VALUES_MISMATCH":
                raise PemError(f"[tls] private_key: {key} is not the key of {certificate}") from None
            raise PemError(f"[tls] certificate {certificate} with private_key {key}: {e.reason or e}") from None
        except ValueError as e:
            raise PemError(f"[tls] private_key: {key}: {e}") from None
        except CertificateUnreadable as e:
            raise PemError(f"[tls] certificate: {e}") from None

    def _load_file(self, path: Path) -> Loaded:
        context = self._empty()
        try:
            context.load_cert_chain(path, password=_no_password)
            return Loaded(path, path, read_certificate(path), context)
        except ssl.SSLError as e:
            reason = "is not the key of this certificate" if e.reason == "KEY_VALUES_MISMATCH" else e.reason or str(e)
            raise PemError(f"{path}: {reason}") from None
        except OSError as e:
            raise PemError(f"can't read {path}: {e.strerror}") from None
        except (ValueError, CertificateUnreadable) as e:
            raise PemError(f"{path}: {e}") from None

    def _load_temporary(self) -> Loaded:
        """The one that was there before, or a new one that nobody else has."""
        for old in self._names.loaded if self._names is not None else ():
            if old.temporary:
                return old
        key, certificate = self_signed([self._hostname], days=TEMPORARY_DAYS)
        context = self._empty()
        try:
            # ssl reads keys from files only; it is gone again before anybody connects
            with tempfile.NamedTemporaryFile(prefix=".temporary", dir=self._directory) as file:
                file.write(key + certificate)
                file.flush()
                context.load_cert_chain(file.name)
        except OSError as e:
            raise PemError(f"can't write a temporary certificate: {e.filename}: {e.strerror}") from None
        path = Path("(temporary)")
        return Loaded(path, path, facts(certificate, path), context, temporary=True)


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


def why(error: Exception) -> str:
    """Why a handshake failed, for the log: "unsupported protocol", "Connection reset by peer"."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or str(error) or "the peer hung up"


def describe(transport: asyncio.BaseTransport) -> str:
    """ "TLSv1.3 TLS_AES_256_GCM_SHA384", or "" on a connection without TLS."""
    connection = transport.get_extra_info("ssl_object")
    if connection is None:
        return ""
    cipher = connection.cipher()
    return f"{connection.version()} {cipher[0]}" if cipher else str(connection.version())
