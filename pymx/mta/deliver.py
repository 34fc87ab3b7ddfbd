"""An attempt to hand a message to another server: hosts in order, connections kept, one outcome per recipient.

`attempt` never raises for what a remote or the network does. Recipients that share a next hop go in one transaction (at
most a hundred at a time); each gets the outcome of its own reply. What a failure leads to is decided by `mta.trouble`.

A connection that worked is kept for `[outbound] keep_connection_s` (`mta.kept`), so the next message to the same hop
needs no new one. A kept connection that turns out to be dead is no failure: the message goes over a new one.

A reply by which a provider wants us to slow down ends the attempt there: its other hosts would say the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from pymx import log, metrics
from pymx.config.model import Outbound
from pymx.mail.envelope import Recipient
from pymx.mail.report import is_report
from pymx.mail.status import split_status
from pymx.mail.tls_result import TlsResult
from pymx.mta.broken import Broken
from pymx.mta.client import MAX_RECIPIENTS, Connection, has_ascii_form
from pymx.mta.contexts import Contexts
from pymx.mta.downgrade import CannotDowngrade, in_seven_bits
from pymx.mta.kept import Kept
from pymx.mta.mx import Host, MxLookup, Unroutable
from pymx.mta.providers import Providers
from pymx.mta.route import Hop, TlsMode, by_hops
from pymx.mta.sources import Sources
from pymx.mta.tls_lookup import Level, TlsPolicies
from pymx.mta.tls_policy import Demand, How, Plan, Refusal, Wish, wish
from pymx.mta.trouble import Action, Event, Phase, Remote, Verdict, judge, last_host
from pymx.mta.wire import BareNewline
from pymx.queue.destination import is_routed, routing_domain
from pymx.queue.item import Attempt, Outcome, Result
from pymx.queue.place import Kind, Limits, Place, Strain
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError
from pymx.resolver.resolver import Resolver

_LEVELS = {("tlsa", How.DANE): Level.DANE, ("sts", How.VERIFIED): Level.VERIFIED}
_MAX_ADDRESSES = 6  # tried in one attempt; the next attempt shuffles again
_CLOSE_S = 2

_log = log.get("mta")


class Deliver:
    """Delivery over SMTP."""

    def __init__(
        self,
        resolver: Resolver,
        outbound: Outbound,
        hostname: str,
        *,
        own_addresses: Collection[str] = (),
        tls: TlsPolicies | None = None,
    ) -> None:
        self._outbound = outbound
        self._tls = tls or TlsPolicies(resolver, outbound)
        self._hostname = hostname
        self._contexts = Contexts()
        self._mx = MxLookup(
            resolver, own_names=[hostname], own_addresses=own_addresses, allow_private=outbound.allow_private
        )
        self._resolver = resolver
        self._providers = Providers(outbound)
        self._limits = Limits(outbound.max_per_destination, outbound.max_messages_per_connection)
        self._kept = Kept(outbound)
        self.sources = Sources(resolver, outbound)

    def start(self) -> None:
        """Begin to check our own addresses. Without it nothing is known against them."""
        self.sources.start()

    async def place(self, destination: str) -> Place:
        """Where a destination of the queue leads: by the names of its best mail servers."""
        if is_routed(self._outbound.route, destination):
            return Place(destination, destination, self._limits)
        hosts: list[str] = []
        if not destination.startswith("["):
            try:
                records = await self._resolver.mx(destination)
            except (NoSuchDomain, NoRecords):
                records = []
            except TemporaryDnsError:
                return replace(self._providers.place(destination, []), is_guess=True)
            best = min((preference for preference, _ in records), default=0)
            hosts = [host for preference, host in records if preference == best and host]
        return self._providers.place(destination, hosts)

    async def attempt(self, attempt: Attempt) -> list[Outcome]:
        """Try every recipient; their outcomes in order."""
        recipients = attempt.envelope.recipients
        place = attempt.place or Place(attempt.destination, attempt.destination, self._limits)
        outcomes: dict[int, Outcome] = {}
        with self._kept.work(place):
            for hops, places in by_hops(self._outbound, [routing_domain(r.address) for r in recipients]).items():
                run = _Run(self, attempt, place, hops, places)
                await run.run()
                outcomes.update(run.outcomes)
        return [outcomes[n] for n in range(len(recipients))]

    async def close(self) -> None:
        """Hang up all kept connections."""
        await self.sources.close()
        closing = self._kept.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                for connection in closing:
                    await connection.closed()
        except TimeoutError:
            for connection in closing:
                connection.abort()


class _Run:
    """One attempt at the hops of some recipients. `pending` are the places of those without an outcome yet."""

    def __init__(
        self, deliver: Deliver, attempt: Attempt, place: Place, hops: Sequence[Hop], places: Sequence[int]
    ) -> None:
        self._deliver = deliver
        self._attempt = attempt
        self._place = place
        self._hops = hops
        self._hop = hops[0]
        self._slowed = False
        self._pending = list(places)
        self._trouble: dict[int, tuple[Phase, Remote | Event, str, str, Host | None]] = {}
        self._wish = wish(attempt.envelope, attempt.content.head)
        self._said: Strain | None = None  # about the place, by a host that can speak for it
        self._had_its_say: set[str] = set()  # addresses that answered over a kept connection
        self.outcomes: dict[int, Outcome] = {}

    async def run(self) -> None:
        for hop in self._hops:
            self._hop = hop
            self._slowed = False
            self._had_its_say.clear()
            try:
                await self._at_hop()
            except Unroutable as e:
                if hop is self._hops[-1]:
                    self._settle_unroutable(e)
            if not self._pending:
                return
        self._settle_rest()

    @property
    def _kept_key(self) -> str:
        """What was connected to for one wish is not good enough, or too good, for another."""
        return f"{self._hop.key} {self._wish.value} {self._source}".rstrip()

    @property
    def _source(self) -> str:
        """The address that the message itself asks to be sent from."""
        return self._attempt.envelope.source_address

    @property
    def _name(self) -> str:
        """What is remembered of a destination is remembered by."""
        return self._hop.host or self._hop.domain

    async def _at_hop(self) -> None:
        """Raises Unroutable."""
        await self._over_kept_connection()
        if not self._pending or self._slowed:
            return
        mx, sources = self._deliver._mx, self._deliver.sources
        hosts = mx.fixed(self._hop.host) if self._hop.host else mx.hosts(self._hop.domain)
        tried = 0
        ordered = sources.of_family(hosts, self._source) if self._source else sources.ordered(
            hosts, self._name, time.time()
        )  # fmt: skip
        async with aclosing(ordered) as addresses:
            async for host in addresses:
                if host.address in self._had_its_say:
                    continue
                await self._at(host)
                tried += 1
                if not self._pending or self._slowed or tried == _MAX_ADDRESSES:
                    break

    async def _over_kept_connection(self) -> None:
        """Over a connection that was kept, if one is still alive."""
        while (connection := self._deliver._kept.take(self._kept_key)) is not None:
            try:
                if connection.demand not in (await self._plan(connection.host)).ladder:
                    connection.close()  # the domain asks for more than it did when this was opened
                    continue
                await self._transact(connection)
            except Broken as e:
                if e.phase is Phase.MAIL and (e.what in (Event.LOST, Event.TIMEOUT) or _is_goodbye(e.what)):
                    if e.what is Event.TIMEOUT:
                        self._deliver._kept.distrust(self._kept_key, connection)
                    continue  # it had ended meanwhile, as servers do with idle connections
                self._note_broken(e, connection.host, connection.tls)
            except BaseException:
                connection.abort()
                raise
            else:
                self._had_its_say.add(connection.host.address)
            return

    async def _at(self, host: Host) -> None:
        """Try one address: the ways to connect in their order, as long as TLS is the trouble."""
        plan = await self._plan(host)
        if plan.refusal is not None:
            refusal = plan.refusal
            self._report(plan, host, "", refusal.result, refusal.reason)
            self._note_broken(Broken(Phase.DNS, refusal.event, refusal.reason), host, "")
            return
        told = False  # one result for the TLS report, the first
        for place, demand in enumerate(plan.ladder):
            optional = place + 1 < len(plan.ladder)
            try:
                connection = await self._open(host, demand)
            except Broken as e:
                metrics.add("outbound_connections_failed")
                if e.phase is Phase.STARTTLS and not told:
                    told = True
                    failed = Refusal(Event.TLS_FAILED, e.tls_result or "validation-failure", e.detail or str(e.what))
                    fault = plan.complaint or failed
                    self._report(plan, host, e.source, fault.result, fault.reason)
                if judge(e.phase, e.what, tls_optional=optional).action is Action.PLAIN:
                    metrics.add("outbound_tls_failed")
                    _log.warning(
                        "outbound_tls_failed",
                        queue_id=self._attempt.queue_id,
                        mx=host.name,
                        peer_ip=host.address,
                        reason=e.detail or str(e.what),
                    )
                    continue
                self._note_broken(_unsafe(e, demand), host, "")
                return
            metrics.add("outbound_connections")
            deliver = self._deliver
            deliver.sources.reached(self._name, host.address, time.time())
            try:
                await self._note_connection(plan, connection, told=told)
                await self._transact(connection)
            except Broken as e:
                self._note_broken(e, host, connection.tls)
            except BaseException:
                connection.abort()
                raise
            return

    async def _plan(self, host: Host) -> Plan:
        """A route says itself what TLS is to be like; elsewhere the domain's policies do."""
        hop = self._hop
        if not hop.host:
            return await self._deliver._tls.plan(hop.domain, host, self._wish)
        required = self._wish is Wish.REQUIRED
        if hop.tls in (TlsMode.VERIFIED, TlsMode.IMPLICIT):
            how = How.VERIFIED if hop.tls is TlsMode.VERIFIED else How.IMPLICIT
            return Plan((Demand(how, host.name, hop.ca_file, requiretls=required),), None)
        if required:
            return Plan((), None, Refusal(Event.NO_REQUIRETLS, "", f'the route has tls = "{hop.tls.value}"'))
        if hop.tls is TlsMode.NONE:
            return Plan((Demand(How.PLAIN),), None)
        return Plan((Demand(How.OPPORTUNISTIC), Demand(How.PLAIN)), None)

    async def _open(self, host: Host, demand: Demand) -> Connection:
        deliver = self._deliver
        deliver._kept.make_room(self._place)
        source = self._source or deliver.sources.source_for(self._name, host.address)
        return await Connection.open(
            host, self._hop, deliver._outbound, deliver._hostname, deliver._contexts, demand, source
        )

    async def _note_connection(self, plan: Plan, connection: Connection, *, told: bool) -> None:
        """Remember how good its TLS is, and tell the TLS report, unless it was told."""
        if plan.applied is None:
            return
        host, tls = connection.host, connection.tls
        result, reason = ("", "") if tls else ("starttls-not-supported", "STARTTLS is not offered")
        if plan.complaint is not None:
            result, reason = plan.complaint.result, plan.complaint.reason
        if not told:
            self._report(plan, host, connection.source, result, reason)
        level = Level.PLAIN
        if tls:
            # REQUIRETLS may have proven more than the domain asks for; that is no level to hold it to
            level = _LEVELS.get((plan.applied.kind, connection.demand.how), Level.ENCRYPTED)
        await self._deliver._tls.note_level(self._hop.domain, level, mx=host.name, tls=tls)

    def _report(self, plan: Plan, host: Host, source: str, result: str, reason: str) -> None:
        applied = plan.applied
        # a report about the delivery of a report would be answered by another one, for ever
        if applied is not None and not is_report(self._attempt.content.head):
            self._deliver._tls.tell(
                TlsResult(
                    self._hop.domain, applied.kind, applied.strings, applied.patterns, host.name, host.address, source,
                    result, reason,
                )
            )  # fmt: skip

    async def _transact(self, connection: Connection) -> None:
        """Transactions for what is pending. Raises Broken, with its refusals settled."""
        envelope, content = self._attempt.envelope, self._attempt.content
        if not connection.takes_8bit:
            try:
                content = await in_seven_bits(content)
            except CannotDowngrade as e:
                connection.close()
                raise Broken(Phase.MAIL, Event.NO_8BITMIME, str(e)) from None
        todo = list(self._pending)
        while todo:
            places = self._together(todo, connection)
            recipients = [envelope.recipients[n] for n in places]
            try:
                replies = await connection.send(envelope, recipients, content)
            except Broken as e:
                for n, (phase, reply) in e.refused.items():
                    self._note(places[n], phase, reply, connection.host, connection.tls, connection)
                raise
            except BareNewline:
                connection.abort()
                self._fail_all("5.6.0", "5.6.0 The message has line ends that SMTP can't carry")
                return
            took_some = any(phase is Phase.DOT for phase, _ in replies)
            again = []
            for n, (phase, reply) in zip(places, replies, strict=True):
                if took_some and phase is Phase.RCPT and reply.code in (452, 552) and _too_many(reply):
                    again.append(n)  # the server takes fewer at a time: the rest in another transaction
                else:
                    self._note(n, phase, reply, connection.host, connection.tls, connection)
            done = set(places)
            todo = again + [n for n in todo if n not in done]
        self._deliver._kept.give(self._kept_key, self._place, connection)

    def _together(self, todo: Sequence[int], connection: Connection) -> list[int]:
        """Whom the next transaction is for: those that the server could only take with SMTPUTF8 go apart."""
        if connection.takes_utf8:
            return list(todo[:MAX_RECIPIENTS])
        recipients = self._attempt.envelope.recipients
        plain = has_ascii_form(recipients[todo[0]].address)
        return [n for n in todo if has_ascii_form(recipients[n].address) is plain][:MAX_RECIPIENTS]

    # -- outcomes ---------------------------------------------------------------------------------------------------

    def _note(
        self, place: int, phase: Phase, reply: Remote, host: Host, tls: str, connection: Connection | None
    ) -> None:
        """A reply for one recipient."""
        if phase is Phase.DOT and 200 <= reply.code < 300:
            passed_on = connection is not None and connection.passes_dsn_on
            status = split_status(reply.text)[0]
            self._settle(
                place, Result.DELIVERED, status if status.startswith("2") else "2.0.0", str(reply), host, tls,
                passed_on=passed_on,
            )  # fmt: skip
            return
        self._follow(place, judge(phase, reply), phase, reply, str(reply), host, tls)

    def _note_broken(self, e: Broken, host: Host, tls: str) -> None:
        """Trouble for everyone who is still pending."""
        if e.phase is Phase.DOT:
            metrics.add("outbound_maybe_doubled", len(self._pending))
            _log.warning("delivery_unsure", queue_id=self._attempt.queue_id, mx=host.name, reason=e.detail)
        verdict = judge(e.phase, e.what)
        words = str(e.what) if isinstance(e.what, Remote) else f"{e.what.value} ({e.phase.value}): {e.detail}"
        for place in list(self._pending):
            self._follow(place, verdict, e.phase, e.what, words, host, tls)

    def _follow(
        self, place: int, verdict: Verdict, phase: Phase, what: Remote | Event, words: str, host: Host, tls: str
    ) -> None:
        strain = self._strain(phase, what, host)
        if strain is not None and strain.kind is Kind.SLOW:
            self._slowed = True
        if verdict.action is Action.FAIL:
            self._settle(place, Result.FAILED, verdict.status, words, host, tls, strain=strain)
        elif verdict.action is Action.DEFER and not (phase is Phase.AUTH and self._hop is not self._hops[-1]):
            self._settle(place, Result.DEFERRED, verdict.status, words, host, tls, strain=strain)
        elif what not in (Event.NO_REQUIRETLS, Event.NO_8BITMIME) or place not in self._trouble:
            # a host that may do later says more than one that can't do what the message asks for
            self._trouble[place] = (phase, what, words, tls, host)

    def _strain(self, phase: Phase, what: Remote | Event, host: Host | None) -> Strain | None:
        """What it says about the place. Of a host that can't speak for it: no more than those said that can."""
        providers = self._deliver._providers
        strain = providers.strain(self._place.site, phase, what)
        if host is None or providers.speaks_for(self._place, host.name):
            self._said = strain
        return self._said if strain is not None else None

    def _settle(
        self, place: int, result: Result, status: str, reply: str, host: Host | None, tls: str, *,
        passed_on: bool = False, strain: Strain | None = None,
    ) -> None:  # fmt: skip
        recipient: Recipient = self._attempt.envelope.recipients[place]
        self.outcomes[place] = Outcome(
            recipient, result, status, reply, host.name if host else "", host.address if host else "", tls, passed_on,
            strain,
        )  # fmt: skip
        self._pending.remove(place)

    def _settle_unroutable(self, e: Unroutable) -> None:
        for place in list(self._pending):
            if place not in self._trouble:
                result = Result.DEFERRED if e.temporary else Result.FAILED
                # the name servers of one domain say nothing about mail servers that it shares with others
                shared = self._place.direct and self._place.hosts != self._hop.domain
                strain = Strain(Kind.DOWN, str(e)) if e.temporary and not shared else None
                self._settle(place, result, e.status, str(e), None, "", strain=strain)

    def _settle_rest(self) -> None:
        """No host is left to try."""
        for place in list(self._pending):
            phase, what, words, tls, host = self._trouble[place]
            verdict = last_host(phase, what, judge(phase, what).status)
            result = Result.FAILED if verdict.action is Action.FAIL else Result.DEFERRED
            self._settle(place, result, verdict.status, words, host, tls, strain=self._strain(phase, what, host))

    def _fail_all(self, status: str, reply: str) -> None:
        for place in list(self._pending):
            self._settle(place, Result.FAILED, status, reply, None, "")


def _unsafe(e: Broken, demand: Demand) -> Broken:
    """With REQUIRETLS, a server that can't prove who it is is as good as one that does not offer it."""
    if not demand.requiretls or e.phase is not Phase.STARTTLS or e.what in (Event.TIMEOUT, Event.LOST):
        return e
    return Broken(Phase.STARTTLS, Event.NO_REQUIRETLS, e.detail or str(e.what))


def _is_goodbye(what: Remote | Event) -> bool:
    return isinstance(what, Remote) and what.code == 421


def _too_many(reply: Remote) -> bool:
    """RFC 5321 s. 4.5.3.1.10: 452, in old servers 552, for "too many recipients"."""
    return split_status(reply.text)[0] in ("", "4.5.3", "5.5.3")
