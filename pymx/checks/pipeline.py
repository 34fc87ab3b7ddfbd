"""All checks of a message, their time limit, and what becomes of the message.

`Pipeline.begin` at the first accepted recipient gives an `Inspection`; its `recipient()` and `message()` raise
SmtpError when the checks refuse, and `message()` otherwise gives a `Finding`: the message as it is to be stored.

Guarantees: no check makes a message wait longer than `[checks] timeout_s` after its last octet; a check that fails in
any way is logged and counts as what it says of itself for that case; one line `message_checked` per message, refused or
not, has the whole verdict.

What is added: Authentication-Results (RFC 8601) and what checks want to add (Received-SPF, fields of rspamd); for junk
`X-Pymx-Junk`, and X-Spam-… whenever there is a score. X-Spam-… and X-Pymx-… that came with the message are taken out:
here nobody but we says such things.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pymx import log
from pymx.checks.check import Check, Facts, Stage
from pymx.checks.verdict import ALWAYS_OPEN, Judgement, Level, Verdict, merge
from pymx.mail import authres, spam
from pymx.mail.address import AddressError
from pymx.mail.envelope import Listener, Origin
from pymx.mail.header import Field, HeaderError, build_field, iter_fields
from pymx.mail.peer import peer_address
from pymx.mailauth.dkim.body import BodyHashes
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content

_log = log.get("checks")
# What other checks wait for ends after this share of the time limit: who makes us wait for his own domain's DNS must
# not keep those that come after from having their time.
_SHARE_OF_NEEDED = 0.6
_HASHING = frozenset({"dkim", "arc"})
_EARLY = (Stage.CONNECT, Stage.HELO, Stage.MAIL)
_REFUSALS = {Level.DEFER: replies.TRY_LATER, Level.REJECT: replies.REJECTED_BY_POLICY}


@dataclass(frozen=True, slots=True)
class Finding:
    """A message that was not refused: as it is to be stored, and the proven name of its sender's host.

    The rest is for who passes it on: `as_received` is the message as it came with our Authentication-Results in front,
    `results` that field's value. `sender_proven`: SPF or DMARC passed for the domain of MAIL FROM. `facts` is what the
    checks found.
    """

    content: Content
    peer_name: str
    as_received: Content
    results: str
    sender_proven: bool
    facts: Facts


class Pipeline:
    """The checks of a process. `close()` ends those that are still running; `retire()` first waits for the messages
    that began with them."""

    def __init__(
        self,
        checks: Sequence[Check],
        *,
        hostname: str,
        timeout_s: float,
        junk_score: float,
        trusted: Sequence[str] = (),
    ) -> None:
        self.checks = tuple(checks)
        self.hostname = hostname
        self.timeout_s = timeout_s
        self.junk_score = junk_score
        self.hashes_bodies = any(check.name in _HASHING for check in checks)
        self._needed = frozenset(name for check in checks for name in check.needs)
        self.judged: Callable[[Facts, Level], None] | None = None  # told of each message; must neither wait nor raise
        self._trusted = [ipaddress.ip_network(network, strict=False) for network in trusted]
        self._running: set[asyncio.Task[None]] = set()
        self._open = 0  # inspections that are not done with
        self._unused = asyncio.Event()

    def concerns(self, origin: Origin) -> bool:
        """Is mail from there checked? Not over LMTP (who hands it over has checked it), not from trusted hosts."""
        if origin.listener is not Listener.SMTP or origin.account or not origin.peer_ip:
            return False
        if not self._trusted:
            return True
        address = peer_address(origin.peer_ip)
        return not any(address in network for network in self._trusted)

    def begin(self, facts: Facts) -> Inspection:
        """Start the checks that know enough already."""
        if ":" in facts.origin.peer_ip:  # perhaps an IPv4 address that came mapped, or one with a scope
            facts.origin = replace(facts.origin, peer_ip=str(peer_address(facts.origin.peer_ip)))
        inspection = Inspection(self, facts)
        self._open += 1
        inspection.start(_EARLY)
        return inspection

    def done_with_one(self) -> None:
        """An inspection asks nothing more."""
        self._open -= 1
        if not self._open:
            self._unused.set()

    def time_for(self, check: Check) -> float:
        """How many seconds a check has."""
        return self.timeout_s * _SHARE_OF_NEEDED if check.name in self._needed else self.timeout_s

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to a running check, also when its session has gone."""
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def retire(self) -> None:
        """Close when the last message is done with, or its session gone. For a pipeline with which none begins any
        more."""
        if self._open:
            self._unused.clear()
            await self._unused.wait()
        await self.close()

    async def close(self) -> None:
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for check in self.checks:
            await check.close()


class Inspection:
    """The checks of one message."""

    __slots__ = ("_is_done", "_pipeline", "_tasks", "_verdicts", "facts")

    def __init__(self, pipeline: Pipeline, facts: Facts) -> None:
        self.facts = facts
        self._pipeline = pipeline
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._is_done = False

    def start(self, stages: tuple[Stage, ...]) -> None:
        """Start every check of these stages, to be over within the time limit from now."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for stage in stages:
            for check in self._pipeline.checks:
                if stage in check.stages:
                    task = loop.create_task(self._run(check, stage, now + self._pipeline.time_for(check)))
                    self._tasks[check.name] = task
                    self._pipeline.keep(task)

    def abandon(self) -> None:
        """Nobody wants to know any more: end what is still being asked."""
        for task in self._tasks.values():
            task.cancel()
        self._done()

    def _done(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._pipeline.done_with_one()

    async def recipient(self) -> None:
        """Ask the checks at RCPT about the last of the recipients. Raises SmtpError."""
        checks = [check for check in self._pipeline.checks if Stage.RCPT in check.stages]
        until = asyncio.get_running_loop().time() + self._pipeline.timeout_s
        for check in checks:
            await self._run(check, Stage.RCPT, until)
            verdict = self._verdicts[check.name]
            if verdict.level >= Level.DEFER:
                del self._verdicts[check.name]  # it is about this recipient, not about the message
                raise SmtpError(verdict.reply or _REFUSALS[verdict.level], f"{check.name}: {verdict.reason}")

    def body(self, head: bytes) -> Callable[[bytes], None] | None:
        """The header block has come: what hashes the body for signatures while it arrives, if there are any."""
        if not self._pipeline.hashes_bodies:
            return None
        self.facts.bodies = BodyHashes(head)
        return self.facts.bodies.update if self.facts.bodies.is_needed else None

    async def message(self, content: Content) -> Finding:
        """Judge the whole message, and be done with it. Raises SmtpError."""
        try:
            return await self._judge(content)
        finally:
            self._done()

    async def _judge(self, content: Content) -> Finding:
        started = time.monotonic()
        self.facts.content = content
        self.start((Stage.DATA,))
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        if any(task.cancelled() for task in self._tasks.values()):
            raise SmtpError(replies.TEMPORARY_FAILURE, "the server stops before all checks are done")
        judgement = self._judgement()
        reply = None
        if judgement.level >= Level.DEFER:
            reply = judgement.reply or _REFUSALS[judgement.level]
        self._write_line(judgement, "" if reply is None else f"{reply.code} {reply.enhanced}", started)
        if self._pipeline.judged is not None:
            self._pipeline.judged(self.facts, judgement.level)
        if reply is not None:
            raise SmtpError(reply, judgement.reason)
        results = [result for _, verdict in judgement.verdicts for result in verdict.results]
        field = authres.authentication_results(self._pipeline.hostname, results)
        return Finding(
            content=content.with_head(self._head(content.head, judgement)),
            peer_name=self.facts.iprev.name if self.facts.iprev and self.facts.iprev.result == "pass" else "",
            as_received=content.with_head(field + authres.without_claims(content.head, self._pipeline.hostname)),
            results=Field("", field).value.decode("utf-8", "surrogateescape"),
            sender_proven=_sender_proven(self.facts),
            facts=self.facts,
        )

    def _judgement(self) -> Judgement:
        """The verdicts merged. Who writes to nobody but postmaster@ or abuse@ may be asking why he is refused."""
        order = [check.name for check in self._pipeline.checks if check.name in self._verdicts]
        judgement = merge([(name, self._verdicts[name]) for name in order], self._pipeline.junk_score)
        to = {recipient.address.local_part.lower() for recipient in self.facts.recipients}
        if judgement.level >= Level.DEFER and to <= ALWAYS_OPEN:
            # RFC 5321 s. 4.5.1, RFC 2142 s. 2
            return replace(judgement, level=Level.JUNK, reply=None)
        return judgement

    async def _run(self, check: Check, stage: Stage, until: float) -> None:
        """One check, with its time limit; it always leaves a verdict."""
        needed = [self._tasks[name] for name in check.needs if name in self._tasks]
        if needed:
            await asyncio.wait(needed)
        try:
            async with asyncio.timeout_at(until):
                verdict = await check.run(stage, self.facts)
        except TimeoutError:
            verdict = check.unavailable(self.facts, f"not done within {self._pipeline.time_for(check):g} s")
        except Exception:
            # whatever a message is made of, a check that trips over it must not keep it from its reader
            _log.exception("check_failed", **self._who(), check=check.name, stage=stage.value)
            verdict = check.unavailable(self.facts, "an error of the server")
        self._verdicts[check.name] = verdict
        self.facts.scores[check.name] = verdict.score

    def _head(self, head: bytes, judgement: Judgement) -> bytes:
        """The header block with our fields in front, and without those that only we may write."""
        junk = judgement.level is Level.JUNK
        head = spam.without_judgement(authres.without_claims(head, self._pipeline.hostname))
        verdicts = [verdict for _, verdict in judgement.verdicts]
        removals = [removal for verdict in verdicts for removal in verdict.removals]
        if removals:
            head = _without(head, removals)
        results = [result for verdict in verdicts for result in verdict.results]
        added = [field for verdict in verdicts for field in verdict.fields]
        score = next((verdict.spam for verdict in verdicts if verdict.spam is not None), None)
        if score is None and (junk or judgement.score):
            hints = tuple(name for name, verdict in judgement.verdicts if verdict.score)
            score = spam.SpamScore(judgement.score, self._pipeline.junk_score, hints)
        if score is not None:
            said = {name.lower() for name, _ in added}
            added += [field for field in spam.spam_fields(score, junk=junk) if field[0].lower() not in said]
        out = [authres.authentication_results(self._pipeline.hostname, results)]
        for name, value in added:
            try:
                out.append(build_field(name, spam.one_line(value)))
            except HeaderError as e:
                _log.warning("field_not_added", **self._who(), reason=str(e))
        if junk:
            out.append(spam.junk_field(judgement.reason))
        return b"".join(out) + head

    def _who(self) -> dict[str, object]:
        return {"session": self.facts.origin.session, "queue_id": self.facts.queue_id}

    def _write_line(self, judgement: Judgement, reply: str, started: float) -> None:
        facts = self.facts
        assert facts.content is not None
        spam_score = next((v.spam for _, v in judgement.verdicts if v.spam is not None), None)
        _log.info(
            "message_checked",
            **self._who(),
            peer_ip=facts.origin.peer_ip,
            helo=facts.origin.helo,
            mail_from=str(facts.mail_from or "<>"),
            rcpt_to=",".join(str(r.address) for r in facts.recipients),
            verdict=judgement.level.word,
            reply=reply,
            check=judgement.summary,
            facts=judgement.facts[:1000],
            score=judgement.score or None,
            symbols=",".join(spam_score.tests)[:1000] if spam_score else "",
            reason=judgement.reason,
            size_octets=facts.content.size_octets,
            duration_ms=round((time.monotonic() - started) * 1000, 1),
        )


def _sender_proven(facts: Facts) -> bool:
    """May the domain of MAIL FROM be told of a failure? Not if it may be forged."""
    if facts.mail_from is None:
        return False
    if facts.spf is not None and facts.spf.result == "pass" and facts.spf.identity == "mailfrom":
        return True
    if facts.dmarc is None or facts.dmarc.result != "pass":
        return False
    try:
        domain = facts.mail_from.ascii_domain
    except AddressError:
        return False
    author = facts.dmarc.header_from
    return domain == author or domain.endswith("." + author)


def _without(head: bytes, removals: Sequence[tuple[str, int]]) -> bytes:
    """The block without the fields in `removals`: 0 = all, n = the nth of that name, -n = the nth from the end."""
    fields = list(iter_fields(head))
    drop: set[int] = set()
    for name, which in removals:
        places = [i for i, field in enumerate(fields) if field.name == name.lower()]
        if which == 0:
            drop.update(places)
        elif abs(which) <= len(places):
            drop.add(places[which - 1 if which > 0 else which])
    return b"".join(field.raw for i, field in enumerate(fields) if i not in drop)
