"""The MTA-STS policies of other domains: looked up, fetched, kept, refreshed (RFC 8461 s. 3.1, 3.3, 5.1).

A policy on disk counts until `max_age` after it was fetched, whatever becomes of its TXT record or its web server
meanwhile. The TXT record is asked for at each delivery (the resolver remembers it); another id there means that a new
policy is fetched first. A fetch that fails is not tried again for five minutes, and leaves the old policy in force;
without an old one the domain is taken to have none (s. 3.3).

`refresh` fetches, in the background, what is in use and a day old or past half of its life, so that an attacker who can
block the fetch has to do so for weeks before mail goes without the policy.

What a fetch may do: HTTPS with a verified certificate to the public addresses of `mta-sts.<domain>`, no redirects,
64 KB, `text/plain`, half a minute. Failures are told to `failed`, for TLS reports.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from pymx import log, metrics
from pymx.mta.sts import MAX_POLICY_OCTETS, Policy, PolicyError, parse_policy, policy_id
from pymx.mta.tls_state import StateTrouble, Stored, TlsState
from pymx.net.https import FetchError, Limits, get
from pymx.resolver.answer import DnsError, NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.cache import TtlCache
from pymx.resolver.public import is_public
from pymx.resolver.resolver import Resolver

RETRY_S = 300  # RFC 8461 s. 3.3: not more often than every five minutes
_DAY_S = 86_400.0
_IN_USE_S = 30 * _DAY_S
_MEMORY = 10_000  # policies and their absence in memory
_FAILURES = 10_000
_MEMORY_S = 3600.0
_TIMEOUT_S = 30.0
_MAX_ADDRESSES = 4
_REFRESH_EVERY_S = 600
_REFRESH_AGAIN_S = 3600  # what can't be refreshed is tried again then
_REFRESH_AT_ONCE = 1000
_REFRESH_TOGETHER = 10

_log = log.get("mta")

Failed = Callable[[str, str, str], None]  # domain, result type of RFC 8460 s. 4.3, reason


@dataclass(frozen=True, slots=True)
class _Known:
    """A stored policy, parsed."""

    stored: Stored
    policy: Policy


class StsPolicies:
    """Policies for one event loop. `https_port` and `timeout_s` are others only in tests."""

    def __init__(
        self,
        resolver: Resolver,
        state: TlsState,
        *,
        allow_private: bool = False,
        ca_file: str = "",
        https_port: int = 443,
        timeout_s: float = _TIMEOUT_S,
        failed: Failed | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver
        self._state = state
        self._allow_private = allow_private
        self._ca_file = ca_file
        self._port = https_port
        self._limits = Limits(MAX_POLICY_OCTETS, timeout_s)
        self._failed = failed
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._known: TtlCache[tuple[_Known | None]] = TtlCache(_MEMORY)
        self._failures: TtlCache[bool] = TtlCache(_FAILURES)
        self._tried: TtlCache[bool] = TtlCache(_FAILURES)
        self._locks: dict[str, asyncio.Lock] = {}

    async def policy(self, domain: str) -> Policy | None:
        """The policy in force for a domain, or None. Never raises: trouble is no policy, and is told."""
        if domain.startswith("["):
            return None
        now = self._clock()
        known = await self._stored(domain)
        if known is not None and known.stored.expires_s <= now:
            known = None
        try:
            announced = policy_id(await self._resolver.txt(f"_mta-sts.{domain}"))
        except (NoSuchDomain, NoRecords, TemporaryDnsError):
            announced = ""
        if announced and (known is None or known.stored.id != announced):
            known = await self._fetched(domain, announced) or known
        if known is None:
            return None
        await self._note_use(known, now)
        return known.policy

    async def refresh(self) -> None:
        """Fetch what is due, once, and forget what has expired."""
        now = self._clock()
        await self._state.tidy(now, now - 90 * _DAY_S)
        due = await self._state.due(now - _DAY_S, now + _DAY_S, now - _IN_USE_S, _REFRESH_AT_ONCE)
        for start in range(0, len(due), _REFRESH_TOGETHER):
            async with asyncio.TaskGroup() as group:
                for stored in due[start : start + _REFRESH_TOGETHER]:
                    group.create_task(self._refresh_one(stored))

    async def keep_fresh(self) -> None:
        """`refresh` every ten minutes, for ever."""
        while True:
            try:
                await self.refresh()
            except StateTrouble as e:
                _log.warning("tls_state_failed", reason=str(e))
            await asyncio.sleep(_REFRESH_EVERY_S)

    async def _refresh_one(self, stored: Stored) -> None:
        now = self._clock()
        if self._tried.get(stored.domain, now):
            return
        self._tried.put(stored.domain, True, now + _REFRESH_AGAIN_S)
        try:
            announced = policy_id(await self._resolver.txt(f"_mta-sts.{stored.domain}"))
        except DnsError:
            announced = ""
        # RFC 8461 s. 3.3: the policy is fetched anew even when its id is the same, which makes it live longer
        await self._fetched(stored.domain, announced or stored.id)

    async def _stored(self, domain: str) -> _Known | None:
        loop = asyncio.get_running_loop()
        remembered = self._known.get(domain, loop.time())
        if remembered is not None:
            return remembered[0]
        try:
            stored = await self._state.policy(domain)
        except StateTrouble as e:
            _log.warning("tls_state_failed", reason=str(e))
            return None
        known = None
        if stored is not None:
            try:
                known = _Known(stored, parse_policy(stored.text))
            except PolicyError as e:
                _log.warning("tls_state_failed", reason=f"stored policy of {domain}: {e}")
        self._known.put(domain, (known,), loop.time() + _MEMORY_S)
        return known

    async def _note_use(self, known: _Known, now: float) -> None:
        """Once a day, on disk."""
        if known.stored.used_s > now - _DAY_S:
            return
        loop = asyncio.get_running_loop()
        stored = known.stored
        fresh = Stored(stored.domain, stored.id, stored.text, stored.fetched_s, stored.expires_s, now)
        self._known.put(stored.domain, (_Known(fresh, known.policy),), loop.time() + _MEMORY_S)
        try:
            await self._state.used(stored.domain, now)
        except StateTrouble as e:
            _log.warning("tls_state_failed", reason=str(e))

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _fetched(self, domain: str, announced: str) -> _Known | None:
        """The policy from the domain's web server, stored; None when it can't be had (now)."""
        lock = self._locks.setdefault(domain, asyncio.Lock())
        try:
            async with lock:
                known = await self._stored(domain)
                now = self._clock()
                if known is not None and known.stored.id == announced and known.stored.fetched_s > now - RETRY_S:
                    return known  # somebody fetched it while we waited
                if self._failures.get((domain, announced), now):
                    return None
                return await self._fetch(domain, announced, now)
        finally:
            if not lock.locked():
                self._locks.pop(domain, None)

    async def _fetch(self, domain: str, announced: str, now: float) -> _Known | None:
        metrics.add("sts_fetches")
        try:
            text = await self._text(domain)
            policy = parse_policy(text)
        except FetchError as e:
            self._note_failure(
                domain, announced, "sts-webpki-invalid" if e.certificate else "sts-policy-fetch-error", e
            )
            return None
        except PolicyError as e:
            self._note_failure(domain, announced, "sts-policy-invalid", e)
            return None
        stored = Stored(domain, announced, text, now, now + policy.max_age_s, now)
        try:
            await self._state.keep_policy(stored)
        except StateTrouble as e:
            _log.warning("tls_state_failed", reason=str(e))
        known = _Known(stored, policy)
        self._known.put(domain, (known,), asyncio.get_running_loop().time() + _MEMORY_S)
        _log.info("sts_policy_fetched", key=domain, verdict=policy.mode)
        return known

    def _note_failure(self, domain: str, announced: str, result: str, error: Exception) -> None:
        metrics.add("sts_fetches_failed")
        self._failures.put((domain, announced), True, self._clock() + RETRY_S)
        _log.warning("sts_fetch_failed", key=domain, reason=str(error))
        if self._failed is not None:
            self._failed(domain, result, str(error))

    async def _text(self, domain: str) -> bytes:
        """What the web server says. Raises FetchError."""
        host = f"mta-sts.{domain}"
        try:
            addresses = await self._resolver.addresses(host)
        except DnsError as e:
            raise FetchError(f"{host} has no address: {e.reason}") from None
        usable = [a for a in addresses if self._allow_private or is_public(a)][:_MAX_ADDRESSES]
        if not usable:
            raise FetchError(f"{host} has only private addresses")
        port = "" if self._port == 443 else f":{self._port}"
        return await get(
            f"https://{host}{port}/.well-known/mta-sts.txt",
            addresses=usable, context=self._tls(), content_type="text/plain", limits=self._limits,
        )  # fmt: skip

    def _tls(self) -> ssl.SSLContext:
        """Raises FetchError for an unreadable `ca_file`."""
        if self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=self._ca_file or None)
            except OSError as e:
                raise FetchError(f"[outbound] ca_file: {e}") from None
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._context
