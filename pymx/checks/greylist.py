"""Greylisting (RFC 6647): who looks bad is told to come back later, since many who send spam never do.

Asked for each recipient, after the hints about the host and the sender are there: only whose sum is `[checks]
greylist_score` or more is told 451 4.7.1, once for each (network, sender, recipient), a network being a /24 or a /64
(s. 4.3). Who comes back in time is let in, and known from then on. What is remembered is on disk, for all processes.

postmaster@ and abuse@ are never delayed. When the file can't be used the recipient is accepted: the log says so.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from pymx import log
from pymx.checks.check import Facts, Stage
from pymx.checks.verdict import ALWAYS_OPEN, Level, Verdict
from pymx.junk.greylist import Greylist, GreylistUnusable
from pymx.mail.peer import wide_network
from pymx.proto.smtp import reply as replies

_LOG_EVERY_S = 60.0

_log = log.get("checks")


class Greylisting:
    """The check. `remembered` is where it is kept who has been told."""

    name = "greylist"
    stages = (Stage.RCPT,)
    needs = ("iprev", "helo", "early_talker", "dnsbl", "dnswl", "spf")

    def __init__(self, remembered: Greylist, *, score: float) -> None:
        self._remembered = remembered
        self._score = score
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="greylist")
        self._complained: float | None = None

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        recipient = facts.recipients[-1].address
        score = round(sum(facts.scores.values()), 2)
        if score < self._score or recipient.local_part.lower() in ALWAYS_OPEN:
            return Verdict(word="not-asked")
        network = wide_network(facts.origin.peer_ip)
        mail_from = facts.mail_from.key if facts.mail_from is not None else ""
        loop = asyncio.get_running_loop()
        try:
            left_s = await loop.run_in_executor(
                self._thread, self._remembered.may_pass, network, mail_from, recipient.key, time.time()
            )
        except GreylistUnusable as e:
            self._complain(str(e))
            return self.unavailable(facts, str(e))
        if not left_s:
            return Verdict(word="passed")
        return Verdict(
            level=Level.DEFER,
            reply=replies.GREYLISTED,
            reason=f"{network} has hints of {score:g} and may come back in {left_s:.0f} s",
            word="deferred",
        )

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unavailable", reason=f"greylist: {reason}")

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._remembered.close()

    def _complain(self, reason: str) -> None:
        now = time.monotonic()
        if self._complained is None or now - self._complained >= _LOG_EVERY_S:
            self._complained = now
            _log.error("greylist_unavailable", reason=f"{reason}; nobody is delayed")
