"""Sends the reports of a day once it is over: DMARC aggregate reports and TLS reports. Runs in the runner.

A pass goes through what was counted on earlier days (UTC), asks each domain's DNS whether it wants a report and where,
packs, and hands over: to the queue, as a signed message from the configured address, or by HTTPS. What became of each
destination is written down after it was handed over; a crash in between sends the same report, with the same id, again.
What can't be found out or handed over now is tried again with growing pauses, until a day after the report was due
(RFC 8460 s. 5.5: 24 hours). Passes begin some time after midnight that differs from host to host, so that nobody gets
everybody's reports at once (RFC 8460 s. 4.1).

There are no reports about reports: what carries one is not counted in the first place.

Deviation: reports are daily, whatever `ri=` asks for (RFC 7489 s. 6.3: other intervals are a best effort), and no error
message is sent when a report is larger than a destination takes (s. 7.2.2).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from pymx import log, metrics
from pymx.config.model import Reports
from pymx.mail.address import Address, parse_address
from pymx.mail.header import split_head
from pymx.mailauth.dkim.keys import KeyUnusable
from pymx.mailauth.dkim.sign import Signer
from pymx.mailauth.questions import Questions
from pymx.reports.error import NotTaken, StoreUnavailable
from pymx.reports.message import Parcel, dmarc_message, tls_message
from pymx.reports.parcels import Submitter, dmarc_parcels, tls_parcels
from pymx.reports.post import Addresses, post
from pymx.reports.store import DAY_S, Sending, Store
from pymx.reports.wanted import Destination, Wanted, dmarc_wanted, tls_wanted
from pymx.resolver.answer import TemporaryDnsError

_PASS_EVERY_S = 900.0
_FIRST_S = 600  # after midnight: the last results of the day are written by then
_SPREAD_S = 4 * 3600
_RETRY_S = 1800.0
_RETRY_MAX_S = 4 * 3600.0
COUNTED_DAYS = 30  # for who wants to see how TLS went; what DMARC reports are made of goes with them
_AT_ONCE = 4

Submit = Callable[[Address, Address, bytes], Awaitable[None]]
"""(from, to, message in wire form): durable at return. Raises NotTaken."""

_log = log.get("reports")


class Lookup(Questions, Addresses, Protocol):
    """What is used of `resolver.resolver.Resolver`."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be sent about a domain, for people."""

    kind: str
    day: int
    domain: str
    reports: int
    octets: int
    wanted: Wanted
    trouble: str = ""


class _Signable:
    """A message as the signer wants it."""

    def __init__(self, message: bytes) -> None:
        self.head, self._body = split_head(message)

    def body_chunks(self) -> Iterator[bytes]:
        yield self._body


class Reporter:
    """`run` until cancelled; `send` makes a pass at once; `plan` only looks."""

    def __init__(
        self,
        store: Store,
        resolver: Lookup,
        signer: Signer,
        submit: Submit,
        settings: Reports,
        *,
        hostname: str,
        allow_private: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._signer = signer
        self._submit = submit
        self._settings = settings
        self._allow_private = allow_private
        self._clock = clock
        self._from = parse_address(settings.sender or f"postmaster@{hostname}")
        self._submitter = Submitter(hostname, settings.organization or hostname, str(self._from))
        self._offset_s = _FIRST_S + int(hashlib.sha256(hostname.encode()).hexdigest()[:8], 16) % _SPREAD_S
        self._lock = asyncio.Lock()
        self._sent = (0, 0)  # on which day, how many

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, on in (("dmarc", self._settings.dmarc), ("tls", self._settings.tls)) if on]

    async def run(self) -> None:
        """Keep house and send, for ever."""
        pruned = 0
        while True:
            now = self._clock()
            try:
                if int(now // DAY_S) != pruned:
                    await self._prune(now)
                    pruned = int(now // DAY_S)
                if now % DAY_S >= self._offset_s:
                    await self.send()
            except StoreUnavailable as e:
                _log.warning("reports_unavailable", reason=str(e))
            except Exception:
                # an error of ours in reports is no reason to stop them, or anything else
                _log.exception("reports_failed")
            await asyncio.sleep(_PASS_EVERY_S)

    async def send(self) -> dict[str, int]:
        """Send what is due; how many destinations got or did not get theirs. Raises StoreUnavailable."""
        counts = {"sent": 0, "refused": 0, "waiting": 0, "expired": 0}
        async with self._lock:
            now = self._clock()
            today = int(now // DAY_S)
            room = asyncio.Semaphore(_AT_ONCE)

            trouble: list[StoreUnavailable] = []

            async def one(kind: str, day: int, domain: str) -> None:
                async with room:
                    try:
                        for sending in await self._about(kind, day, domain):
                            counts[sending.state] += 1
                    except StoreUnavailable as e:
                        trouble.append(e)
                    except Exception as e:
                        # an error of ours with one domain must not cost the others their reports
                        _log.exception("reports_failed", key=f"{kind} {domain}", error=str(e))

            for kind in self.kinds:
                groups = await self._groups(kind, today, now)
                async with asyncio.TaskGroup() as tasks:
                    for day, domain in groups:
                        tasks.create_task(one(kind, day, domain))
            if trouble:
                raise trouble[0]
        return counts

    async def plan(self) -> list[Planned]:
        """What has been counted and not been reported yet, today's too. Raises StoreUnavailable."""
        found = []
        tomorrow = int(self._clock() // DAY_S) + 1
        for kind in ("dmarc", "tls"):
            for day, domain in await self._groups(kind, tomorrow, float("inf")):
                parcels = await self._pack(kind, day, domain)
                octets = sum(len(parcel.payload) for parcel in parcels)
                try:
                    wanted, trouble = await self._wanted(kind, domain), ""
                except TemporaryDnsError as e:
                    wanted, trouble = Wanted(), str(e)
                found.append(Planned(kind, day, domain, len(parcels), octets, wanted, trouble))
        return found

    def is_signed(self) -> bool:
        """Has the domain of the From address, or one above it, a DKIM key?"""
        return bool(self._signature(b"From: x\r\n\r\n"))

    async def _prune(self, now: float) -> None:
        days = self._settings.keep_days
        await self._store.call(lambda store: store.prune(now=now, received_days=days, counted_days=COUNTED_DAYS))

    async def _groups(self, kind: str, before_day: int, now: float) -> list[tuple[int, str]]:
        return await self._store.call(lambda store: store.groups(kind, before_day, now))

    # --- one domain, one day ----------------------------------------------------------------------------------------

    async def _about(self, kind: str, day: int, domain: str) -> list[Sending]:
        """Send all reports of one kind about a day of a domain; what became of each destination."""
        before = await self._store.call(lambda store: store.sending(kind, day, domain))
        whole = before.get("", Sending(kind, day, domain, "", "waiting"))
        late = self._clock() > (day + 2) * DAY_S + self._offset_s
        try:
            wanted = await self._wanted(kind, domain)
        except TemporaryDnsError as e:
            return [await self._wait(whole, str(e), late=late)]
        parcels = await self._pack(kind, day, domain) if wanted.destinations else []
        results: list[Sending] = []
        for destination in wanted.destinations:
            known = before.get(destination.uri)
            if known is None or known.state == "waiting":
                sending = known or Sending(kind, day, domain, destination.uri, "waiting")
                results.append(await self._deliver(sending, destination, parcels, late=late))
        for uri, reason in wanted.refused:
            results.append(await self._note(Sending(kind, day, domain, uri, "refused", reason=reason)))
        waiting = [sending for sending in results if sending.state == "waiting"]
        if waiting:
            state = replace(whole, state="waiting", tries=whole.tries + 1, next_s=min(s.next_s for s in waiting))
        else:
            asked = wanted.destinations or wanted.refused
            state = replace(whole, state="done", reason="" if asked else "no reports are wanted")
        await self._store.call(lambda store: store.note(state))
        return results

    async def _deliver(
        self, sending: Sending, destination: Destination, parcels: list[Parcel], *, late: bool
    ) -> Sending:
        try:
            for parcel in parcels:
                self._count_one()
                await self._hand_over(sending.kind, destination, parcel)
        except NotTaken as e:
            if e.temporary:
                return await self._wait(sending, str(e), late=late)
            return await self._note(replace(sending, state="refused", tries=sending.tries + 1, reason=str(e)))
        return await self._note(replace(sending, state="sent", tries=sending.tries + 1, reason=""))

    async def _hand_over(self, kind: str, destination: Destination, parcel: Parcel) -> None:
        octets = len(parcel.payload)
        if destination.max_octets and octets > destination.max_octets:
            raise NotTaken(f"the report has {octets} octets, {destination.max_octets} are taken", temporary=False)
        if destination.address is None:
            await post(
                self._resolver, destination.uri, parcel.payload, "application/tlsrpt+gzip",
                allow_private=self._allow_private,
            )  # fmt: skip
            return
        make = dmarc_message if kind == "dmarc" else tls_message
        message = make(parcel, sender=self._from, to=destination.address, now=self._clock())
        signature = await asyncio.to_thread(self._signature, message)
        if not signature and kind == "tls":
            # RFC 8460 s. 3: "Reports sent via SMTP MUST contain a valid DKIM signature by the reporting domain"
            raise NotTaken(f"there is no DKIM key for {self._from.domain}", temporary=True)
        await self._submit(self._from, destination.address, signature + message)

    def _signature(self, message: bytes) -> bytes:
        """By the domain of the From address, or the next one above it that has a key; b"" when none has."""
        labels = self._from.ascii_domain.split(".")
        signable = _Signable(message)
        for i in range(len(labels) - 1):
            try:
                signature = self._signer.sign(".".join(labels[i:]), signable)
            except KeyUnusable as e:
                raise NotTaken(str(e), temporary=True) from e
            if signature:
                return signature
        return b""

    def _count_one(self) -> None:
        """Raises NotTaken when enough went out today."""
        today = int(self._clock() // DAY_S)
        count = self._sent[1] if self._sent[0] == today else 0
        if count >= self._settings.max_per_day:
            raise NotTaken(f"{count} reports were sent today ([reports] max_per_day)", temporary=True)
        self._sent = (today, count + 1)

    async def _wanted(self, kind: str, domain: str) -> Wanted:
        return await (dmarc_wanted if kind == "dmarc" else tls_wanted)(self._resolver, domain)

    async def _pack(self, kind: str, day: int, domain: str) -> list[Parcel]:
        pack = dmarc_parcels if kind == "dmarc" else tls_parcels
        return await self._store.call(lambda store: pack(store, self._submitter, day, domain))

    async def _wait(self, sending: Sending, reason: str, *, late: bool) -> Sending:
        if late:
            return await self._note(replace(sending, state="expired", reason=reason))
        pause_s = min(_RETRY_S * 2.0**sending.tries, _RETRY_MAX_S)
        again = replace(
            sending, state="waiting", tries=sending.tries + 1, next_s=self._clock() + pause_s, reason=reason
        )
        return await self._note(again)

    async def _note(self, sending: Sending) -> Sending:
        await self._store.call(lambda store: store.note(sending))
        metrics.add(f"reports_{sending.state}")
        about = f"{sending.kind} {sending.domain}"
        if sending.state == "sent":
            _log.info("report_sent", key=about, rcpt_to=sending.destination, count=sending.tries)
        else:
            _log.info(
                "report_not_sent", key=about, rcpt_to=sending.destination, verdict=sending.state, count=sending.tries,
                reason=sending.reason,
            )  # fmt: skip
        return sending
