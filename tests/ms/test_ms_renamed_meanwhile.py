"""A mailbox that is renamed or deleted between a message's place in it and the sync after that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ms_scenarios import BOX, INBOX, LAYOUT, account, content, uids

from pymx.ms import appending, copying, delivering, folders
from pymx.ms.account import Account
from pymx.ms.disk import Disk
from pymx.ms.errors import NoSuchMailbox

OTHER = ("Other",)


class Interrupted(Disk):
    """Somebody else does something just before a directory is synced; what is synced then is noted."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] | None = None
        self.synced: list[bytes] = []

    def _come_between(self, path: bytes) -> None:
        if self.meanwhile is not None and b".Box" in path:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()

    def sync_directory(self, path: bytes) -> None:
        self._come_between(path)
        super().sync_directory(path)

    def fsync_directory(self, fd: int, path: bytes) -> None:
        self._come_between(path)
        super().fsync_directory(fd, path)
        self.synced.append(os.readlink(b"/proc/self/fd/%d" % fd))

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self.synced.append(os.readlink(b"/proc/self/fd/%d" % fd))


@pytest.fixture
def disk() -> Interrupted:
    return Interrupted()


@pytest.fixture
def there(tmp_path: Path, disk: Interrupted) -> Account:
    root = os.fsencode(tmp_path / "alice")
    made, other = account(root, disk, "boot"), account(root, Disk(), "boot")
    made.make_inbox()
    folders.create(made.home, LAYOUT, BOX, "")
    made.box(BOX).refresh()
    delivering.deliver(made.box(INBOX), content("old"), 0, None)
    made.box(INBOX).refresh()
    disk.meanwhile = lambda: folders.rename(other.home, LAYOUT, BOX, OTHER)
    return made


def test_a_delivery_goes_along_and_is_on_disk(there: Account, disk: Interrupted) -> None:
    """Deferred, it would come once more."""
    placed = delivering.deliver(there.box(BOX), content("a"), 0, None)
    assert uids(there, OTHER) == {"a": placed.uid}
    assert disk.synced[-1].endswith(b"/.Other/new") or b"/.Other/new" in b" ".join(disk.synced)
    there.close()


def test_an_append_goes_along_and_is_on_disk(there: Account, disk: Interrupted) -> None:
    """A client that hears NO appends once more. Its UID is told, so the line is synced too."""
    _, new = appending.append(there.box(BOX), [(content("a"), 1, (), None)], None)
    assert [path.rsplit(b"/", 2)[1:] for path in disk.synced[-2:]] == [
        [b".Other", b"cur"],
        [b".Other", b"dovecot-uidlist"],
    ]
    assert uids(there, OTHER) == {"a": new[0]}
    there.close()


def test_a_copy_into_what_is_gone_says_so(there: Account) -> None:
    """NO [TRYCREATE], not a trouble of the server's."""
    source = there.box(INBOX)
    with pytest.raises(NoSuchMailbox):
        copying.copy(source, there.box(BOX), list(uids(there, INBOX).values()))
    there.close()


def test_a_mailbox_deleted_before_its_uidnext_is_told_is_gone(
    there: Account, disk: Interrupted, tmp_path: Path
) -> None:
    box = there.box(BOX)
    disk.meanwhile = None
    row = delivering.told_row(box)
    other = account(os.fsencode(tmp_path / "alice"), Disk(), "boot")
    folders.delete(other.home, LAYOUT, BOX)
    with pytest.raises(NoSuchMailbox):
        box.tell(row.uidlist_ino, row.uidlist_size + 1)
    other.close()
    there.close()
