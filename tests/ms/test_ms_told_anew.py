"""What was known of a mailbox that is another one now: synced lines, what is recent."""

from __future__ import annotations

import os
from pathlib import Path

from ms_support import OWNER, content, deliver, maildir, new_store

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


async def test_a_uidlist_that_another_process_rewrote_is_synced_before_its_uids_are_told(tmp_path: Path) -> None:
    """STORE.md s. 4.2, 4.9: at the second rewrite the new file may get the inode that the first one set free."""
    disk = Counting()
    mail = Mail(root=str(tmp_path / "mail"))
    store = Store(mail, render=lambda _: (b"E", b"B", None), runtime_dir=None, hostname="mx.test", disk=disk)
    await store.start()
    await store.append(OWNER, "INBOX", [Append(content(str(n)), 0, (), None) for n in range(9)])
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.remove(mailbox.uids[:-1])
    mailbox.close()
    path = maildir(tmp_path) / "dovecot-uidlist"
    header, *_, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + last)
    before = disk.synced
    await store.append(OWNER, "INBOX", [Append(content("x"), 0, (), None)])
    assert disk.synced > before
    await store.close()


async def test_messages_of_a_mailbox_put_in_place_of_another_are_recent(tmp_path: Path) -> None:
    """Restored from elsewhere, with a uidlist of its own: SELECT must still claim what is in `new/`."""
    store = new_store(tmp_path)
    await store.start()
    await deliver(store, "a", "b", "c")
    (await store.open(OWNER, "INBOX", read_only=False)).close()
    for file in (maildir(tmp_path) / "cur").iterdir():
        file.unlink()
    (maildir(tmp_path) / "dovecot-uidlist").write_bytes(b"3 V7 N1 G" + b"a" * 32 + b"\n")
    (maildir(tmp_path) / "new" / "1.M1P1.x").write_bytes(b"a: b\n\nc\n")
    status = await store.status(OWNER, "INBOX")
    assert (status.messages, status.recent, status.uidvalidity) == (1, 1, 7)
    (await store.open(OWNER, "INBOX", read_only=False)).close()
    assert not list((maildir(tmp_path) / "new").iterdir())
    await store.close()
