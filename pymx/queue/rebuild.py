"""The state database made anew from the content files.

The old database is moved aside, not deleted. Recovered is everything whose file does not say that it is done with:
envelope, arrival, content. Not in the files, and so lost: holds, the history of attempts, the time of the next try
(all is tried at once). A recipient whose delivery was recorded in the state but not yet marked in the file (a crash in
the moment between) is sent to again; the marks are synced before the commit, so that moment is short.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pymx import log
from pymx.config.model import Route
from pymx.mail.envelope import Envelope
from pymx.queue.destination import destination, routing_domain
from pymx.queue.files import DamagedFile, Files, sync_directory
from pymx.queue.item import LOCAL, QueueId
from pymx.queue.state import NewMessage, State

_PER_COMMIT = 1000
_log = log.get("queue")


def rows(
    queue_id: QueueId, envelope: Envelope, routes: Sequence[Route], *,
    arrived_s: float, size_octets: int, local: bool, numbers: Sequence[int] | None = None,
) -> NewMessage:  # fmt: skip
    """The state rows of a message, for all or some of its recipients."""
    chosen = range(len(envelope.recipients)) if numbers is None else numbers
    recipients = []
    for number in chosen:
        address = envelope.recipients[number].address
        to = LOCAL if local else destination(routes, address)
        recipients.append((number, to, str(address), routing_domain(address)))
    return NewMessage(
        queue_id=queue_id,
        mail_from=str(envelope.mail_from) if envelope.mail_from else "",
        account=envelope.origin.account,
        arrived_s=arrived_s,
        size_octets=size_octets,
        local=local,
        recipients=recipients,
    )


def rebuild(state: State, files: Files, routes: Sequence[Route], reason: str = "") -> int:
    """Put a new database in place of the old one; the number of messages found. `reason` says what was wrong with it.

    The caller holds the exclusive lock. The new one is written under another name and renamed when it is whole: half of
    one would make the other half of the messages look as if they were done with.
    """
    state.close()
    names = files.names()
    existed = state.path.exists()
    aside = _move_aside(state.path)
    if reason and (existed or names):
        _log.error("queue_state_damaged", path=aside, reason=reason)
    new = State(state.path.with_suffix(".new"))
    for suffix in ("", "-wal", "-shm"):
        Path(f"{new.path}{suffix}").unlink(missing_ok=True)
    new.open(create=True)
    recovered = 0
    try:
        for start in range(0, len(names), _PER_COMMIT):
            with new.transaction():
                for name in names[start : start + _PER_COMMIT]:
                    recovered += _recover(new, files, routes, name)
    finally:
        new.close()  # the last connection moves the journal into the database and syncs it
    os.rename(new.path, state.path)
    sync_directory(state.path.parent)
    state.open()
    if existed or names:
        _log.info("queue_rebuilt", count=recovered)
    return recovered


def _move_aside(path: Path) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = f"{path}.damaged-{stamp}-{os.getpid()}"
    # the database first: found without its journal after a kill it would look whole, and lack the last commits
    for suffix in ("", "-wal", "-shm"):
        try:
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        except FileNotFoundError:
            continue
    return aside


def _recover(state: State, files: Files, routes: Sequence[Route], name: QueueId) -> int:
    try:
        message = files.read(name, content=False)
    except DamagedFile as e:
        files.set_aside(name)
        _log.error("queue_file_damaged", queue_id=name, reason=str(e))
        return 0
    numbers = [number for number, _ in message.waiting()]
    if not numbers:
        files.remove(name)
        return 0
    row = rows(
        name, message.envelope, routes, arrived_s=message.arrived_s, size_octets=message.content_octets,
        local=message.local, numbers=numbers,
    )  # fmt: skip
    state.insert([row])
    return 1


def reconcile(state: State, files: Files) -> tuple[int, int]:
    """Remove files without rows and rows without files; how many of each. The caller holds the exclusive lock.

    A file without rows was never acknowledged, or is done with. Rows without a file can only come from outside.
    """
    with_file = set(files.names())
    with_rows = set(state.queue_ids())
    for queue_id in with_file - with_rows:
        files.remove(queue_id)
    lost = with_rows - with_file
    if lost:
        with state.transaction():
            for queue_id in lost:
                _log.error("queue_file_missing", queue_id=queue_id)
            state.delete(list(lost))
    return len(with_file - with_rows), len(lost)
