"""What the store tells of moves: to which mailbox with which special use, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, content, deliver, new_store

from pymx.ms.change import Change
from pymx.ms.errors import NoSuchMailbox
from pymx.ms.store import Append, Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = new_store(tmp_path)
    await store.start()
    await store.prepare(OWNER)
    yield store
    await store.close()


@pytest.fixture
def told(store: Store) -> list[Change]:
    changes: list[Change] = []
    store.changed = changes.append
    return changes


async def test_copy_and_move_are_told_with_the_uids_of_the_target(store: Store, told: list[Change]) -> None:
    """The special use is the settings' for the name, or what CREATE gave it (RFC 6154)."""
    await store.create(OWNER, "Unwanted", "\\Junk")
    await deliver(store, "a", "b", "c")
    inbox = await store.open(OWNER, "INBOX", read_only=False)
    copied = await inbox.copy([1, 2], "Junk")
    moved = await inbox.move([3], "Unwanted")
    inbox.close()
    junk = await store.open(OWNER, "Junk", read_only=False)
    await junk.move([2], "INBOX")
    junk.close()
    assert told == [
        Change(OWNER, "INBOX", "Junk", "", "\\Junk", copied.uidvalidity, (1, 2)),
        Change(OWNER, "INBOX", "Unwanted", "", "\\Junk", moved.uidvalidity, (1,)),
        Change(OWNER, "Junk", "INBOX", "\\Junk", "", inbox.uidvalidity, (4,)),
    ]


async def test_nothing_else_is_told(store: Store, told: list[Change]) -> None:
    """Not a move of nothing or to nowhere, no delivery, APPEND, EXPUNGE or RENAME."""
    await deliver(store, "a", "b")
    await store.append(OWNER, "Junk", [Append(content("c"), 0, (), None)])
    inbox = await store.open(OWNER, "INBOX", read_only=False)
    with pytest.raises(NoSuchMailbox):
        await inbox.move([1], "Nowhere")
    await inbox.move([7], "Junk")
    await inbox.remove([1])
    inbox.close()
    await store.rename(OWNER, "Junk", "Old")
    await store.rename(OWNER, "INBOX", "All")
    assert told == []


async def test_without_a_listener_a_move_is_a_move(store: Store) -> None:
    await deliver(store, "a")
    inbox = await store.open(OWNER, "INBOX", read_only=False)
    assert (await inbox.move([1], "Junk")).target_uids == [1]
    inbox.close()
