"""The event store of a running server, as one process has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pymx.events.feed import SOCKET, Feed
from pymx.events.recorder import Recorder
from pymx.events.store import FILE, EventStore


@contextlib.contextmanager
def keep_events(data_dir: Path, runtime_dir: Path, *, keep_days: int, max_mb: int, records: bool) -> Iterator[None]:
    """Feed the store while in the context, and write it if `records`: one process of a server does. Raises OSError."""
    if not keep_days:
        yield
        return
    path = store_path(data_dir)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if records:
            recorder = Recorder(
                EventStore(path), runtime_dir / SOCKET, keep_days=keep_days, max_octets=max_mb * 1024 * 1024
            )
            recorder.start()
            stack.callback(recorder.close)
        feed = Feed(runtime_dir / SOCKET, EventStore(path))
        feed.start()
        stack.callback(feed.close)
        yield


def store_path(data_dir: Path) -> Path:
    return data_dir / "events" / FILE
