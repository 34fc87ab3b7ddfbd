"""COPY while others rename and remove the files."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ms_support import OWNER, deliver, look, new_store

from pymx.mail.flags import DELETED, FLAGGED
from pymx.ms.disk import Disk
from pymx.ms.store import Store


class Renaming(Disk):
    """Renames the source's file just before it is linked, as often as told."""

    times = 0

    def link(self, source: bytes, target: bytes) -> None:
        if self.times and b"/.Trash/" in target:
            self.times -= 1
            moved = Path(source.decode().partition(":2,")[0] + f":2,{'F' * (self.times % 2)}S")
            Path(source.decode()).rename(moved)
        super().link(source, target)


async def test_copy_follows_files_that_are_renamed_meanwhile(tmp_path: Path) -> None:
    """A STORE of another session between the look-up and the link must not fail a COPY."""
    store = new_store(tmp_path)
    disk = store.disk = Renaming()
    await store.start()
    uids = await deliver(store, "one", "two", "three")
    await store.create(OWNER, "Trash")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    disk.times = 4
    copied = await mailbox.copy(uids, "Trash")
    assert copied.source_uids == uids
    assert sorted((await look(store, "Trash")).values()) == ["one", "three", "two"]
    mailbox.close()
    await store.close()


async def test_copies_stores_and_expunges_at_the_same_time(tmp_path: Path) -> None:
    """What is copied is copied once and whole, what is gone is left out; nobody gets an error."""
    store = new_store(tmp_path)
    await store.start()
    uids = await deliver(store, *(f"m{number}" for number in range(12)))
    await store.create(OWNER, "Trash")
    mailboxes = [await store.open(OWNER, "INBOX", read_only=False) for _ in range(3)]

    async def flag(times: int) -> None:
        for number in range(times):
            await mailboxes[0].store_flags(uids, "add" if number % 2 else "remove", FLAGGED, ())

    async def expunge() -> None:
        for uid in uids[::3]:
            await mailboxes[1].store_flags([uid], "add", DELETED, ())
            await mailboxes[1].expunge([uid])

    async def copy(store: Store) -> int:
        return sum([len((await mailboxes[2].copy(uids, "Trash")).target_uids) for _ in range(8)])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(flag(30))
        tasks.create_task(expunge())
        copying = tasks.create_task(copy(store))
    assert len(await look(store, "Trash")) == copying.result() >= 8 * 8
    assert len(await look(store)) == 8
    for mailbox in mailboxes:
        mailbox.close()
    await store.close()
