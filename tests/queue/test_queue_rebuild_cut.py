"""A rebuild of the queue that is cut off: whatever step it had reached, the next start has every message."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from queue_samples import OUTBOUND, copy, want

from pymx.queue import rebuild as module
from pymx.queue.files import Files
from pymx.queue.queue import Queue
from pymx.queue.state import State


class Killed(BaseException):
    """kill -9, as far as the code after it can tell."""


@pytest.mark.parametrize("step", range(6))
async def test_a_rebuild_killed_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The last commits are in the journal: the database must not be found without it and believed."""
    running = Queue(tmp_path / "running", OUTBOUND)
    await running.start()
    message = copy("bob@remote.test")
    await running.enqueue([message])
    directory = tmp_path / "queue"
    shutil.copytree(tmp_path / "running", directory)  # as the killed processes leave it: the journal not yet merged
    await running.close()
    assert (directory / "state.sqlite-wal").stat().st_size

    renames = 0

    def rename(old: object, new: object) -> None:
        nonlocal renames
        if renames == step:
            raise Killed
        renames += 1
        os_rename(old, new)  # type: ignore[arg-type]

    os_rename = os.rename
    files = Files(directory)
    files.open()
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "rename", rename)
        try:
            module.rebuild(state := State(directory / "state.sqlite"), files, [], "a test")
            state.close()
        except Killed:
            pass
    files.close()

    queue = Queue(directory, OUTBOUND)
    await queue.start()
    try:
        await queue.recover()
        taken = await queue.take(want())
        assert [item.queue_id for item in taken.items] == [message.queue_id]
        assert (await queue.load(message.queue_id)).content.read() == message.content.read()
    finally:
        await queue.close()
