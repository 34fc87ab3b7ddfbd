"""The runner's side of the queue: what is tried when, by how many at a time, and what becomes of it.

What is tried next is decided in `queue.window`, which holds some thousand deliveries, not the queue, and how fast each
provider or destination may be sent to in `queue.pace`; both are pure. Here are the clock, the slots (one task each),
and the look-ups of where destinations lead. What can't be tried for a while is put back with its time; it is told of
and given up at its own times like everything that waits, but that is no attempt.

Only one runner works at a time: it holds a lock on `<directory>/runner.lock` that the kernel drops when it dies. The
next one then voids the leases and goes on at once. What is taken is leased; what ends is recorded in batches, and an
attempt whose end was not yet recorded when the runner died is made again.

An exception in an attempt is logged and defers the message. A disk that fails when results are recorded stops new
attempts until it works again.

The paces (pauses, counts of the day) are written to `<directory>/pace.json` every few seconds and at the end, and read
at the start: after a kill some seconds of counting may be missing.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from pymx import log, metrics
from pymx.mail.envelope import Envelope
from pymx.queue.files import DamagedFile, StoredMessage, only
from pymx.queue.hints import listen
from pymx.queue.item import LOCAL, Attempt, Outcome, Report, Result
from pymx.queue.journal import log_attempt, log_change
from pymx.queue.pace import Rules
from pymx.queue.pacefile import load, save
from pymx.queue.place import Kind, Limits, Place
from pymx.queue.queue import Queue
from pymx.queue.schedule import expires_at, has_expired, next_try, notice_is_due
from pymx.queue.state import Finished, Item
from pymx.queue.window import Postpone, Start, Window

_POLL_S = 1.0
_MAX_UNRECORDED = 1000
_LOOKUPS = 20  # of places, at the same time
_SAVE_EVERY_S = 5.0
_POSTPONED_AT_ONCE = 200  # then others get a turn
_CONCLUDING = 50  # messages told of or given up without an attempt, at the same time

_log = log.get("queue")

Try = Callable[[Attempt], Awaitable[list[Outcome]]]
Tell = Callable[[Report], Awaitable[None]]
FindPlace = Callable[[str], Awaitable[Place]]


class Manager:
    """Takes deliveries out of the queue and has them tried.

    `attempt` tries remote destinations, `local_attempt` copies for mailboxes here; each gives one outcome per
    recipient, in order. `gave_up` is told of failed recipients before that is recorded, `delayed` of late ones,
    `delivered` of delivered ones whose sender asked to know. `find_place` says where a destination leads; without it
    every destination is a place of its own.
    """

    def __init__(
        self, queue: Queue, attempt: Try, gave_up: Tell, delayed: Tell, *,
        local_attempt: Try | None = None, delivered: Tell | None = None, find_place: FindPlace | None = None,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._outbound = queue.outbound
        self._attempt = attempt
        self._local_attempt = local_attempt
        self._gave_up = gave_up
        self._delayed = delayed
        self._delivered = delivered
        self._find_place = find_place
        self._limits = Limits(self._outbound.max_per_destination, self._outbound.max_messages_per_connection)
        self._window = self._empty_window({})
        self._active = 0
        self._concluding = 0
        self._busy: set[tuple[str, str]] = set()
        self._after_id = 0
        self._after_due = (0.0, 0)
        self._changes = (-1, -1)
        self._look_for_changes = True
        self._ends: list[Finished] = []
        self._ended = asyncio.Event()
        self._recorded = asyncio.Event()
        self._wake = asyncio.Event()
        self._stopping = False
        self._finished = False  # no attempt runs any more
        self._group: asyncio.TaskGroup | None = None
        self._saving = threading.Lock()
        self._looking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until cancelled or stopped. Waits first until no other runner is alive."""
        lock = await self._lock()
        try:
            await self._queue.recover()
            self._window = self._empty_window(await asyncio.to_thread(load, self._queue.directory))
            self._queue.wake = self._wake.set
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._record_ends())
                    listener = group.create_task(listen(self._queue.socket_path, self._wake.set))
                    saver = group.create_task(self._save_paces())
                    async with asyncio.TaskGroup() as workers:
                        self._group = workers
                        await self._feed()
                        for lookup in list(self._looking):
                            lookup.cancel()
                    listener.cancel()
                    saver.cancel()
                    self._finished = True
                    self._ended.set()
            finally:
                if self._ends:
                    await self._queue.record(self._ends)
                await self._queue.give_back([item.delivery for item in self._window.empty()])
                await self._save(self._window.saved(time.time()))
        finally:
            os.close(lock)

    def _empty_window(self, saved: dict[str, dict[str, object]]) -> Window:
        return Window(
            self._limits, Rules.of(self._outbound), slots=self._outbound.max_deliveries,
            placing=self._find_place is not None, known={LOCAL: Place(LOCAL, LOCAL, self._limits)},
            saved=saved, now=time.time(),
        )  # fmt: skip

    async def _save_paces(self) -> None:
        before: object = None
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            now = self._window.saved(time.time())
            if now != before:
                await self._save(now)
                before = now

    async def _save(self, paces: Mapping[str, Mapping[str, object]]) -> None:
        def run() -> None:
            with self._saving:  # one that was cancelled may still be at it
                save(self._queue.directory, paces)

        try:
            await asyncio.to_thread(run)
        except OSError as e:
            _log.error("queue_unavailable", error=f"pace.json: {e}")

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
                async with asyncio.timeout(self._wait_s()):
                    await self._wake.wait()
            except TimeoutError:
                self._look_for_changes = True

    def _wait_s(self) -> float:
        """How long to do nothing, if nobody calls: until something may start because of the time, or for a look."""
        full = self._active >= self._outbound.max_deliveries or self._concluding >= _CONCLUDING
        if full or len(self._ends) > _MAX_UNRECORDED:
            return _POLL_S
        return min(_POLL_S, max(0.01, self._window.next_timer() - time.time()))

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
        want = self._window.want(now, lease=os.getpid(), after_id=self._after_id, after_due=self._after_due)
        taken = await self._queue.take(want)
        self._after_id, self._after_due = taken.after_id, taken.after_due
        self._window.taken(taken)
        for item in taken.items:
            if (item.queue_id, item.destination) not in self._busy:
                self._window.add(item, now)
        self._start_lookups()
        return taken.more or (bool(want.refill) and bool(taken.items) and self._window.hungry)

    def _start_lookups(self) -> None:
        for destination in self._window.to_place(max(0, _LOOKUPS - len(self._looking))):
            assert self._group is not None
            task = self._group.create_task(self._look_up(destination))
            self._looking.add(task)
            task.add_done_callback(self._looked_up)

    async def _look_up(self, destination: str) -> None:
        """Ask where a destination leads."""
        assert self._find_place is not None
        try:
            place = await self._find_place(destination)
        except Exception as e:  # the attempt will say what is wrong with it
            _log.exception("delivery_crashed", key=destination, error=str(e))
            place = Place(destination, destination, self._limits, is_guess=True)
        excess = self._window.place(destination, place, time.time())
        self._start_workers()
        if excess:
            await self._queue.give_back([item.delivery for item in excess])

    def _looked_up(self, task: asyncio.Task[None]) -> None:
        self._looking.discard(task)
        if not task.cancelled() and not self._stopping:
            self._start_lookups()

    async def _notice_changes(self) -> None:
        changes = await self._queue.changes()
        if changes == self._changes:
            return
        if self._changes[0] >= 0:
            await self._queue.give_back([item.delivery for item in self._window.empty()])
            if changes[1] != self._changes[1]:
                self._window.forgive()
        self._changes = changes
        self._after_id, self._after_due = 0, (0.0, 0)

    # -- working ----------------------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        while self._active < self._outbound.max_deliveries and not self._stopping:
            start = self._next(None)
            if start is None:
                return
            self._active += 1
            assert self._group is not None
            self._group.create_task(self._work(start))

    def _next(self, after: Start | None) -> Start | None:
        """What to try now; what can't be tried for a while is put back on the way."""
        for _ in range(_POSTPONED_AT_ONCE):
            if len(self._ends) > _MAX_UNRECORDED or self._concluding >= _CONCLUDING:
                return None
            found = self._window.next(time.time(), after)
            if not isinstance(found, Postpone):
                return found
            self._postpone(found)
        self._wake.set()
        return None

    def _postpone(self, postponed: Postpone) -> None:
        item, now = postponed.item, time.time()
        late = notice_is_due(self._outbound, item.arrived_s, now, told=item.told)
        if late or has_expired(self._outbound, item.arrived_s, now):
            assert self._group is not None
            self._concluding += 1
            self._busy.add((item.queue_id, item.destination))
            self._group.create_task(self._conclude_postponed(postponed))
            return
        next_s = min(postponed.until_s, max(now, expires_at(self._outbound, item.arrived_s)))
        self._finish(Finished(item, now, [], next_s, postponed=f"not tried before its time: {postponed.reason}"))

    async def _conclude_postponed(self, postponed: Postpone) -> None:
        """Without an attempt, the message's time is over, or its sender has to be told that it is late."""
        item = postponed.item
        try:
            message = await self._load(item)
            if message is not None:
                attempt = _attempt(item, message, None)
                outcomes = _all_deferred(attempt.envelope, f"4.4.1 Not tried now: {postponed.reason}")
                await self._conclude(item, message, attempt, outcomes, next_s=postponed.until_s)
        except Exception as e:  # as in _work
            _log.exception("delivery_crashed", queue_id=item.queue_id, error=str(e))
            self._end(item, time.time(), [], retry=True)
        finally:
            self._concluding -= 1
        self._start_workers()

    async def _work(self, start: Start | None) -> None:
        """One slot: one attempt after the other."""
        try:
            while start is not None:
                key = (start.item.queue_id, start.item.destination)
                self._busy.add(key)
                outcomes: Sequence[Outcome] = ()
                try:
                    outcomes = await self._try(start.item, start.place)
                except Exception as e:  # one message must not stop the others: it is tried again later
                    _log.exception("delivery_crashed", queue_id=start.item.queue_id, error=str(e))
                    self._end(start.item, time.time(), [], retry=True)
                finally:
                    self._note_end(start, outcomes)
                while len(self._ends) > _MAX_UNRECORDED:
                    self._recorded.clear()
                    await self._recorded.wait()
                if self._window.hungry:
                    self._wake.set()
                start = None if self._stopping else self._next(start)
        finally:
            self._active -= 1
        self._start_workers()
        if self._window.hungry or not self._window.fresh:
            self._wake.set()

    def _note_end(self, start: Start, outcomes: Sequence[Outcome]) -> None:
        accepted = any(o.result is Result.DELIVERED for o in outcomes)
        strains = [o.strain for o in outcomes if o.strain is not None]
        strain = next((s for s in strains if s.kind is Kind.SLOW), None)
        if strain is None and strains and len(strains) == len(outcomes):
            strain = strains[0]  # nobody there had anything else to say
        for noted in self._window.end(start, strain, accepted=accepted, now=time.time()):
            log_change(noted, strain)

    async def _load(self, item: Item) -> StoredMessage | None:
        """The message; None when it can't be had, and what follows is done."""
        try:
            return await self._queue.load(item.queue_id)
        except FileNotFoundError:
            await self._queue.set_aside(item.queue_id, "the file is gone")
        except DamagedFile as e:
            await self._queue.set_aside(item.queue_id, str(e))
        except OSError as e:
            _log.error("queue_file_unreadable", queue_id=item.queue_id, error=str(e))
            self._end(item, time.time(), [], retry=True)
            return None
        self._busy.discard((item.queue_id, item.destination))
        return None

    async def _try(self, item: Item, place: Place) -> Sequence[Outcome]:
        started = time.monotonic()
        message = await self._load(item)
        if message is None:
            return ()
        attempt = _attempt(item, message, place)
        outcomes = await self._outcomes(attempt)
        duration_ms = int((time.monotonic() - started) * 1000)
        for outcome in outcomes:
            log_attempt(attempt, outcome, duration_ms)
        await self._conclude(item, message, attempt, outcomes)
        return outcomes

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
        self, item: Item, message: StoredMessage, attempt: Attempt, outcomes: Sequence[Outcome], *, next_s: float = 0.0
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
        self._end(item, now, numbered, told=told, whole=whole, arrived_s=arrived_s, not_before_s=next_s)

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
        told: bool = False, whole: bool = False, arrived_s: float = 0.0, retry: bool = False, not_before_s: float = 0.0,
    ) -> None:  # fmt: skip
        dice = random.random()  # noqa: S311  # jitter, not a secret
        next_s = next_try(
            self._outbound, arrived_s=now if retry else arrived_s, attempts=item.attempts + 1, now=now, dice=dice
        )
        self._finish(Finished(item, now, outcomes, max(next_s, not_before_s), told, whole))

    def _finish(self, finished: Finished) -> None:
        self._ends.append(finished)
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


def _attempt(item: Item, message: StoredMessage, place: Place | None) -> Attempt:
    return Attempt(
        queue_id=item.queue_id,
        destination=item.destination,
        envelope=only(message.envelope, item.numbers),
        content=message.content,
        local=message.local,
        number=item.attempts + 1,
        arrived_s=message.arrived_s,
        place=place,
    )


def _all_deferred(envelope: Envelope, reply: str) -> list[Outcome]:
    status = reply.partition(" ")[0]
    return [Outcome(recipient, Result.DEFERRED, status, reply) for recipient in envelope.recipients]


def _expired(outcome: Outcome) -> Outcome:
    """A deferred recipient after the end of the lifetime (RFC 3463 s. 3.5: 4.4.7, delivery time expired)."""
    if outcome.result is not Result.DEFERRED:
        return outcome
    return replace(outcome, result=Result.FAILED, status="5.4.7")
