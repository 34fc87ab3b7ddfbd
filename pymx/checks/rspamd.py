"""rspamd: what the spam filter makes of the message, and what happens when it can't be asked.

Its action is done: `no action` accept; `greylist` and `soft reject` 451 4.7.1; `add header`, `rewrite subject`,
`quarantine` and `discard` Junk; `reject` 550 5.7.1. Who comes back after a `greylist` is let in. An action that is not
known here accepts, and the log names it. Header fields are added and removed as rspamd wants it.

When it is down, slow or answers nonsense, `[rspamd] when_down` says what becomes of mail. After three failures in a row
messages don't wait for it any more: one every five seconds asks whether it is back. The log says so once a minute. A
message of more than `max_octets` is not shown to it and accepted: waiting would not make it smaller.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Literal

from pymx import log
from pymx.checks.breaker import Breaker
from pymx.checks.check import Facts, Stage
from pymx.checks.retries import Retries
from pymx.checks.verdict import Level, Verdict
from pymx.junk.rspamd import Rspamd, RspamdUnavailable, Scan
from pymx.mail.spam import one_line
from pymx.mail.status import split_status
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply

WhenDown = Literal["accept", "junk", "defer"]

_LOG_EVERY_S = 60.0
_MAX_MESSAGE = 200
_ACTIONS = {
    "no action": Level.ACCEPT,
    "greylist": Level.DEFER,
    "soft reject": Level.DEFER,
    "add header": Level.JUNK,
    "rewrite subject": Level.JUNK,
    "quarantine": Level.JUNK,
    "discard": Level.JUNK,  # what was accepted is not thrown away
    "reject": Level.REJECT,
}
_REPLIES = {Level.DEFER: replies.TRY_LATER, Level.REJECT: replies.SPAM}
_DOWN = {"accept": Level.ACCEPT, "junk": Level.JUNK, "defer": Level.DEFER}

_log = log.get("checks")


class RspamdCheck:
    """The check by rspamd."""

    name = "rspamd"
    stages = (Stage.DATA,)
    needs = ("iprev",)  # rspamd wants to know the host's name

    def __init__(self, rspamd: Rspamd, *, when_down: WhenDown, max_octets: int) -> None:
        self._rspamd = rspamd
        self._max_octets = max_octets
        self._down = _DOWN[when_down]
        self._complained: float | None = None
        self._unscanned = 0
        self._retries = Retries()
        self._breaker = Breaker()

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        assert facts.content is not None
        if facts.content.size_octets > self._max_octets:
            return Verdict(word="too-large")
        origin = facts.origin
        if facts.iprev is not None and facts.iprev.result == "pass":
            origin = replace(origin, peer_name=facts.iprev.name)
        clock = asyncio.get_running_loop().time
        if not self._breaker.may_ask(clock()):
            return self.unavailable(facts, "it failed several times in a row and is asked again in a few seconds")
        answered = False
        try:
            scan = await self._rspamd.scan(
                facts.content,
                origin=origin,
                mail_from=facts.mail_from,
                recipients=facts.recipients,
                queue_id=facts.queue_id,
            )
            answered = True
        except RspamdUnavailable as e:
            return self.unavailable(facts, str(e))
        finally:
            # also when the time for all checks is over first
            if answered:
                self._breaker.succeeded()
            else:
                self._breaker.failed(clock())
        if self._complained is not None:
            self._complained = None
            self._unscanned = 0
            _log.info("rspamd_available")
        if scan.action == "greylist" and self._retries.came_back(facts, clock()):
            return replace(self._verdict(replace(scan, action="no action")), word="greylist-passed")
        return self._verdict(scan)

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        self._complain(reason)
        return Verdict(
            level=self._down,
            reply=replies.TRY_LATER if self._down is Level.DEFER else None,
            reason=f"rspamd could not be asked: {reason}",
            word="unavailable",
        )

    async def close(self) -> None:
        await self._rspamd.close()

    def _complain(self, reason: str) -> None:
        self._unscanned += 1
        now = asyncio.get_running_loop().time()
        if self._complained is None or now - self._complained >= _LOG_EVERY_S:
            self._complained = now
            _log.error("rspamd_unavailable", count=self._unscanned, verdict=self._down.word, reason=reason)

    def _verdict(self, scan: Scan) -> Verdict:
        level = _ACTIONS.get(scan.action)
        if level is None:
            _log.warning("rspamd_action_unknown", key=scan.action)
            level = Level.ACCEPT
        score = scan.score
        reason = f"rspamd: {scan.action}, score {score.score:g} of {score.required:g}" if level else ""
        if level is Level.JUNK and score.tests:
            reason += f" ({', '.join(score.tests[:5])})"
        return Verdict(
            level=level,
            reply=_reply(level, scan.message),
            reason=reason,
            word=f"{scan.action.replace(' ', '-')}({score.score:g}/{score.required:g})",
            fields=scan.added,
            removals=scan.removed,
            spam=score,
        )


def _reply(level: Level, message: str) -> Reply | None:
    """The reply, with rspamd's own text where it has one for the peer."""
    reply = _REPLIES.get(level)
    text = one_line(split_status(message)[1])[:_MAX_MESSAGE]
    return reply.with_text(text) if reply is not None and text else reply
