"""RENAME and CREATE onto what a crashed CREATE left: a directory without `cur` is no mailbox (STORE.md s. 1, 4.8)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_scenarios import BOX, LAYOUT, OWNER, account, content, uids

from pymx.ms import delivering, folders, uidlist
from pymx.ms.account import Account
from pymx.ms.disk import Disk
from pymx.ms.errors import MailboxExists
from pymx.ms.layout import Layout, is_mailbox

FRESH = ("Fresh",)


class Killed(BaseException):
    """Nothing after this happens."""


class Crashing(Disk):
    """Ends after so many changes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _step(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        self._step()
        super().mkdir(path, mode)

    def create(self, path: bytes, mode: int = 0o600, *, exclusive: bool = True) -> int:
        self._step()
        return super().create(path, mode, exclusive=exclusive)

    def write(self, fd: int, data: bytes) -> None:
        self._step()
        super().write(fd, data)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Account]:
    """With a message in Box and one in Box.Child."""
    made = account(os.fsencode(tmp_path / "alice"), Disk(), "boot")
    made.make_inbox()
    for place in (BOX, (*BOX, "Child")):
        folders.create(made.home, LAYOUT, place, "")
        delivering.deliver(made.box(place), content(place[-1]), 0, None)
        made.box(place).refresh()
    yield made
    made.close()


def crash(there: Account, place: tuple[str, ...], steps: int) -> None:
    """A CREATE that gets no further than this."""
    other = account(there.home.root, Crashing(steps), "boot")
    with contextlib.suppress(Killed):
        folders.create(other.home, LAYOUT, place, "")
    other.close()


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("place", [FRESH, ("Fresh", "Child")])
def test_rename_takes_the_place_of_a_create_that_crashed(there: Account, steps: int, place: tuple[str, ...]) -> None:
    """Unless that came as far as to be a mailbox that LIST shows."""
    crash(there, place, steps)
    path = LAYOUT.path(there.home.root, place)
    if is_mailbox(path):
        with pytest.raises(MailboxExists):
            folders.rename(there.home, LAYOUT, BOX, FRESH)
        assert uids(there, BOX) == {"Box": 1}
        assert uids(there, (*BOX, "Child")) == {"Child": 1}
        return
    before = delivering.told_row(there.box(BOX)).uidvalidity
    folders.rename(there.home, LAYOUT, BOX, FRESH)
    assert uids(there, FRESH) == {"Box": 1}
    assert uids(there, ("Fresh", "Child")) == {"Child": 1}
    assert delivering.told_row(there.box(FRESH)).uidvalidity == before
    assert not os.path.exists(LAYOUT.path(there.home.root, BOX))


@pytest.mark.parametrize("lost", [b"cur", b"cur new", b"cur new tmp", b"cur maildirfolder dovecot-uidlist"])
def test_rename_takes_the_place_of_what_a_power_cut_left(there: Account, lost: bytes) -> None:
    """Entries of a directory that was not synced may be there or not, each by itself."""
    folders.create(there.home, LAYOUT, FRESH, "")
    for name in lost.split():
        path = os.path.join(LAYOUT.path(there.home.root, FRESH), name)
        (os.rmdir if os.path.isdir(path) else os.unlink)(path)
    folders.rename(there.home, LAYOUT, BOX, FRESH)
    assert uids(there, FRESH) == {"Box": 1}


@pytest.mark.parametrize("kept", ["message", "file", "lines", "link"])
def test_what_may_be_of_worth_stays(there: Account, tmp_path: Path, kept: str) -> None:
    """It is not known whose it is."""
    path = tmp_path / "alice" / ".Fresh"
    folders.create(there.home, LAYOUT, FRESH, "")
    (path / "cur").rmdir()
    if kept == "message":
        (path / "new" / "1700000000.M1P1.mx").write_bytes(b"Subject: a\n\n")
    elif kept == "file":
        (path / "notes").write_bytes(b"mine")
    elif kept == "lines":
        with (path / "dovecot-uidlist").open("ab") as file:
            file.write(b"1 :1700000000.M1P1.mx\n")
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(path))
    with pytest.raises(MailboxExists):
        folders.rename(there.home, LAYOUT, BOX, FRESH)
    assert sorted(os.listdir(path)) == before
    assert uids(there, BOX) == {"Box": 1}


def test_create_keeps_the_uids_of_a_mailbox_that_lost_its_directory(there: Account, tmp_path: Path) -> None:
    """Its `cur` is made again, its messages are who they were."""
    path = tmp_path / "alice" / ".Fresh"
    folders.create(there.home, LAYOUT, FRESH, "")
    for token in ("a", "b"):
        delivering.deliver(there.box(FRESH), content(token), 0, None)
    found, uidvalidity = uids(there, FRESH), delivering.told_row(there.box(FRESH)).uidvalidity
    (path / "cur").rmdir()
    folders.create(there.home, LAYOUT, FRESH, "")
    assert uids(there, FRESH) == found
    assert uidlist.parse((path / "dovecot-uidlist").read_bytes()).header.uidvalidity == uidvalidity


@pytest.mark.parametrize("left", ["nothing", "all but cur"])
def test_rename_takes_the_name_of_a_mailbox_that_another_program_removed(
    there: Account, tmp_path: Path, left: str
) -> None:
    """The index still has a row of that name; it goes, and not the whole index."""
    path = tmp_path / "alice" / ".Fresh"
    folders.create(there.home, LAYOUT, FRESH, "")
    there.box(FRESH).refresh()
    if left == "nothing":
        shutil.rmtree(path)
    else:
        (path / "cur").rmdir()
    there.call(lambda: folders.rename(there.home, LAYOUT, BOX, FRESH))
    assert uids(there, FRESH) == {"Box": 1}
    assert uids(there, ("Fresh", "Child")) == {"Child": 1}
    assert list((tmp_path / "alice").glob("pymx.index.damaged*")) == []


def test_with_directories_in_each_other_a_parent_that_is_empty_gives_way(tmp_path: Path) -> None:
    """LAYOUT=fs: it stayed when the mailbox below it was deleted; with one below it, the name is taken."""
    layout, root = Layout("fs", "/"), os.fsencode(tmp_path / "alice")
    there = Account(OWNER, root, root + b"/pymx.index", layout, disk=Disk(), host=b"mx", changed=lambda *_: None)
    there.make_inbox()
    for place in (BOX, ("Fresh", "Child")):
        folders.create(there.home, layout, place, "")
        delivering.deliver(there.box(place), content(place[-1]), 0, None)
    with pytest.raises(MailboxExists):
        folders.rename(there.home, layout, BOX, FRESH)
    folders.purge(folders.delete(there.home, layout, ("Fresh", "Child")))
    folders.rename(there.home, layout, BOX, FRESH)
    assert uids(there, FRESH) == {"Box": 1}
    there.close()
