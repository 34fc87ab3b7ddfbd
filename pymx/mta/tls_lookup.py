"""Asks for what `mta.tls_policy` decides on: TLSA records, MTA-STS policies, and the best TLS that a domain has had.

TLSA records count only when DNSSEC proves the way to them: the list of mail servers, the host's address, the records
themselves (RFC 7672 s. 2.2). Without a resolver whose word counts nothing is asked. A lookup that fails is not "none":
the host is left alone until it works again (s. 2.1.2).

The best level of a domain is remembered for ninety days after it was last seen. A delivery at a lower one is a warning
in the log, `tls_downgraded`: nothing forbids it, but somebody between here and there might have done it.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from pathlib import Path

from pymx import log, metrics
from pymx.config.model import Outbound
from pymx.mail.tls_result import TlsResult
from pymx.mta.dane import MAX_RECORDS, Tlsa, tlsa
from pymx.mta.mx import Host
from pymx.mta.sts_policies import StsPolicies
from pymx.mta.tls_policy import Plan, TlsaFound, Wish, plan
from pymx.mta.tls_state import StateTrouble, TlsState
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.cache import TtlCache
from pymx.resolver.resolver import Resolver

Report = Callable[[TlsResult], None]

_DAY_S = 86_400.0
_MEMORY_S = 3600.0
_MEMORY = 10_000

_log = log.get("mta")


class Level(enum.IntEnum):
    """How good the TLS of a delivery was; the numbers lie on disk."""

    PLAIN = 0
    ENCRYPTED = 1
    VERIFIED = 2  # certificate of a trusted root, host named by MTA-STS
    DANE = 3


class TlsPolicies:
    """What other domains ask for, for one event loop. Without `state` neither MTA-STS nor levels are kept."""

    def __init__(
        self,
        resolver: Resolver,
        outbound: Outbound,
        *,
        state: Path | None = None,
        https_port: int = 443,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver
        self._outbound = outbound
        self.report: Report | None = None  # told of every connection to a mail server found by MX
        self._clock = clock
        self._state = TlsState(state) if state is not None else None
        self._levels: TtlCache[tuple[int, float]] = TtlCache(_MEMORY)
        self._refresher: asyncio.Task[None] | None = None
        self.sts: StsPolicies | None = None
        if self._state is not None and outbound.mta_sts:
            self.sts = StsPolicies(
                resolver, self._state, allow_private=outbound.allow_private, ca_file=outbound.ca_file,
                https_port=https_port, failed=self._fetch_failed, clock=clock,
            )  # fmt: skip

    def start(self) -> None:
        """Begin to keep policies fresh."""
        if self.sts is not None:
            self._refresher = asyncio.get_running_loop().create_task(self.sts.keep_fresh())
            self._refresher.add_done_callback(self._refresher_ended)

    async def close(self) -> None:
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
        if self._state is not None:
            await self._state.close()

    def _refresher_ended(self, task: asyncio.Task[None]) -> None:
        """It never ends by itself. Mail flows without it, but policies get old."""
        if not task.cancelled() and task.exception() is not None:
            _log.error("sts_refresher_failed", reason=repr(task.exception()))

    async def plan(self, domain: str, host: Host, wish: Wish) -> Plan:
        """What to do at a mail server of a domain."""
        sts = None
        found = TlsaFound()
        if wish is not Wish.OPTIONAL:
            found = await self._tlsa(domain, host)
            if self.sts is not None:
                sts = await self.sts.policy(domain)
        proven = host.mx is not None and host.mx.authenticated
        return plan(host.name, tlsa=found, sts=sts, wish=wish, ca_file=self._outbound.ca_file, mx_authenticated=proven)

    def tell(self, result: TlsResult) -> None:
        """For TLS reports."""
        if self.report is not None:
            self.report(result)

    def _fetch_failed(self, domain: str, result: str, reason: str) -> None:
        self.tell(TlsResult(domain, "sts", (), (), "", "", "", result, reason))

    # -- DANE ---------------------------------------------------------------------------------------------------------

    async def _tlsa(self, domain: str, host: Host) -> TlsaFound:
        """The TLSA records of a host, at its canonical name or, failing that, at its own (RFC 7672 s. 2.2.3)."""
        if not self._outbound.dane or host.mx is None or not host.mx.authenticated:
            return TlsaFound()
        try:
            bases = await self._bases(host)
            for base in bases:
                records = await self._records(base)
                if records is not None:
                    names = (base, host.name, domain, host.mx.canonical_name)
                    return TlsaFound(records, base, tuple(dict.fromkeys(name for name in names if name)))
        except TemporaryDnsError as e:
            metrics.add("tlsa_lookups_failed")
            return TlsaFound(trouble=f"TLSA records of {host.name} can't be looked up: {e.reason}")
        return TlsaFound()

    async def _bases(self, host: Host) -> list[str]:
        aliased = host.canonical_name.lower() != host.name.lower()
        if host.authenticated:
            return [host.canonical_name.lower(), host.name] if aliased else [host.name]
        if not aliased:
            return []  # s. 2.2.2: in an unsigned zone nothing is to be found, and some of their servers break on it
        try:
            alias = await self._resolver.resolve(host.name, "CNAME")
        except (NoSuchDomain, NoRecords):
            return []
        return [host.name] if alias.authenticated else []

    async def _records(self, base: str) -> tuple[Tlsa, ...] | None:
        """Authenticated records of a base domain, or None. Raises TemporaryDnsError."""
        try:
            answer = await self._resolver.resolve(f"_{self._outbound.port}._tcp.{base}", "TLSA")
        except (NoSuchDomain, NoRecords):
            return None
        if not answer.authenticated:
            return None
        # in an order of their own: name servers turn them round, and a kept connection is held against them
        return tuple(sorted(tlsa(record) for record in answer.records[:MAX_RECORDS]))

    # -- levels -------------------------------------------------------------------------------------------------------

    async def note_level(self, domain: str, level: Level, *, mx: str, tls: str) -> None:
        """A message is about to go to a domain at this level."""
        if self._state is None:
            return
        now = self._clock()
        loop = asyncio.get_running_loop()
        try:
            best = self._levels.get(domain, loop.time()) or await self._state.level(domain)
            if best is not None and best[1] < now - 90 * _DAY_S:
                best = None
            if best is None or level > best[0] or (level == best[0] and best[1] < now - _DAY_S):
                best = (int(level), now)
                await self._state.keep_level(domain, *best)
            elif level < best[0]:
                metrics.add("tls_downgraded")
                _log.warning(
                    "tls_downgraded", key=domain, mx=mx, tls=tls or "none",
                    reason=f"{level.name.lower()}, after {Level(best[0]).name.lower()} before",
                )  # fmt: skip
            self._levels.put(domain, best, loop.time() + _MEMORY_S)
        except StateTrouble as e:
            _log.warning("tls_state_failed", reason=str(e))
