"""Logins: passwords checked off the loop, in bounded pools, and remembered for a while.

The stored hash is asked for at every login (through the directory's cache, which pymxctl invalidates), and what is
remembered is an HMAC over login, password and that hash under a random key of this process: a changed or removed
password stops working at once, and memory holds nothing to log in with. Checks of the same three that run at the same
time are one check, so a client that opens five connections costs one bcrypt.

Without a user of that name a password is checked all the same, against the hash seen last (or one of the configured
cost), and the outcome is not looked at: the answer takes as long as for a wrong password. With limits both come at the
same moment after the question, unless the machine is too slow for that.

Limits (pymx.accounts.limits): an address that guesses is banned, and every wrong password is answered later than the
last. One address has one check running at a time; addresses that somebody logged in from lately go first.

When a password is found changed or its user gone, `ended` is called with the account, so that sessions that began with
it can end: at `recheck` (after a change by pymxctl, and now and then for changes made in the database), or when the
account is logged in to with the new one.

Fails with `AuthenticationFailed` (which the peer hears without the reason), and for the moment with
`AuthenticationUnavailable`: banned, too many checks waiting, or no answer from the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pymx import log, metrics
from pymx.accounts import passwords
from pymx.accounts.account import (
    Account,
    AuthenticationBanned,
    AuthenticationFailed,
    AuthenticationUnavailable,
    DirectoryUnavailable,
    StoredPasswordUnusable,
)
from pymx.accounts.directory import Directory
from pymx.accounts.limits import LoginLimits, Standing
from pymx.accounts.passwords import Kind, Stored
from pymx.accounts.turns import Crowded, Turns
from pymx.config.model import Accounts

_MAX_LOGIN_OCTETS = 512
_MAX_REMEMBERED = 10_000


class Authenticator:
    """One per process; to be made after a fork (it has threads) and closed."""

    def __init__(
        self,
        directory: Directory,
        settings: Accounts,
        *,
        limits: LoginLimits | None = None,
        ended: Callable[[str], None] = lambda account: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._limits = limits
        self._ended = ended
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}  # digest → until when
        self._in_force: dict[str, bytes] = {}  # account → digest of what was stored at its last login
        self._running: dict[bytes, asyncio.Task[bool]] = {}
        self._turns = Turns(settings.password_threads, settings.password_queue)
        self._pool = ThreadPoolExecutor(settings.password_threads, thread_name_prefix="password")
        # 64 MB each by Dovecot's defaults: one at a time
        self._argon2_pool = ThreadPoolExecutor(1, thread_name_prefix="argon2")
        self._last_seen = passwords.dummy(settings.bcrypt_cost)
        self._log = log.get("accounts")

    def close(self) -> None:
        """End the threads; checks that have not begun are dropped."""
        for task in self._running.values():
            task.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._argon2_pool.shutdown(wait=True, cancel_futures=True)

    async def login(self, login: str, password: str, *, peer_ip: str) -> Account:
        """The account that `login` (an address, in any case) names. Raises AuthenticationFailed, or
        AuthenticationUnavailable."""
        shown = login[:_MAX_LOGIN_OCTETS]
        standing = Standing("")
        began = time.monotonic()
        try:
            if self._limits is not None:
                standing = await self._limits.admit(peer_ip, login)
                _refuse_banned(standing)
            account, stored = await self._login(login.strip().lower(), password, standing)
        except AuthenticationFailed as e:
            metrics.add("logins_failed")
            self._log.info("login_failed", account=shown, peer_ip=peer_ip, reason=e.reason)
            if self._limits is not None:
                wait_s = await self._limits.failed(standing, login, password, peer_ip=peer_ip, is_guess=e.is_guess)
                # counted from the beginning, so that it covers what differs: hashes of several kinds, look-ups
                await self._limits.hold_back(wait_s - (time.monotonic() - began))
            raise
        except AuthenticationBanned as e:
            metrics.add("logins_banned")
            self._log.info("login_banned", account=shown, peer_ip=peer_ip, reason=e.reason)
            raise
        except AuthenticationUnavailable as e:
            metrics.add("logins_deferred")
            self._log.warning("login_deferred", account=shown, peer_ip=peer_ip, reason=e.reason)
            raise
        metrics.add("logins")
        if self._limits is not None:
            await self._limits.succeeded(standing, login)
        self._note_in_force(account.email, stored)
        return account

    async def recheck(self, accounts: Iterable[str]) -> None:
        """Look whether these accounts, with live sessions, still are what they were at their last login."""
        for email in accounts:
            before = self._in_force.get(email)
            if before is None:
                continue
            try:
                account, stored = await self._look_up(email)
            except DirectoryUnavailable:
                return  # nothing is known; the next look tells
            if account is None or stored is None:
                del self._in_force[email]
                self._end(email, "the account was removed")
            elif (now := self._digest(stored)) != before:
                self._in_force[email] = now
                self._end(email, "the password was changed")

    def _end(self, email: str, reason: str) -> None:
        self._log.info("account_changed", account=email, reason=f"{reason}; its sessions end")
        self._ended(email)

    def _note_in_force(self, email: str, stored: str) -> None:
        """Sessions that began with another password have to end, also when no notice of the change came here."""
        now = self._digest(stored)
        before = self._in_force.get(email)
        self._in_force[email] = now
        if before is not None and before != now:
            self._end(email, "the password was changed")

    async def _login(self, login: str, password: str, standing: Standing) -> tuple[Account, str]:
        """The account, and its stored password."""
        try:
            account, stored = await self._look_up(login)
            if account is None or stored is None:
                await self._check(login, password, "", self._last_seen, standing)
                raise AuthenticationFailed("no such user")
            if not await self._fits(account.email, password, stored, standing):
                raise AuthenticationFailed("wrong password")
            # while the check ran, the user may have been removed or given another password
            account, now_stored = await self._look_up(login)
        except DirectoryUnavailable as e:
            raise AuthenticationUnavailable(e.reason) from None
        if account is None or now_stored != stored:
            raise StoredPasswordUnusable("the password was changed meanwhile")
        return account, stored

    async def _look_up(self, login: str) -> tuple[Account | None, str | None]:
        if len(login) > _MAX_LOGIN_OCTETS:
            return None, None
        account = await self._directory.account(login)
        return account, await self._directory.password_hash(login) if account else None

    async def _fits(self, email: str, password: str, text: str, standing: Standing) -> bool:
        digest = self._digest(email, password, text)
        until = self._remembered.get(digest)
        if until is not None and self._clock() < until:
            return True
        try:
            stored = passwords.parse(text)
        except passwords.UnsupportedScheme as e:
            self._log.error("password_scheme_unsupported", account=email, reason=f"stored with {e}")
            await self._check(email, password, text, self._last_seen, standing)
            raise StoredPasswordUnusable(f"the stored password has an unsupported scheme: {e}") from None
        self._last_seen = stored
        fits = await self._check(email, password, text, stored, standing)
        if fits:
            self._remember(digest)
        return fits

    async def _check(self, login: str, password: str, text: str, stored: Stored, standing: Standing) -> bool:
        """One check in a pool, shared by all who ask for the same one while it runs."""
        digest = self._digest(login, password, text)
        while True:
            running = self._running.get(digest)
            is_mine = running is None
            if running is None:
                running = asyncio.get_running_loop().create_task(self._verify(login, stored, password, standing))
                self._running[digest] = running
                running.add_done_callback(lambda task: self._checked(digest, task))
            try:
                # a client that hangs up must not take the check from the others
                return await asyncio.shield(running)
            except AuthenticationBanned:
                if is_mine:
                    raise
                # another address is, whose check this was

    def _checked(self, digest: bytes, task: asyncio.Task[bool]) -> None:
        self._running.pop(digest, None)
        if not task.cancelled():
            task.exception()  # who asked for it may be gone, and then nobody else looks

    async def _verify(self, login: str, stored: Stored, password: str, standing: Standing) -> bool:
        try:
            waited = await self._turns.take(standing.network, first=standing.known)
        except Crowded:
            raise AuthenticationUnavailable("too many password checks are waiting") from None
        pool = self._argon2_pool if stored.kind is Kind.ARGON2 else self._pool
        try:
            if waited and self._limits is not None:
                # those before it may have been guesses enough: many connections are no way around the ban
                _refuse_banned(await self._limits.admit_again(standing, login))
            return await asyncio.get_running_loop().run_in_executor(pool, passwords.verify, stored, password)
        finally:
            self._turns.give(standing.network)

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


def _refuse_banned(standing: Standing) -> None:
    if standing.ban is not None:
        raise AuthenticationBanned(f"{standing.ban.network} is banned: {standing.ban.reason}")
