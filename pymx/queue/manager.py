"""The runner's side of the queue: what is tried when, by how many at a time, and what becomes of it.

Memory holds an active window, not the queue: some thousand deliveries, new and deferred mail counted apart so that a
heap of old mail never keeps new mail waiting, and at most a hundred of one destination, so that a slow one does not
fill it. Slots go round the destinations in turn; a slot works through its destination's messages while nobody else
wants it, so connections are reused.

Only one runner works at a time: it holds a lock on `<directory>/runner.lock` that the kernel drops when it dies. The
next one then voids the leases and goes on at once. What is taken is leased; what ends is recorded in batches, and an
attempt whose end was not yet recorded when the runner died is made again.

An exception in an attempt is logged and defers the message. A disk that fails when results are recorded stops new
attempts until it works again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pymx import log, metrics
from pymx.mail.envelope import Envelope
from pymx.queue.files import DamagedFile, StoredMessage, only
from pymx.queue.item import LOCAL, Attempt, Outcome, Report, Result
from pymx.queue.lanes import Lanes
from pymx.queue.queue import Queue
from pymx.queue.schedule import expires_at, has_expired, next_try, notice_is_due
from pymx.queue.state import Finished, Item, Want

_POLL_S = 1.0
_WINDOW = 4000  # deliveries waiting in memory: of new mail, and as many of deferred
_PER_DESTINATION = 100  # of them to one destination
_PAGE = 256
_MAX_UNRECORDED = 1000

_log = log.get("queue")

Try = Callable[[Attempt], Awaitable[list[Outcome]]]
Tell = Callable[[Report], Awaitable[None]]


class Manager:
    """Takes deliveries out of the queue and has them tried.

    `attempt` tries remote destinations, `local_attempt` copies for mailboxes here; each gives one outcome per
    recipient, in order. `gave_up` is told of failed recipients before that is recorded, `delayed` of late ones,
    `delivered` of delivered ones whose sender asked to know.
    """

    def __init__(
        self, queue: Queue, attempt: Try, gave_up: Tell, delayed: Tell, *,
        local_attempt: Try | None = None, delivered: Tell | None = None,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._outbound = queue.outbound
        self._attempt = attempt
        self._local_attempt = local_attempt
        self._gave_up = gave_up
        self._delayed = delayed
        self._delivered = delivered
        self._lanes = Lanes(self._outbound.max_per_destination)
        self._active = 0
        self._busy: set[tuple[str, str]] = set()
        self._spilled: set[str] = set()
        self._after_id = 0
        self._after_due = (0.0, 0)
        self._changes = -1
        self._look_for_changes = True
        self._ends: list[Finished] = []
        self._ended = asyncio.Event()
        self._recorded = asyncio.Event()
        self._wake = asyncio.Event()
        self._stopping = False
        self._finished = False  # no attempt runs any more
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Work until cancelled or stopped. Waits first until no other runner is alive."""
        lock = await self._lock()
        try:
            await self._queue.recover()
            self._queue.wake = self._wake.set
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._record_ends())
                    listener = group.create_task(self._listen())
                    async with asyncio.TaskGroup() as workers:
                        self._group = workers
                        await self._feed()
                    listener.cancel()
                    self._finished = True
                    self._ended.set()
            finally:
                if self._ends:
                    await self._queue.record(self._ends)
                await self._queue.give_back([item.delivery for item in self._lanes.empty()])
        finally:
            os.close(lock)

    def stop(self) -> None:
        """End `run` when the attempts that are being made have ended."""
        self._stopping = True
        self._wake.set()

    def changed(self) -> None:
        """Somebody altered what waits (pymxctl): look at once."""
        self._look_for_changes = True
        self._wake.set()

    async def _lock(self) -> int:
        fd = os.open(self._queue.directory / "runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        waiting = False
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return fd
                except BlockingIOError:
                    if not waiting:
                        _log.warning("queue_runner_waits", reason="another runner is alive")
                    waiting = True
                    await asyncio.sleep(0.25)
        except BaseException:
            os.close(fd)
            raise

    # -- filling the window -----------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                more = await self._look()
            except OSError as e:
                _log.error("queue_unavailable", error=str(e))
                more = False
            self._start_workers()
            if more:
                continue
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                self._look_for_changes = True

    async def _look(self) -> bool:
        """Fill the window; True when there was more than one look brings."""
        now = time.time()
        if self._look_for_changes:
            self._look_for_changes = False
            await self._notice_changes()
        if now < self._after_due[0]:
            self._after_due = (0.0, 0)  # the clock was set back
        if len(self._ends) > _MAX_UNRECORDED:
            return False
        refill = [d for d in self._spilled if self._lanes.waiting(d) <= _PER_DESTINATION // 2][:_PAGE]
        want = Want(
            now=now,
            lease=os.getpid(),
            after_id=self._after_id,
            fresh_limit=max(0, min(_PAGE, _WINDOW - self._lanes.fresh)),
            after_due=self._after_due,
            deferred_limit=max(0, min(_PAGE, _WINDOW - self._lanes.deferred)),
            per_destination=_PER_DESTINATION,
            waiting=self._lanes.waiting_by_destination(),
            refill=refill,
        )
        taken = await self._queue.take(want)
        self._after_id, self._after_due = taken.after_id, taken.after_due
        self._spilled = (self._spilled - taken.refilled) | taken.spilled
        for item in taken.items:
            if (item.queue_id, item.destination) not in self._busy:
                self._lanes.add(item)
        return taken.more

    async def _notice_changes(self) -> None:
        changes = await self._queue.changes()
        if changes == self._changes:
            return
        if self._changes >= 0:
            await self._queue.give_back([item.delivery for item in self._lanes.empty()])
            self._spilled.clear()
        self._changes = changes
        self._after_id, self._after_due = 0, (0.0, 0)

    async def _listen(self) -> None:
        """Hints from other processes that something new waits."""
        path = self._queue.socket_path
        if path is None:
            return
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as hints:
            hints.bind(str(path))
            path.chmod(0o600)
            loop.add_reader(hints, self._hint, hints)
            try:
                await asyncio.Event().wait()
            finally:
                loop.remove_reader(hints)

    def _hint(self, hints: socket.socket) -> None:
        try:
            while True:
                hints.recv(16)
        except BlockingIOError:
            self._wake.set()

    # -- working ----------------------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        while self._active < self._outbound.max_deliveries and not self._stopping:
            destination = self._lanes.enter()
            if destination is None:
                return
            self._active += 1
            assert self._group is not None
            self._group.create_task(self._work(destination))

    async def _work(self, destination: str) -> None:
        """Work through a destination's messages until there are none or somebody else wants the slot."""
        try:
            while not self._stopping:
                item = self._lanes.pop(destination)
                if item is None:
                    break
                if destination in self._spilled and self._lanes.waiting(destination) <= _PER_DESTINATION // 2:
                    self._wake.set()
                key = (item.queue_id, item.destination)
                self._busy.add(key)
                try:
                    await self._try(item)
                except Exception as e:  # one message must not stop the others: it is tried again later
                    _log.exception("delivery_crashed", queue_id=item.queue_id, error=str(e))
                    self._end(item, time.time(), [], retry=True)
                while len(self._ends) > _MAX_UNRECORDED:
                    self._recorded.clear()
                    await self._recorded.wait()
                if self._active >= self._outbound.max_deliveries and self._lanes.any_ready:
                    break
        finally:
            self._lanes.leave(destination)
            self._active -= 1
        self._start_workers()
        if not self._lanes.any_ready:
            self._wake.set()

    async def _try(self, item: Item) -> None:
        started = time.monotonic()
        try:
            message = await self._queue.load(item.queue_id)
        except FileNotFoundError:
            await self._queue.set_aside(item.queue_id, "the file is gone")
            self._busy.discard((item.queue_id, item.destination))
            return
        except DamagedFile as e:
            await self._queue.set_aside(item.queue_id, str(e))
            self._busy.discard((item.queue_id, item.destination))
            return
        except OSError as e:
            _log.error("queue_file_unreadable", queue_id=item.queue_id, error=str(e))
            self._end(item, time.time(), [], retry=True)
            return
        attempt = Attempt(
            queue_id=item.queue_id,
            destination=item.destination,
            envelope=only(message.envelope, item.numbers),
            content=message.content,
            local=message.local,
            number=item.attempts + 1,
            arrived_s=message.arrived_s,
        )
        outcomes = await self._outcomes(attempt)
        duration_ms = int((time.monotonic() - started) * 1000)
        for outcome in outcomes:
            _log_attempt(attempt, outcome, duration_ms)
        await self._conclude(item, message, attempt, outcomes)

    async def _outcomes(self, attempt: Attempt) -> list[Outcome]:
        run = self._local_attempt if attempt.destination == LOCAL else self._attempt
        if run is None:
            return _all_deferred(attempt.envelope, "4.3.5 No local delivery is configured")
        try:
            outcomes = await run(attempt)
        except Exception as e:  # one message must not stop the others: it is tried again later
            _log.exception("delivery_crashed", queue_id=attempt.queue_id, error=str(e))
            return _all_deferred(attempt.envelope, "4.3.0 Internal error")
        if [o.recipient for o in outcomes] != list(attempt.envelope.recipients):
            _log.error("delivery_crashed", queue_id=attempt.queue_id, error="outcomes do not match recipients")
            return _all_deferred(attempt.envelope, "4.3.0 Internal error")
        return outcomes

    async def _conclude(
        self, item: Item, message: StoredMessage, attempt: Attempt, outcomes: Sequence[Outcome]
    ) -> None:
        """Tell whoever has to be told, then record."""
        now = time.time()
        arrived_s = message.arrived_s
        numbered = list(zip(item.numbers, outcomes, strict=True))
        if any(o.result is Result.DEFERRED for o in outcomes) and has_expired(self._outbound, arrived_s, now):
            numbered = [(n, _expired(o)) for n, o in numbered]
        told = False
        for _, outcome in numbered:
            metrics.add(f"queue_{outcome.result.value}")
        failed = [o for _, o in numbered if o.result is Result.FAILED]
        if failed and not await self._tell(self._gave_up, "bounce_failed", attempt, failed):
            # The sender would never know: keep these, and try again.
            numbered = [
                (n, replace(o, result=Result.DEFERRED) if o.result is Result.FAILED else o) for n, o in numbered
            ]
        late = [o for _, o in numbered if o.result is Result.DEFERRED]
        if late and notice_is_due(self._outbound, arrived_s, now, told=False):
            told = await self._queue.told(item.queue_id)
            if not told:
                told = await self._tell(self._delayed, "delay_notice_failed", attempt, late)
        wanted = [
            o for _, o in numbered
            if o.result is Result.DELIVERED and "SUCCESS" in o.recipient.notify and not o.dsn_passed_on
        ]  # fmt: skip
        if wanted and self._delivered is not None:
            await self._tell(self._delivered, "success_notice_failed", attempt, wanted)
        whole = len(item.numbers) == len(message.envelope.recipients)
        self._end(item, now, numbered, told=told, whole=whole, arrived_s=arrived_s)

    async def _tell(self, tell: Tell, event: str, attempt: Attempt, outcomes: Sequence[Outcome]) -> bool:
        report = Report(
            queue_id=attempt.queue_id,
            envelope=attempt.envelope,
            content=attempt.content,
            local=attempt.local,
            arrived_s=attempt.arrived_s,
            outcomes=tuple(outcomes),
            expires_s=expires_at(self._outbound, attempt.arrived_s),
        )
        try:
            await tell(report)
        except Exception as e:  # as in _outcomes: logged, and tried again with the next attempt
            _log.exception(event, queue_id=attempt.queue_id, error=str(e))
            return False
        return True

    # -- recording --------------------------------------------------------------------------------------------------

    def _end(
        self, item: Item, now: float, outcomes: Sequence[tuple[int, Outcome]], *,
        told: bool = False, whole: bool = False, arrived_s: float = 0.0, retry: bool = False,
    ) -> None:  # fmt: skip
        dice = random.random()  # noqa: S311  # jitter, not a secret
        next_s = next_try(
            self._outbound, arrived_s=now if retry else arrived_s, attempts=item.attempts + 1, now=now, dice=dice
        )
        self._ends.append(Finished(item, now, outcomes, next_s, told, whole))
        self._ended.set()

    async def _record_ends(self) -> None:
        """Everything that ended while the last commit was made goes into the next."""
        while self._ends or not self._finished:
            await self._ended.wait()
            self._ended.clear()
            batch = list(self._ends)
            if not batch:
                continue
            try:
                await self._queue.record(batch)
            except OSError as e:
                _log.error("queue_unavailable", error=str(e))
                self._ended.set()
                await asyncio.sleep(_POLL_S)
                continue
            del self._ends[: len(batch)]
            for finished in batch:
                self._busy.discard((finished.item.queue_id, finished.item.destination))
            self._recorded.set()


def _log_attempt(attempt: Attempt, outcome: Outcome, duration_ms: int) -> None:
    envelope = attempt.envelope
    write = _log.info if outcome.result is Result.DELIVERED else _log.warning
    write(
        "delivery_attempt",
        session=envelope.origin.session,
        queue_id=attempt.queue_id,
        mail_from=str(envelope.mail_from) if envelope.mail_from else "<>",
        rcpt_to=str(outcome.recipient.address),
        verdict=outcome.result.value,
        mx=outcome.mx,
        peer_ip=outcome.address,
        tls=outcome.tls,
        reply=outcome.reply,
        size_octets=attempt.content.size_octets,
        count=attempt.number,
        duration_ms=duration_ms,
    )


def _all_deferred(envelope: Envelope, reply: str) -> list[Outcome]:
    status = reply.partition(" ")[0]
    return [Outcome(recipient, Result.DEFERRED, status, reply) for recipient in envelope.recipients]


def _expired(outcome: Outcome) -> Outcome:
    """A deferred recipient after the end of the lifetime (RFC 3463 s. 3.5: 4.4.7, delivery time expired)."""
    if outcome.result is not Result.DEFERRED:
        return outcome
    return replace(outcome, result=Result.FAILED, status="5.4.7")
