"""The told barrier when an inode number comes back: what was synced under it was another file."""

from __future__ import annotations

import os
from pathlib import Path

from ms_support import OWNER, content, maildir

from pymx.config.model import Mail
from pymx.ms.disk import Disk
from pymx.ms.store import Append, Store


class Counting(Disk):
    """Counts the syncs of data."""

    synced = 0

    def fdatasync(self, fd: int) -> None:
        self.synced += 1
        super().fdatasync(fd)


async def test_a_mailbox_made_anew_is_synced_before_its_uids_are_told(tmp_path: Path) -> None:
    """STORE.md s. 4.2; file systems give the inode of a deleted uidlist to the next file."""
    disk = Counting()
    mail = Mail(root=str(tmp_path / "mail"))
    store = Store(mail, render=lambda _: (b"E", b"B", None), runtime_dir=None, hostname="mx.test", disk=disk)
    await store.start()
    await store.create(OWNER, "Foo")
    await store.append(OWNER, "Foo", [Append(content(str(n)), 0, (), None) for n in range(9)])
    box = store._account(OWNER).box(("Foo",))
    told = box._told[1]
    await store.delete(OWNER, "Foo")
    await store.create(OWNER, "Foo")
    box._told = (os.stat(maildir(tmp_path, ".Foo") / "dovecot-uidlist").st_ino, told)
    before = disk.synced
    await store.append(OWNER, "Foo", [Append(content("x"), 0, (), None)])
    assert disk.synced > before
    await store.close()
