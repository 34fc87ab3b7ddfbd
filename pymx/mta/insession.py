"""Refusing in the session what the next server refuses: no notification is better than one.

A message for an alias that leads to one address elsewhere, and to no mailbox here, is in the queue, durable, like any
other. But the session waits a little (`[forwarding] in_session_s`) for the first attempt before it answers. If the next
server refuses for good within that time, the runner asks who is waiting; the session takes it upon itself, answers 550,
and the runner tells nobody else. Whatever else happens, the answer is 250.

Session and runner may be different processes, and what they tell each other may get lost: then the sender hears it
twice, by the 550 and by a notification, never not at all. A session that has taken it and dies leaves a sender without
an answer, who sends the message again.

Notices: `forward failed ID STATUS` and `forward settled ID` from the runner, `forward taken ID` from a session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from pymx import log, metrics
from pymx.mail.envelope import Listener
from pymx.queue.item import Attempt, Outcome, QueueId, Report, Result

NOTICE = "forward"
_MAX_TAKEN = 10_000

_log = log.get("mta")

Try = Callable[[Attempt], Awaitable[list[Outcome]]]


class Waiting:
    """What a session waits for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # "" = no refusal

    async def status(self) -> str:
        """The status code with which the next server refused; "" when it did not, or not in time."""
        await asyncio.wait({self.refusal}, timeout=self._seconds)
        if not self.refusal.done():
            self.refusal.cancel()  # from here on nobody takes it
            return ""
        return self.refusal.result()


class InSession:
    """Both ends of one process. `tell` gives a notice to every process, this one too; `heard` takes what arrives."""

    def __init__(self, seconds: float, tell: Callable[[str], None], *, answer_s: float = 3.0) -> None:
        self._seconds = seconds
        self._answer_s = answer_s  # time for a session on the same machine to say that it waits
        self._tell = tell
        self._waiting: dict[str, Waiting] = {}
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._taken: dict[str, None] = {}

    def heard(self, notice: str) -> None:
        """A notice without its first word."""
        what, _, rest = notice.partition(" ")
        queue_id, _, status = rest.partition(" ")
        if what == "taken":
            asked = self._asked.get(queue_id)
            if asked is not None and not asked.done():
                asked.set_result(None)
            return
        waiting = self._waiting.get(queue_id)
        if waiting is None or waiting.refusal.done():
            return
        if what == "failed":
            waiting.refusal.set_result(status)
            self._tell(f"{NOTICE} taken {queue_id}")
        elif what == "settled":
            waiting.refusal.set_result("")

    # --- the session's end ------------------------------------------------------------------------------------------

    @contextmanager
    def expect(self, queue_id: QueueId) -> Iterator[Waiting]:
        """Begin to listen before the message is in the queue."""
        waiting = self._waiting[queue_id] = Waiting(self._seconds)
        try:
            yield waiting
        finally:
            del self._waiting[queue_id]

    # --- the runner's end -------------------------------------------------------------------------------------------

    def watched(self, attempt: Try) -> Try:
        """`attempt`, with its result told to the session that waits for it."""

        async def run(one: Attempt) -> list[Outcome]:
            outcomes = await attempt(one)
            if self._may_be_awaited(one):
                if outcomes[0].result is Result.FAILED:
                    await self._ask(one.queue_id, outcomes[0].status)
                else:
                    self._tell(f"{NOTICE} settled {one.queue_id}")
            return outcomes

        return run

    def was_taken(self, report: Report) -> bool:
        """Has a session told the sender already?"""
        if report.queue_id not in self._taken:
            return False
        del self._taken[report.queue_id]
        for outcome in report.outcomes:
            metrics.add("forwards_refused_in_session")
            _log.info(
                "forward_refused_in_session",
                queue_id=report.queue_id,
                rcpt_to=str(outcome.recipient.address),
                reply=outcome.reply,
            )
        return True

    def _may_be_awaited(self, attempt: Attempt) -> bool:
        envelope = attempt.envelope
        return (
            attempt.number == 1
            and not attempt.local
            and len(envelope.recipients) == 1
            and "NEVER" not in envelope.recipients[0].notify
            and envelope.origin.listener is Listener.SMTP
            and 0 <= time.time() - attempt.arrived_s < self._seconds + self._answer_s
        )

    async def _ask(self, queue_id: QueueId, status: str) -> None:
        asked = self._asked[queue_id] = asyncio.get_running_loop().create_future()
        try:
            self._tell(f"{NOTICE} failed {queue_id} {status}")
            await asyncio.wait({asked}, timeout=self._answer_s)
        finally:
            del self._asked[queue_id]
        if asked.done():
            self._taken[queue_id] = None
            while len(self._taken) > _MAX_TAKEN:
                del self._taken[next(iter(self._taken))]
