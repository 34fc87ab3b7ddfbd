"""A certificate by ACME (RFC 8555) with http-01 challenges; `acme` does the protocol.

Blocking and 20 MB heavier than the daemon likes: only processes that end soon import this (`pymxctl cert`, also as the
child that the runner's timer starts). The proofs are put into `challenges_directory`, where `pymx.web` in the daemon
serves them.

The account's key is made at the first use and kept in `<data_dir>/acme`, 0600; an account is found again by it. A name
that the authority refuses or can't reach is left out and the order is made again for the others, unless it is one that
is required. `IssueFailed` says what was wrong, and when the authority will hear of it again (`not_before`), if it said
so; until `files.install` has replaced it, the old certificate stays where it is.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import requests
from acme import challenges, client, errors, messages
from acme.crypto_util import make_csr
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy import errors as jose_errors
from josepy import jwa, jwk

from pymx import __version__
from pymx.certs import files
from pymx.certs.plan import Wanted
from pymx.config.model import Acme
from pymx.net.certificate import Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUNDS = 4  # orders for one certificate, each without the names that failed
_NONCE_TRIES = 6
_REQUEST_S = 45
_STALE_S = 86_400.0
_RETRY_AFTER = re.compile(r"retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)", re.IGNORECASE)
_RSA_BITS = 2048


class IssueFailed(Exception):
    """No certificate. `left_out` are names with the reason; `not_before`: Unix time, 0 = the authority did not say."""

    def __init__(self, reason: str, *, left_out: dict[str, str] | None = None, not_before: float = 0.0) -> None:
        super().__init__(reason)
        self.left_out = left_out or {}
        self.not_before = not_before


@dataclass(frozen=True, slots=True)
class Issued:
    """The new certificate, in its place; `left_out` are the names that are not in it, with the reason."""

    facts: Facts
    left_out: dict[str, str] = field(default_factory=dict)


class _NamesRefused(Exception):
    """Some names of an order failed."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names


class _Network(client.ClientNetwork):
    """Of `acme`, but patient with nonces (RFC 8555 s. 6.5: "SHOULD retry"), and with an ear for Retry-After."""

    retry_at = 0.0

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(_NONCE_TRIES):
            try:
                return self._post_once(*args, **kwargs)
            except messages.Error as e:
                if e.code != "badNonce":
                    raise
        return self._post_once(*args, **kwargs)

    def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        response = super()._send_request(method, url, *args, **kwargs)
        if response.status_code in (429, 503) and "Retry-After" in response.headers:
            self.retry_at = client.ClientV2.retry_after(response, 3600).timestamp()
        return response


class Authority:
    """The certificate authority, with our account there. Raises IssueFailed."""

    def __init__(self, settings: Acme, data_dir: Path) -> None:
        self._settings = settings
        self._data_dir = data_dir
        key = jwk.JWKEC.load(self._account_key())
        self._net = _Network(
            key=key,
            alg=jwa.ES256,
            # requests takes a file with roots as well
            verify_ssl=cast(bool, settings.ca_file or True),
            user_agent=f"pymx/{__version__}",
            timeout=_REQUEST_S,
        )
        self._key = key
        with self._told_apart():
            directory = client.ClientV2.get_directory(settings.directory_url, self._net)
        self._client = client.ClientV2(directory, self._net)

    def close(self) -> None:
        self._net.session.close()

    def issue(self, wanted: Wanted, *, new_key: bool = False) -> Issued:
        """Get a certificate and install it."""
        key = None if new_key or not self._settings.keep_key else self._old_key(wanted.name)
        key = key or _new_key(self._settings.key)
        names, left_out = list(wanted.names), dict[str, str]()
        if self._net.account is None:
            with self._told_apart():
                self._register()
        for _ in range(_ROUNDS):
            try:
                with self._told_apart():
                    chain = self._order(key, names)
                break
            except _NamesRefused as e:
                left_out |= e.names
                names = [name for name in names if name not in e.names]
                lost = wanted.required & e.names.keys()
                if lost or not names:
                    reason = "; ".join(f"{name}: {left_out[name]}" for name in sorted(lost or left_out))
                    raise IssueFailed(reason, left_out=left_out, not_before=self._net.retry_at) from None
        else:
            raise IssueFailed("ever more names were refused", left_out=left_out)
        try:
            return Issued(files.install(self._data_dir, wanted.name, key, chain), left_out)
        except files.NotInstalled as e:
            raise IssueFailed(f"what came can't be used: {e}", left_out=left_out) from None

    def renewal_time(self, path: Path) -> float:
        """When the authority would have that certificate renewed (RFC 9773); 0 = it does not say."""
        try:
            pem = path.read_bytes()
            when, _ = self._client.renewal_time(pem[pem.index(b"-----BEGIN CERTIFICATE") :])
        except (OSError, ValueError, errors.Error, requests.RequestException):
            return 0.0  # only a hint: the dates decide
        return when.timestamp() if when is not None else 0.0

    def _account_key(self) -> bytes:
        # an account is one authority's
        name = "account-" + sha256(self._settings.directory_url.encode()).hexdigest()[:12] + ".pem"
        path = self._data_dir / "acme" / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pem = _new_key("ec")
        except OSError as e:
            raise IssueFailed(f"{path}: {e.strerror}") from None
        try:
            files.write(path, pem)
        except OSError as e:
            raise IssueFailed(f"{e.filename}: {e.strerror}") from None
        return pem

    def _register(self) -> None:
        if self._client.external_account_required():
            raise IssueFailed("this authority wants accounts that were made elsewhere (external account binding)")
        contact = (f"mailto:{self._settings.contact}",) if self._settings.contact else ()
        new = messages.NewRegistration(contact=contact, terms_of_service_agreed=True)
        try:
            self._client.new_account(new)
        except errors.ConflictError as e:  # known by its key already
            self._net.account = messages.RegistrationResource(uri=e.location, body=messages.Registration())

    def _old_key(self, name: str) -> bytes | None:
        """The key in use, if it is of the kind that is wanted now."""
        pem = files.private_key(files.place(self._data_dir, name))
        if pem is None:
            return None
        key = serialization.load_pem_private_key(pem, None)
        kind = ec.EllipticCurvePrivateKey if self._settings.key == "ec" else rsa.RSAPrivateKey
        return pem if isinstance(key, kind) else None

    def _order(self, key: bytes, names: Sequence[str]) -> bytes:
        """The chain, PEM. Raises _NamesRefused and what `acme` raises."""
        # acme counts in local time without a zone
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=self._settings.timeout_s)
        try:
            order = self._client.new_order(make_csr(key, list(names)))
        except messages.Error as e:
            raise _refused(e, names) from e
        put: list[Path] = []
        try:
            for authorization in order.authorizations:
                put += self._answer(authorization)
            self._settle(order, deadline)
            order = self._client.poll_authorizations(order, deadline)
            order = self._client.finalize_order(order, deadline)
        except errors.ValidationError as e:
            raise _NamesRefused({a.body.identifier.value: _why(a) for a in e.failed_authzrs}) from None
        except messages.Error as e:
            raise _refused(e, names) from e
        except errors.IssuanceError as e:
            raise _refused(e.error, names) from e
        finally:
            for path in put:
                path.unlink(missing_ok=True)
        return order.fullchain_pem.encode()

    def _settle(self, order: messages.OrderResource, deadline: datetime.datetime) -> None:
        """Wait until the authority has looked at all proofs: at first in short steps, which `acme` has not."""
        pending, wait_s = list(order.authorizations), 0.2
        while pending and datetime.datetime.now() < deadline:
            pending = [a for a in pending if self._client.poll(a)[0].body.status == messages.STATUS_PENDING]
            if pending:
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)

    def _answer(self, authorization: messages.AuthorizationResource) -> list[Path]:
        """Put the proof for one name where it is looked for, and say so. Returns the file."""
        if authorization.body.status == messages.STATUS_VALID:
            return []  # proven a while ago
        for body in authorization.body.challenges:
            if isinstance(body.chall, challenges.HTTP01):
                response, proof = body.chall.response_and_validation(self._key)
                path = files.challenges_directory(self._data_dir) / body.chall.encode("token")
                files.write(path, proof.encode())
                self._client.answer_challenge(body, response)
                return [path]
        raise _NamesRefused({authorization.body.identifier.value: "the authority offers no http-01 challenge"})

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """What the library and the network raise, in words."""
        try:
            yield
        except messages.Error as e:
            raise IssueFailed(_words(e), not_before=max(self._net.retry_at, _retry_after(e))) from None
        except errors.TimeoutError:
            raise IssueFailed(f"not done within {self._settings.timeout_s} s") from None
        except requests.RequestException as e:
            raise IssueFailed(f"{self._settings.directory_url}: {_root(e)}") from None
        except (errors.Error, jose_errors.Error) as e:
            status = getattr(e.args[0], "status_code", "") if e.args else ""
            reason = f"status {status}" if status else f"{type(e).__name__}: {e}"
            raise IssueFailed(f"{self._settings.directory_url}: {reason}", not_before=self._net.retry_at) from None
        except OSError as e:
            raise IssueFailed(f"{e.filename}: {e.strerror}") from None


def clear_challenges(data_dir: Path, now: float) -> None:
    """Remove what killed processes left behind."""
    with contextlib.suppress(OSError):
        for path in files.challenges_directory(data_dir).iterdir():
            if path.stat().st_mtime < now - _STALE_S:
                path.unlink()


def _new_key(kind: str) -> bytes:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "rsa":
        key = rsa.generate_private_key(65_537, _RSA_BITS)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _refused(error: messages.Error, names: Sequence[str]) -> Exception:
    """The names that the authority objects to, or the error itself when it is about something else."""
    about = {
        sub.identifier.value: _words(sub)
        for sub in error.subproblems or ()
        if sub.identifier is not None and sub.identifier.value in names
    }
    if not about and error.code in ("rejectedIdentifier", "caa", "dns", "unauthorized"):
        # not every authority sends subproblems, but most name the name
        about = {name: _words(error) for name in names if f'"{name}"' in (error.detail or "")}
    return _NamesRefused(about) if about else error


def _why(authorization: messages.AuthorizationResource) -> str:
    found = [_words(c.error) for c in authorization.body.challenges if c.error is not None]
    return "; ".join(found) or "refused"


def _words(error: messages.Error) -> str:
    return error.detail or error.description or error.typ or "refused"


def _retry_after(error: messages.Error) -> float:
    """Let's Encrypt says it in its text: "retry after 2026-01-31 12:00:00 UTC"."""
    if error.code != "rateLimited":
        return 0.0
    found = _RETRY_AFTER.search(error.detail or "")
    if found is None:
        return time.time() + 3600
    when = datetime.datetime.fromisoformat(found[1].replace(" ", "T"))
    return when.replace(tzinfo=datetime.UTC).timestamp()


def _root(error: BaseException) -> BaseException:
    """requests wraps urllib3's wraps of the reason."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
