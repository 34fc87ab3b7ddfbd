"""Reports that others send us, on their way from a session to the database.

A message for a mailbox here that looks like a report is copied, as a file, into `<data_dir>/reports/incoming` by the
process that accepted it (`Inbox`); that is all a session ever does, it delays no reply, and when too many lie there the
copy is left out. The runner (`Collector`) has the files read by a child process (`pymx.reports.reader`) with little
priority, a limit on memory and on processor time, and keeps what comes out if it is about a domain of ours. The message
itself goes to its mailbox like any other.

A message that is no report we can read is logged with the reason. A file whose reader died is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from pymx import log, metrics
from pymx.mail.address import Address
from pymx.mail.report import is_report
from pymx.reports.error import StoreUnavailable
from pymx.reports.received import Reading
from pymx.reports.store import Store

MAX_WAITING = 500  # files
MAX_WAITING_OCTETS = 256 * 1024 * 1024
MAX_OCTETS = 25 * 1024 * 1024  # of a message: 10 MB in base64, and then some
_MAX_COPYING = 8
_LOOK_EVERY_S = 2.0
_READER_S = 120.0
_BATCH = 50
_PAUSE_S = 600.0  # after an error of ours

_log = log.get("reports")


class Message(Protocol):
    """What is used of `spool.Content`."""

    @property
    def head(self) -> bytes: ...

    @property
    def size_octets(self) -> int: ...

    def chunks(self) -> Iterator[bytes]: ...


class Inbox:
    """Takes copies of what may be a report. `addresses`: local parts, or whole addresses, that are always looked at."""

    def __init__(self, directory: Path, addresses: Iterable[str]) -> None:
        self._directory = directory
        wanted = [address.lower() for address in addresses]
        self._addresses = frozenset(address for address in wanted if "@" in address)
        self._local_parts = frozenset(address for address in wanted if "@" not in address)
        self._copying: set[asyncio.Task[None]] = set()

    def offer(self, queue_id: str, recipients: Sequence[Address], content: Message) -> None:
        """A message was accepted for these addresses here. Never raises, never waits."""
        named = any(a.key in self._addresses or a.local_part.lower() in self._local_parts for a in recipients)
        if not recipients or not (named or is_report(content.head)):
            return
        if len(self._copying) >= _MAX_COPYING or content.size_octets > MAX_OCTETS:
            _leave_out(queue_id, "too many at once" if content.size_octets <= MAX_OCTETS else "it is too large")
            return
        task = asyncio.get_running_loop().create_task(self._copy(queue_id, content))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def close(self) -> None:
        """Let copies in progress end."""
        await asyncio.gather(*self._copying)

    async def _copy(self, queue_id: str, content: Message) -> None:
        try:
            await asyncio.to_thread(self._write, queue_id, content)
        except OSError as e:
            _leave_out(queue_id, str(e))

    def _write(self, queue_id: str, content: Message) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes = [entry.stat().st_size for entry in _entries(self._directory)]
        if len(sizes) >= MAX_WAITING:
            _leave_out(queue_id, f"{MAX_WAITING} wait to be read")
            return
        if sum(sizes) + content.size_octets > MAX_WAITING_OCTETS:
            _leave_out(queue_id, f"{MAX_WAITING_OCTETS // 1024 // 1024} MB wait to be read")
            return
        name = f"{int(time.time())}.{secrets.token_hex(4)}.{queue_id}"
        partial = self._directory / f".{name}"
        try:
            with partial.open("xb") as file:
                for chunk in content.chunks():
                    file.write(chunk)
            # not synced: a report that a power cut takes away is still in its mailbox
            partial.rename(self._directory / f"{name}.eml")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """The files in a directory, those that do not go away meanwhile."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                entry.stat()  # kept by the entry
                yield entry


def _leave_out(queue_id: str, reason: str) -> None:
    metrics.add("reports_unread")
    _log.warning("report_unread", queue_id=queue_id, reason=reason)


class Collector:
    """Has the copies read, and keeps the reports. `run` until cancelled."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        is_ours: Callable[[str], Awaitable[bool | None]],
        *,
        hostname: str,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """`is_ours`: is a domain ours? None: that can't be told now."""
        self._directory = directory
        self._store = store
        self._is_ours = is_ours
        self._hostname = hostname
        self._every_s = look_every_s

    async def run(self) -> None:
        await asyncio.to_thread(self._tidy)
        while True:
            pause_s = self._every_s
            try:
                await self.collect()
            except Exception:
                # an error of ours in reports is no reason to stop them, or anything else
                _log.exception("reports_failed")
                pause_s = _PAUSE_S
            await asyncio.sleep(pause_s)

    async def collect(self) -> None:
        """Read what is there."""
        names = (await asyncio.to_thread(self._waiting))[:_BATCH]
        if not names:
            return
        readings, trouble = await self._read(names)
        if not readings and not await asyncio.to_thread((self._directory / f"{names[0]}.reading").exists):
            raise RuntimeError(f"the reader of reports did not come to its first file: {trouble}")
        for place, name in enumerate(names):
            found = readings.get(name)
            if found is None:
                # the file that the reader was at when it ended; those after it are still called .eml
                if await asyncio.to_thread(self._drop, name + ".reading"):
                    _leave_out(_queue_id(name), "its reader was stopped: too much memory or time")
                continue
            if await self._keep(name, found):
                await asyncio.to_thread(self._drop, name + ".reading")
            else:
                # the accounts can't be asked; later, and so for what was read behind it
                await asyncio.to_thread(self._put_back, [n for n in names[place:] if n in readings])
                return

    async def _read(self, names: Sequence[str]) -> tuple[dict[str, Reading], str]:
        """The child's answers by file, and what it complained of."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "pymx.reports.reader", self._hostname,
            *(str(self._directory / name) for name in names),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaint = b"", b"no answer in time"
        try:
            async with asyncio.timeout(_READER_S):
                output, complaint = await process.communicate()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return await asyncio.to_thread(_answers, output), complaint.decode("utf-8", "replace")[-300:]

    async def _keep(self, name: str, found: Reading) -> bool:
        """Store the reports of one message; False when that can't be done now."""
        if found.reason:
            _leave_out(_queue_id(name), found.reason)
            return True
        for entry in found.reports:
            ours = await self._is_ours(entry.received.domain)
            if ours is None:
                return False
            if not ours:
                _leave_out(_queue_id(name), f"it is about {entry.received.domain}, which is not ours")
                continue
            try:
                new = await self._store.call(
                    lambda store, entry=entry: store.add_received(entry.received, entry.document)  # type: ignore[misc]  # entry is bound early
                )
            except StoreUnavailable as e:
                _leave_out(_queue_id(name), str(e))
                return True
            received = entry.received
            metrics.add("reports_received")
            _log.info(
                "report_received",
                queue_id=_queue_id(name), key=f"{received.kind} {received.domain}", reason=received.organization,
                verdict="new" if new else "known", count=received.good + received.bad,
            )  # fmt: skip
        return True

    def _waiting(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if name.endswith(".eml"))
        except FileNotFoundError:
            return []

    def _tidy(self) -> None:
        """What a predecessor was at when it ended."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(".reading") and self._drop(name):
                _leave_out(_queue_id(name), "the server stopped while it was read")
            elif name.startswith(".") and _age_s(self._directory / name) > 3600:
                self._drop(name)

    def _put_back(self, names: Iterable[str]) -> None:
        for name in names:
            (self._directory / f"{name}.reading").rename(self._directory / name)

    def _drop(self, name: str) -> bool:
        try:
            (self._directory / name).unlink()
        except FileNotFoundError:
            return False
        return True


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _answers(output: bytes) -> dict[str, Reading]:
    found = {}
    for line in output.splitlines():
        try:
            reading = msgspec.json.decode(line, type=Reading)
        except msgspec.DecodeError:
            break  # the reader ended in the middle of a line
        found[reading.name] = reading
    return found


def _queue_id(name: str) -> str:
    return name.split(".")[2] if name.count(".") >= 2 else ""
