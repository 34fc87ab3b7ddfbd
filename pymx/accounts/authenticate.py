"""Logins: passwords checked off the loop, in bounded pools, and remembered for a while.

The stored hash is asked for at every login (through the directory's cache, which pymxctl invalidates), and what is
remembered is an HMAC over login, password and that hash under a random key of this process: a changed or removed
password stops working at once, and memory holds nothing to log in with. Checks of the same three that run at the same
time are one check, so a client that opens five connections costs one bcrypt.

Without a user of that name a password is checked all the same, against the hash seen last (or one of the configured
cost), and the outcome is not looked at: the answer takes as long as for a wrong password.

Fails with `AuthenticationFailed` (which the peer hears without the reason), and for the moment with
`AuthenticationUnavailable`: too many checks waiting, or no answer from the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pymx import log, metrics
from pymx.accounts import passwords
from pymx.accounts.account import Account, AuthenticationFailed, AuthenticationUnavailable, DirectoryUnavailable
from pymx.accounts.directory import Directory
from pymx.accounts.passwords import Kind, Stored
from pymx.config.model import Accounts

_MAX_LOGIN_OCTETS = 512
_MAX_REMEMBERED = 10_000


class Authenticator:
    """One per process; to be made after a fork (it has threads) and closed."""

    def __init__(
        self, directory: Directory, settings: Accounts, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}  # digest → until when
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._pool = ThreadPoolExecutor(settings.password_threads, thread_name_prefix="password")
        # 64 MB each by Dovecot's defaults: one at a time
        self._argon2_pool = ThreadPoolExecutor(1, thread_name_prefix="argon2")
        self._last_seen = passwords.dummy(settings.bcrypt_cost)
        self._log = log.get("accounts")

    def close(self) -> None:
        """End the threads; checks that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._argon2_pool.shutdown(wait=True, cancel_futures=True)

    async def login(self, login: str, password: str, *, peer_ip: str) -> Account:
        """The account that `login` (an address, in any case) names. Raises AuthenticationFailed, or
        AuthenticationUnavailable."""
        try:
            account = await self._login(login.strip().lower(), password)
        except AuthenticationFailed as e:
            metrics.add("logins_failed")
            self._log.info("login_failed", account=login[:_MAX_LOGIN_OCTETS], peer_ip=peer_ip, reason=e.reason)
            raise
        except AuthenticationUnavailable as e:
            metrics.add("logins_deferred")
            self._log.warning("login_deferred", account=login[:_MAX_LOGIN_OCTETS], peer_ip=peer_ip, reason=e.reason)
            raise
        metrics.add("logins")
        return account

    async def _login(self, login: str, password: str) -> Account:
        try:
            account, stored = await self._look_up(login)
            if account is None or stored is None:
                await self._check(login, password, "", self._last_seen)
                raise AuthenticationFailed("no such user")
            if not await self._fits(account.email, password, stored):
                raise AuthenticationFailed("wrong password")
            # while the check ran, the user may have been removed or given another password
            account, now_stored = await self._look_up(login)
        except DirectoryUnavailable as e:
            raise AuthenticationUnavailable(e.reason) from None
        if account is None or now_stored != stored:
            raise AuthenticationFailed("the password was changed meanwhile")
        return account

    async def _look_up(self, login: str) -> tuple[Account | None, str | None]:
        if len(login) > _MAX_LOGIN_OCTETS:
            return None, None
        account = await self._directory.account(login)
        return account, await self._directory.password_hash(login) if account else None

    async def _fits(self, email: str, password: str, text: str) -> bool:
        digest = self._digest(email, password, text)
        until = self._remembered.get(digest)
        if until is not None and self._clock() < until:
            return True
        try:
            stored = passwords.parse(text)
        except passwords.UnsupportedScheme as e:
            self._log.error("password_scheme_unsupported", account=email, reason=f"stored with {e}")
            await self._check(email, password, text, self._last_seen)
            raise AuthenticationFailed(f"the stored password has an unsupported scheme: {e}") from None
        self._last_seen = stored
        fits = await self._check(email, password, text, stored)
        if fits:
            self._remember(digest)
        return fits

    async def _check(self, login: str, password: str, text: str, stored: Stored) -> bool:
        """One check in a pool, shared by all who ask for the same one while it runs."""
        digest = self._digest(login, password, text)
        running = self._running.get(digest)
        if running is None:
            if len(self._running) >= self._settings.password_threads + self._settings.password_queue:
                raise AuthenticationUnavailable("too many password checks are waiting")
            pool = self._argon2_pool if stored.kind is Kind.ARGON2 else self._pool
            running = asyncio.get_running_loop().run_in_executor(pool, passwords.verify, stored, password)
            self._running[digest] = running
            running.add_done_callback(lambda _: self._running.pop(digest, None))
        # a client that hangs up must not take the check from the others
        return await asyncio.shield(running)

    def _digest(self, *fields: str) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for field in fields:
            octets = field.encode("utf-8", "surrogateescape")
            mac.update(len(octets).to_bytes(8, "big") + octets)  # "ab","c" is not "a","bc"
        return mac.digest()

    def _remember(self, digest: bytes) -> None:
        self._remembered.pop(digest, None)
        if len(self._remembered) >= _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = self._clock() + self._settings.login_cache_s
