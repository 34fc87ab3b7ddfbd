"""Refusing in the session what the next server refuses: no notification is better than one.

A message for an alias that leads to one address elsewhere, and to no mailbox here, is in the queue, durable, like any
other. But the session waits a little (`[forwarding] in_session_s`) for the first attempt before it answers. If the next
server refuses for good within that time, the runner asks the session; if that still waits, it takes it upon itself,
answers 550, and the runner tells nobody else. Whatever else happens, the answer is 250.

Session and runner may be different processes, and what they tell each other may get lost: then the sender hears it
twice, by the 550 and by a notification, never not at all. A session that has taken it and dies leaves a sender without
an answer, who sends the message again.

Notices from a session: `forward waits ID`, `forward taken ID`; from the runner: `forward failed ID STATUS`, `forward
settled ID`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from pymx import log, metrics
from pymx.queue.item import Attempt, Outcome, QueueId, Report, Result

NOTICE = "forward"
_MAX_REMEMBERED = 10_000  # messages, of each kind

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
        self._awaited: dict[str, None] = {}  # by sessions, as far as the runner has heard
        self._taken: dict[str, None] = {}
        self._is_runner = False

    def heard(self, notice: str) -> None:
        """A notice without its first word."""
        what, _, rest = notice.partition(" ")
        queue_id, _, status = rest.partition(" ")
        if what == "waits":
            if self._is_runner:
                _remember(self._awaited, queue_id)
            return
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
        self._tell(f"{NOTICE} waits {queue_id}")
        try:
            yield waiting
        finally:
            del self._waiting[queue_id]

    # --- the runner's end -------------------------------------------------------------------------------------------

    def watched(self, attempt: Try) -> Try:
        """`attempt`, with its result told to the session that waits for it. This process is the runner's then."""
        self._is_runner = True

        async def run(one: Attempt) -> list[Outcome]:
            outcomes = await attempt(one)
            if one.queue_id in self._awaited:
                del self._awaited[one.queue_id]
                # a message that had to wait for its first attempt was answered long ago
                if time.time() - one.arrived_s < self._seconds + self._answer_s:
                    if [outcome.result for outcome in outcomes] == [Result.FAILED]:
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

    async def _ask(self, queue_id: QueueId, status: str) -> None:
        asked = self._asked[queue_id] = asyncio.get_running_loop().create_future()
        try:
            self._tell(f"{NOTICE} failed {queue_id} {status}")
            await asyncio.wait({asked}, timeout=self._answer_s)
        finally:
            del self._asked[queue_id]
        if asked.done():
            _remember(self._taken, queue_id)


def _remember(where: dict[str, None], queue_id: str) -> None:
    """Keep it; when that are too many, the oldest goes."""
    where[queue_id] = None
    while len(where) > _MAX_REMEMBERED:
        del where[next(iter(where))]
