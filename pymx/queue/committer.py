"""The thread through which everything that a process writes to the queue goes.

What waits is done together: the files of all waiting messages are written and synced (side by side when there are
several), linked, their directory synced once, and the rows of all go into one commit. There is no timer: a message
that comes alone is committed at once, those that come meanwhile share the next commit. Only a large message's file is
written beforehand, while others are committed, so that nobody waits for it.

Order for a message: content on disk, name on disk, rows committed, then its future is set. For results: marks in the
files of messages that partly wait still, rows committed, then the files of finished messages unlinked, for which no
message of the same commit waits. A file without rows is therefore either not acknowledged or finished with.

A shared lock on `<directory>/lock` is held from link to commit, so that whoever removes files without rows, or puts a
rebuilt database in place of a damaged one, takes it exclusively and sees no half-done commit of another process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pymx import log, metrics
from pymx.queue.files import Files
from pymx.queue.item import Copy, QueueId
from pymx.queue.state import Finished, NewMessage, State, StateDamaged

_MAX_BATCH = 256
_WRITERS = 4
_LARGE_OCTETS = 262_144

_log = log.get("queue")


@dataclass(slots=True)
class Enqueue:
    """Copies to accept, all or none."""

    copies: Sequence[Copy]
    rows: Sequence[NewMessage]
    done: asyncio.Future[None]
    fds: list[int] = field(default_factory=list)
    linked: list[Copy] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(slots=True)
class Record:
    """Ends of attempts."""

    finished: Sequence[Finished]
    done: asyncio.Future[None]
    error: BaseException | None = None


@dataclass(slots=True)
class Call:
    """Something else to do with the state, inside the transaction of the batch.

    `durable`: it has to be on disk afterwards. `alone`: outside of a transaction, while no process is between link and
    commit.
    """

    function: Callable[[State], object]
    done: asyncio.Future[object]
    durable: bool = False
    alone: bool = False
    result: object = None
    error: BaseException | None = None


Job = Enqueue | Record | Call


class Committer:
    """Owns the state connection. `repair` is called in the thread, with the exclusive lock, when it is damaged."""

    def __init__(self, state: State, files: Files, lock_path: Path, repair: Callable[[State, str], None]) -> None:
        self._state = state
        self._files = files
        self._lock_path = lock_path
        self._repair = repair
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="queue-committer", daemon=True)
        self._writers = concurrent.futures.ThreadPoolExecutor(_WRITERS, "queue-writer")
        self._lock_fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mend(self, reason: str) -> None:
        """The state could not be opened. Before `start`, in any thread."""
        with self._locked(fcntl.LOCK_EX):
            self._mend(reason)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Do what waits, then end the threads. Blocking."""
        self._writers.shutdown()
        self._jobs.put(None)
        self._thread.join()
        os.close(self._lock_fd)

    def submit(self, job: Job) -> None:
        if isinstance(job, Enqueue) and sum(copy.content.size_octets for copy in job.copies) > _LARGE_OCTETS:
            self._writers.submit(self._write_before, job)
        else:
            self._jobs.put(job)

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        fcntl.flock(self._lock_fd, mode)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        running = True
        while running:
            batch: list[Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    running = False
                    break
                batch.append(job)
                if len(batch) == _MAX_BATCH:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._do(batch)

    def _do(self, batch: list[Job]) -> None:
        enqueues = [job for job in batch if isinstance(job, Enqueue)]
        together = [job for job in batch if not (isinstance(job, Call) and job.alone)]
        try:
            for job in batch:
                if isinstance(job, Call) and job.alone:
                    self._alone(job)
            if together:
                self._write_files([job for job in enqueues if not job.fds and job.error is None])
                self._together(together, enqueues)
        except Exception as e:  # the thread must outlive every error: each caller gets it, the next batch is tried
            if not isinstance(e, OSError):
                _log.exception("queue_commit_failed", error=str(e))
            for job in together:
                job.error = job.error or e
        finally:
            self._tell(batch)
            self._release(enqueues)

    def _tell(self, jobs: Sequence[Job]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_settle, jobs)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more

    def _alone(self, job: Call) -> None:
        try:
            with self._locked(fcntl.LOCK_EX):
                self._current()
                try:
                    job.result = job.function(self._state)
                except StateDamaged as e:
                    self._mend(str(e))
                    job.result = job.function(self._state)
        except Exception as e:  # as in _do: the caller gets it
            job.error = e

    def _together(self, batch: list[Job], enqueues: list[Enqueue]) -> None:
        try:
            with self._locked(fcntl.LOCK_SH):
                if not self._state.was_replaced():
                    self._commit(batch, enqueues)
                    return
            reason = "another process moved it aside"
        except StateDamaged as e:
            reason = str(e)
        with self._locked(fcntl.LOCK_EX):
            self._mend(reason)
            self._commit(batch, enqueues)

    def _current(self) -> None:
        if self._state.was_replaced():
            self._mend("another process moved it aside")

    def _mend(self, reason: str) -> None:
        """With the exclusive lock held: open what another process rebuilt, or rebuild it ourselves."""
        if self._state.was_replaced():
            self._state.close()
            try:
                self._state.open()
            except StateDamaged as e:
                reason = str(e)
            else:
                return
        self._state.close()
        self._repair(self._state, reason)

    def _write_before(self, job: Enqueue) -> None:
        """In one of the writers' threads, before the job gets to the committing one."""
        try:
            self._write(job)
        except Exception as e:  # as in _do: the caller gets it
            _log.exception("queue_commit_failed", error=str(e))
            job.error = e
        self._jobs.put(job)

    def _write_files(self, enqueues: list[Enqueue]) -> None:
        if len(enqueues) == 1:
            self._write(enqueues[0])
        elif enqueues:
            list(self._writers.map(self._write, enqueues))

    def _write(self, job: Enqueue) -> None:
        try:
            for copy, row in zip(job.copies, job.rows, strict=True):
                job.fds.append(self._files.write(copy, row.arrived_s))
        except OSError as e:
            job.error = e

    def _commit(self, batch: list[Job], enqueues: list[Enqueue]) -> None:
        linked = False
        for job in enqueues:
            if job.error is None and not job.linked:
                try:
                    for copy, fd in zip(job.copies, job.fds, strict=True):
                        self._files.link(fd, copy.queue_id)
                        job.linked.append(copy)
                    linked = True
                except OSError as e:
                    job.error = e
        try:
            if linked:
                self._files.sync_names()
            removable = self._rows(batch)
        except BaseException:
            for job in enqueues:
                self._unlink(job)
            raise
        for job in enqueues:
            if job.error is not None:
                self._unlink(job)
        if removable and enqueues:
            self._tell(enqueues)  # an unlink takes as long as a sync
        for queue_id in removable:
            try:
                self._files.remove(queue_id)
            except OSError as e:  # the batch is committed; the next runner removes the file
                _log.error("queue_unavailable", queue_id=queue_id, error=f"unlink: {e}")

    def _rows(self, batch: list[Job]) -> list[QueueId]:
        """The rows of a batch in one commit; the messages whose files may go."""
        durable = any(not isinstance(job, Call) or job.durable for job in batch)
        for job in batch:
            if isinstance(job, Record):
                self._mark(job)
        with self._state.transaction(durable=durable):
            good = [job for job in batch if job.error is None]
            self._state.insert([row for job in good if isinstance(job, Enqueue) for row in job.rows])
            removable = self._state.record([end for job in good if isinstance(job, Record) for end in job.finished])
            for job in good:
                if isinstance(job, Call):
                    job.result = job.function(self._state)
        metrics.add("queue_commits")
        return removable

    def _mark(self, job: Record) -> None:
        """Before the commit: a rebuilt queue must not send again what is known to have arrived.

        A file that can't be marked is no reason to record nothing: only a rebuild would miss the marks, while a result
        that is not recorded is an attempt made again, and one bad file would stop the others of the batch with it.
        """
        for finished in job.finished:
            if finished.done and not (finished.whole and len(finished.done) == len(finished.item.numbers)):
                try:
                    self._files.mark_done(finished.item.queue_id, finished.done)
                except OSError as e:
                    _log.error("queue_mark_failed", queue_id=finished.item.queue_id, error=str(e))

    def _unlink(self, job: Enqueue) -> None:
        for copy in job.linked:
            self._files.remove(copy.queue_id)
        job.linked.clear()

    def _release(self, enqueues: list[Enqueue]) -> None:
        for job in enqueues:
            for fd in job.fds:
                try:
                    os.close(fd)
                except OSError as e:  # what had to be on disk was synced: this changes nothing for anybody
                    _log.error("queue_unavailable", error=f"close: {e}")
            job.fds.clear()


def _settle(batch: Sequence[Job]) -> None:
    """In the loop: tell the callers. One that was cancelled meanwhile is told nothing."""
    for job in batch:
        if job.done.done():
            continue
        if job.error is not None:
            job.done.set_exception(job.error)
        else:
            job.done.set_result(job.result if isinstance(job, Call) else None)  # type: ignore[arg-type]
