"""A mailbox that is renamed or deleted between a message's place in it and the sync after that."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ms_scenarios import BOX, INBOX, LAYOUT, account, content, uids
from ms_support import OWNER, deliver, look, maildir, new_store

from pymx.ms import appending, copying, delivering, folders
from pymx.ms.account import Account
from pymx.ms.disk import Disk
from pymx.ms.errors import NoSuchMailbox, Unavailable

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


def copy(there: Account) -> copying.Copied:
    """All that is in INBOX to Box."""
    return copying.copy(there.box(INBOX), there.box(BOX), sorted(uids(there, INBOX).values()), there.with_guid)


def after_commits(there: Account, work: Callable[[], None], number: int) -> None:
    """Have `work` done once, when this number of commits was told of."""
    told: list[int] = []

    def changed(guid: str, modseq: int) -> None:
        told.append(modseq)
        if len(told) == number:
            work()

    object.__setattr__(there.home, "changed", changed)


def test_a_copy_goes_along_and_is_on_disk(there: Account, disk: Interrupted) -> None:
    """A client that hears NO copies once more, and has everything twice."""
    copied = copy(there)
    assert [path.rsplit(b"/", 2)[1:] for path in disk.synced[-2:]] == [
        [b".Other", b"new"],
        [b".Other", b"dovecot-uidlist"],
    ]
    assert uids(there, OTHER) == {"old": copied.target_uids[0]}
    assert delivering.told_row(there.box(OTHER)).uidvalidity == copied.uidvalidity
    there.close()


def test_a_copy_into_what_is_deleted_says_so(there: Account, disk: Interrupted, tmp_path: Path) -> None:
    """NO [TRYCREATE], not a trouble of the server's; a MOVE keeps its messages."""
    other = account(os.fsencode(tmp_path / "alice"), Disk(), "boot")
    disk.meanwhile = lambda: folders.delete(other.home, LAYOUT, BOX)
    with pytest.raises(NoSuchMailbox):
        copy(there)
    there.close()


@pytest.mark.parametrize("again", [False, True], ids=["renamed", "another made in its place"])
@pytest.mark.parametrize("hold", [1, 2])
def test_a_copy_of_many_follows_the_mailbox(
    there: Account, disk: Interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: int, again: bool
) -> None:
    """The rest goes to where the first ones are."""
    disk.meanwhile = None
    monkeypatch.setattr(copying, "HOLD_MESSAGES", 1)
    for token in ("b", "c"):
        delivering.deliver(there.box(INBOX), content(token), 0, None)
    there.box(INBOX).refresh()
    other = account(os.fsencode(tmp_path / "alice"), Disk(), "boot")

    def rename() -> None:
        folders.rename(other.home, LAYOUT, BOX, OTHER)
        if again:
            folders.create(other.home, LAYOUT, BOX, "")

    after_commits(there, rename, hold)
    copied = copy(there)
    found = uids(there, OTHER)
    assert found.keys() == {"old", "b", "c"}
    assert sorted(found.values()) == copied.target_uids
    assert delivering.told_row(there.box(OTHER)).uidvalidity == copied.uidvalidity
    if again:
        assert uids(there, BOX) == {}
    other.close()
    there.close()


class Full(Disk):
    """No room any more, from some line of a uidlist on."""

    lines_left = 1000

    def append(self, fd: int, data: bytes) -> None:
        if not self.lines_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.lines_left -= 1
        super().append(fd, data)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_copy_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    """RFC 9051 s. 6.4.7: the destination is restored to its state before the COPY, wherever it is by then."""
    root, disk = os.fsencode(tmp_path / "alice"), Full()
    there, other = account(root, disk, "boot"), account(root, Disk(), "boot")
    there.make_inbox()
    folders.create(there.home, LAYOUT, BOX, "")
    delivering.deliver(there.box(BOX), content("kept"), 0, None)
    for token in ("a", "b", "c"):
        delivering.deliver(there.box(INBOX), content(token), 0, None)
    for place in (INBOX, BOX):
        there.box(place).refresh()
    monkeypatch.setattr(copying, "HOLD_MESSAGES", 1)
    disk.lines_left = 2
    if renamed:
        after_commits(there, lambda: folders.rename(other.home, LAYOUT, BOX, OTHER), 2)
    with pytest.raises(OSError, match="No space"):
        copy(there)
    assert uids(there, OTHER if renamed else BOX).keys() == {"kept"}
    assert uids(there, INBOX).keys() == {"a", "b", "c"}
    other.close()
    there.close()


@pytest.mark.parametrize("target", [BOX, OTHER])
def test_what_a_failed_copy_takes_back_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    """Not a message with the same UID of a mailbox that is a copy made by hand, with the same GUID."""
    root, disk = tmp_path / "alice", Full()
    there = account(os.fsencode(root), disk, "boot")
    there.make_inbox()
    folders.create(there.home, LAYOUT, BOX, "")
    there.box(BOX).refresh()
    shutil.copytree(root / ".Box", root / ".Other")
    twin = OTHER if target == BOX else BOX
    for token in ("mine", "too"):
        delivering.deliver(there.box(twin), content(token), 0, None)
    for token in ("a", "b", "c"):
        delivering.deliver(there.box(INBOX), content(token), 0, None)
    found = uids(there, twin)
    assert uids(there, target) == {}
    monkeypatch.setattr(copying, "HOLD_MESSAGES", 1)
    disk.lines_left = 2
    with pytest.raises(OSError, match="No space"):
        copying.copy(there.box(INBOX), there.box(target), sorted(uids(there, INBOX).values()), there.with_guid)
    assert uids(there, twin) == found
    assert uids(there, target) == {}
    there.close()


def test_a_copy_that_can_not_be_synced_leaves_nothing(there: Account, disk: Interrupted) -> None:
    """Its NO means the same as that of one that could not be written."""

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.meanwhile = fail
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        copy(there)
    assert uids(there, BOX) == {}
    there.close()


def replace(there: Account, *tokens: str) -> None:
    """Box becomes Other, and another Box has these messages, with the same UIDs."""
    other = account(there.home.root, Disk(), "boot")
    folders.rename(other.home, LAYOUT, BOX, OTHER)
    folders.create(other.home, LAYOUT, BOX, "")
    for token in tokens:
        delivering.deliver(other.box(BOX), content(token), 0, None)
    other.close()


def test_a_move_removes_none_of_a_mailbox_made_in_the_place_of_its_source(there: Account, disk: Interrupted) -> None:
    """Its messages have the UIDs of those that were copied."""
    disk.meanwhile = None
    delivering.deliver(there.box(BOX), content("a"), 0, None)
    moved = uids(there, BOX)
    after_commits(there, lambda: replace(there, "new"), 1)
    copying.move(there.box(BOX), there.box(INBOX), list(moved.values()), there.with_guid)
    assert uids(there, BOX) == {"new": moved["a"]}
    assert uids(there, OTHER) == {}
    assert uids(there, INBOX).keys() == {"old", "a"}
    there.close()


def test_a_copy_has_none_of_a_mailbox_made_in_the_place_of_its_source(
    there: Account, disk: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or none of those that were asked for."""
    disk.meanwhile = None
    monkeypatch.setattr(copying, "HOLD_MESSAGES", 1)
    for token in ("a", "b"):
        delivering.deliver(there.box(BOX), content(token), 0, None)
    asked = sorted(uids(there, BOX).values())
    after_commits(there, lambda: replace(there, "x", "y"), 1)
    with pytest.raises(Unavailable):
        copying.copy(there.box(BOX), there.box(INBOX), asked, there.with_guid)
    assert uids(there, INBOX).keys() == {"old"}
    there.close()


async def test_a_move_from_what_is_renamed_meanwhile_moves(tmp_path: Path) -> None:
    """NO would leave both, and the client moves once more."""
    store = new_store(tmp_path)
    await store.start()
    await store.create(OWNER, "Box")
    await store.create(OWNER, "Target")
    (uid,) = await deliver(store, "a", mailbox="Box")
    mailbox = await store.open(OWNER, "Box", read_only=False)
    await store.status(OWNER, "Target")
    root = os.fsencode(maildir(tmp_path))
    other = account(root, Disk(), "")
    after_commits(store._account(OWNER), lambda: folders.rename(other.home, LAYOUT, BOX, OTHER), 1)
    copied = await mailbox.move([uid], "Target")
    assert copied.source_uids == [uid]
    assert list((await look(store, "Target")).values()) == ["a"]
    assert await look(store, "Other") == {}
    mailbox.close()
    other.close()
    await store.close()


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
