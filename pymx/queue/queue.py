"""The queue: messages that somebody else has to take, kept until he has.

`enqueue` returns when the copies survive a power cut: content file, its name and its rows are on disk, in one commit.
Any process may enqueue; one runner (`queue.manager`) takes out. What is on disk is described in `queue.files` and
`queue.state`, the order of writing in `queue.committer`.

Errors: `QueueFull` when `[outbound] max_queue_messages` wait already; OSError when the disk fails or is full. A
damaged state database is moved aside and rebuilt from the files by whoever meets it first, and the log says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from pymx import log, metrics
from pymx.config.model import Outbound
from pymx.queue.committer import Call, Committer, Enqueue, Record
from pymx.queue.files import Disk, Files, StoredMessage
from pymx.queue.item import Copy, QueueId
from pymx.queue.rebuild import rebuild, reconcile, rows
from pymx.queue.state import Finished, State, StateDamaged, Taken, Want

T = TypeVar("T")
_COUNT_EVERY_S = 10.0
_READERS = 2
_RECENT_OCTETS = 8 << 20  # kept of messages just accepted, for the attempt that follows at once
_RECENT_MESSAGE_OCTETS = 65_536  # larger ones are read from their file

_log = log.get("queue")


class QueueFull(Exception):
    """As many messages wait as the settings allow."""


class Queue:
    """The queue of one process; all processes share the directory."""

    def __init__(
        self, directory: Path, outbound: Outbound, *,
        runtime_dir: Path | None = None, disk: Disk | None = None, state: State | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.outbound = outbound
        self.socket_path = runtime_dir / "queue.sock" if runtime_dir else None
        self.wake: Callable[[], None] = self._wake_runner
        self._files = Files(directory, disk)
        self._state = state or State(directory / "state.sqlite")
        self._committer = Committer(self._state, self._files, directory / "lock", self._repair)
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, "queue-reader")
        self._recent: OrderedDict[QueueId, StoredMessage] = OrderedDict()
        self._recent_octets = 0
        self._count = 0
        self._counted_at = 0.0
        self._socket: socket.socket | None = None
        self._started = False

    async def start(self) -> None:
        """Open or create the queue. A state database that can't be opened is rebuilt."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._readers, self._open)
        self._committer.start(loop)
        self._started = True
        if self.socket_path is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        await self._refresh_count()

    def _open(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.open()
        self._committer.open()
        try:
            self._state.open()
        except StateDamaged as e:
            self._committer.mend(str(e))

    async def close(self) -> None:
        """Write what waits and close the files."""
        if self._started:
            self._started = False
            await asyncio.get_running_loop().run_in_executor(self._readers, self._committer.stop)
        self._readers.shutdown()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._state.close()
        self._files.close()

    # -- taking in --------------------------------------------------------------------------------------------------

    async def enqueue(self, copies: Sequence[Copy]) -> list[QueueId]:
        """Accept copies, all or none; they are durable at return. Raises QueueFull, OSError."""
        if not copies:
            return []
        await self._refresh_count()
        if self._count + len(copies) > self.outbound.max_queue_messages:
            raise QueueFull
        now = time.time()
        job = Enqueue(
            copies,
            [
                rows(
                    copy.queue_id, copy.envelope, self.outbound.route,
                    arrived_s=now, size_octets=copy.content.size_octets, local=copy.local,
                )
                for copy in copies
            ],
            asyncio.get_running_loop().create_future(),
        )  # fmt: skip
        self._committer.submit(job)
        await _as_disk_error(job.done)
        self._count += len(copies)
        metrics.add("queue_messages_accepted", len(copies))
        for copy in copies:
            self._remember(copy, now)
        self.wake()
        return [copy.queue_id for copy in copies]

    def _remember(self, copy: Copy, arrived_s: float) -> None:
        """Keep a small message for the attempt that follows at once, if the runner is in this process."""
        octets = copy.content.size_octets
        if octets > _RECENT_MESSAGE_OCTETS or not copy.content.in_memory or self.wake == self._wake_runner:
            return
        self._recent[copy.queue_id] = StoredMessage(
            copy.queue_id, copy.envelope, copy.content, octets, copy.local, arrived_s,
            (False,) * len(copy.envelope.recipients),
        )  # fmt: skip
        self._recent_octets += octets
        while self._recent_octets > _RECENT_OCTETS:
            self._recent_octets -= self._recent.popitem(last=False)[1].content_octets

    async def _refresh_count(self) -> None:
        now = time.monotonic()
        if now - self._counted_at > _COUNT_EVERY_S or not self._counted_at:
            self._counted_at = now
            self._count = await self._call(State.count)

    def _wake_runner(self) -> None:
        """A droppable hint; the runner looks every second anyway."""
        if self._socket is not None and self.socket_path is not None:
            try:
                self._socket.sendto(b"q", str(self.socket_path))
            except OSError:
                pass

    # -- for the runner ---------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """What a new runner does first: check, void the leases of its dead predecessor, tidy up.

        Only for the one who holds the runner's lock.
        """
        removed, lost = await self._call(self._recover_now, alone=True)
        _log.info("queue_opened", count=self._count, removed=removed, lost=lost)

    def _recover_now(self, state: State) -> tuple[int, int]:
        state.check()
        with state.transaction(durable=False):
            state.void_leases()
        return reconcile(state, self._files)

    async def take(self, want: Want) -> Taken:
        return await self._call(lambda state: state.take(want))

    async def give_back(self, deliveries: Iterable[int]) -> None:
        given = list(deliveries)
        await self._call(lambda state: state.void_leases(given))

    async def record(self, finished: Sequence[Finished]) -> None:
        """Write down the ends of attempts; on disk at return."""
        job = Record(finished, asyncio.get_running_loop().create_future())
        self._committer.submit(job)
        await _as_disk_error(job.done)

    async def changes(self) -> tuple[int, int]:
        """Two numbers: see State.changes."""
        return await self._call(State.changes)

    async def told(self, queue_id: QueueId) -> bool:
        """Whether the sender was told of the delay."""
        facts = await self._call(lambda state: state.facts(queue_id))
        return facts is not None and facts[1]

    async def load(self, queue_id: QueueId) -> StoredMessage:
        """A message with its content. Raises FileNotFoundError, DamagedFile, OSError."""
        recent = self._recent.pop(queue_id, None)
        if recent is not None:
            self._recent_octets -= recent.content_octets
            return recent
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._files.read, queue_id)

    async def set_aside(self, queue_id: QueueId, reason: str) -> None:
        """Take a damaged message out of the queue, keeping its file for a person to look at."""
        _log.error("queue_file_damaged", queue_id=queue_id, reason=reason)

        def drop(state: State) -> None:
            state.delete([queue_id])
            try:
                self._files.set_aside(queue_id)
            except FileNotFoundError:
                pass

        await self._call(drop, durable=True)

    async def rebuild(self) -> int:
        """Make the state anew from the files; the number of messages found."""
        return await self._call(lambda state: rebuild(state, self._files, self.outbound.route), alone=True)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _repair(self, state: State, reason: str) -> None:
        rebuild(state, self._files, self.outbound.route, reason)

    async def _call(self, function: Callable[[State], T], *, durable: bool = False, alone: bool = False) -> T:
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._committer.submit(Call(function, done, durable, alone))
        return cast(T, await _as_disk_error(done))


async def _as_disk_error(done: asyncio.Future[T]) -> T:
    try:
        return await done
    except StateDamaged as e:
        # It could not be rebuilt either: for the caller that is a disk that fails.
        raise OSError(errno.EIO, f"queue state: {e}") from e
