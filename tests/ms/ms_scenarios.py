"""Scenarios for the crash tests: what the store does and what it tells the peer in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from ms_recorder import Recorder

from pymx.ms import appending, copying, delivering, flagging, folders, names, reading, removing, uidlist
from pymx.ms.account import Account
from pymx.ms.box import Box, Hold
from pymx.ms.disk import Disk
from pymx.ms.layout import INBOX, Layout, Levels
from pymx.ms.owner import Owner
from pymx.spool import Content

LAYOUT = Layout("maildir++", ".")
BOX: Levels = ("Box",)
OWNER = Owner("example.test", "alice")


@dataclass(frozen=True)
class Stored:
    """The message `token` is safe, in one of `places`."""

    token: str
    places: tuple[Levels, ...]


@dataclass(frozen=True)
class Going:
    """From now on `token` may be gone from `place`; with no token: the mailbox may be."""

    token: str
    place: Levels


@dataclass(frozen=True)
class Gone:
    """`token` was expunged from `place`."""

    token: str
    place: Levels


@dataclass(frozen=True)
class Told:
    """In `place` with this UIDVALIDITY, `token` has this UID."""

    place: Levels
    uidvalidity: int
    uid: int
    token: str


@dataclass(frozen=True)
class Folder:
    """The mailbox is there (with this UIDVALIDITY), or is not."""

    place: Levels
    exists: bool
    uidvalidity: int = 0


@dataclass(frozen=True)
class Subscribed:
    place: Levels


@dataclass(frozen=True)
class Keyword:
    """Whatever message of `place` has letter a, that letter is called this."""

    place: Levels
    name: str


@dataclass(frozen=True)
class HasKeyword:
    """`token` in `place` has this keyword."""

    place: Levels
    token: str
    name: str


@dataclass(frozen=True)
class Flagged:
    """`token` in `place` has these flags and keywords; unless `durable`, a power cut may take them back."""

    place: Levels
    token: str
    flags: frozenset[str]
    durable: bool


class Violation(Exception):
    """A promise was broken."""


def content(token: str) -> Content:
    return Content.from_bytes(f"Subject: {token}\r\n\r\n{'x' * 60}\r\nEND {token}\r\n".encode())


def account(root: bytes, disk: Disk, boot: str) -> Account:
    return Account(
        OWNER, root, os.path.join(root, b"pymx.index"), LAYOUT, disk=disk, host=b"mx", changed=_nobody, boot=boot
    )


def _nobody(email: str, guid: str, modseq: int) -> None:
    pass


def deliver(there: Account, place: Levels, token: str) -> None:
    box = there.box(place)
    delivering.deliver(box, content(token), 0, None)


def uids(there: Account, place: Levels) -> dict[str, int]:
    """Tokens to UIDs, UIDNEXT told."""
    box = there.box(place)
    row = delivering.told_row(box)
    with there.home.index.read() as db:
        found = list(box.views.full(db, row))
    out = {}
    for uid in found:
        text = (reading.read_message(box, uid) or b"").decode()
        token = text.partition("\r\n")[0].removeprefix("Subject: ")
        if not token or not text.endswith(f"END {token}\r\n"):
            raise Violation(f"half a message: {text!r}")
        if token in out:
            raise Violation(f"{token} is there twice")
        out[token] = uid
    return out


def tell(there: Account, disk: Recorder, place: Levels) -> None:
    found = uids(there, place)
    with there.home.index.read() as db:
        row = there.box(place).row(db)
    assert row is not None
    for token, uid in found.items():
        disk.ack(Told(place, row.uidvalidity, uid, token))


# Scenarios: each starts with INBOX holding old1, old2 and Box holding kept, all told.


def do_deliver(there: Account, disk: Recorder) -> None:
    deliver(there, INBOX, "a")
    disk.ack(Stored("a", (INBOX,)))


def do_deliver_and_look(there: Account, disk: Recorder) -> None:
    deliver(there, INBOX, "a")
    disk.ack(Stored("a", (INBOX,)))
    tell(there, disk, INBOX)
    disk.ack(Going("a", INBOX))
    removing.expunge(there.box(INBOX), [uids(there, INBOX)["a"]], only_deleted=False)
    disk.ack(Gone("a", INBOX))


def do_append(there: Account, disk: Recorder) -> None:
    found = uids(there, BOX)
    box = there.box(BOX)
    value, new = appending.append(box, [(content("a"), 1, (), 1000), (content("b"), 1, (), None)], None)
    disk.ack(Stored("a", (BOX,)))
    disk.ack(Stored("b", (BOX,)))
    disk.ack(Flagged(BOX, "a", frozenset({"\\Seen"}), durable=True))
    assert found
    disk.ack(Told(BOX, value, new[0], "a"))
    disk.ack(Told(BOX, value, new[1], "b"))


def do_append_then_lose(there: Account, disk: Recorder) -> None:
    """What was told at APPEND stays true when the message is gone soon after."""
    do_append(there, disk)
    found = uids(there, BOX)
    disk_box = there.box(BOX)
    disk.ack(Going("b", BOX))
    with Hold(disk_box):
        for name in os.listdir(disk_box.cur):
            path = os.path.join(disk_box.cur, name)
            with open(path, "rb") as file:
                if b"END b" in file.read():
                    disk.unlink(path)
    assert "b" in found


def do_store(there: Account, disk: Recorder) -> None:
    found = uids(there, BOX)
    flagging.store(there.box(BOX), list(found.values()), flagging.Change("add", 1, ["$Important"]))
    disk.ack(Keyword(BOX, "$Important"))
    disk.ack(Flagged(BOX, "kept", frozenset({"\\Seen", "$Important"}), durable=False))


def do_expunge(there: Account, disk: Recorder) -> None:
    box = there.box(INBOX)
    found = uids(there, INBOX)
    disk.ack(Going("old1", INBOX))
    flagging.store(box, [found["old1"]], flagging.Change("add", 8, []))
    removing.expunge(box, list(found.values()), only_deleted=True)
    disk.ack(Gone("old1", INBOX))


def do_copy(there: Account, disk: Recorder) -> None:
    found = uids(there, INBOX)
    source, target = there.box(INBOX), there.box(BOX)
    delivering.told_row(target)
    copied = copying.copy(source, target, list(found.values()), there.with_guid)
    value, new = copied.uidvalidity, copied.target_uids
    for token, uid in zip(found, new, strict=True):
        disk.ack(Stored(token, (BOX,)))
        disk.ack(Told(BOX, value, uid, token))
        disk.ack(Going(token, BOX))
    removing.expunge(target, new, only_deleted=False)
    for token in found:
        disk.ack(Gone(token, BOX))


def do_move(there: Account, disk: Recorder) -> None:
    found = uids(there, INBOX)
    source, target = there.box(INBOX), there.box(BOX)
    delivering.told_row(target)
    copied = copying.copy(source, target, list(found.values()), there.with_guid)
    value, old, new = copied.uidvalidity, copied.source_uids, copied.target_uids
    for token in found:
        disk.ack(Stored(token, (INBOX, BOX)))
        disk.ack(Going(token, INBOX))
    removing.expunge(source, old, only_deleted=False)
    for token, uid in zip(found, new, strict=True):
        disk.ack(Stored(token, (BOX,)))
        disk.ack(Told(BOX, value, uid, token))
        disk.ack(Gone(token, INBOX))
    lose(there, disk, BOX, list(found))


def lose(there: Account, disk: Recorder, place: Levels, tokens: list[str]) -> None:
    """Expunge what was told last: if its lines were not on disk, the UIDs would come again."""
    found = uids(there, place)
    for token in tokens:
        disk.ack(Going(token, place))
    removing.expunge(there.box(place), sorted(found[token] for token in tokens), only_deleted=False)
    for token in tokens:
        disk.ack(Gone(token, place))


def uidvalidity_on_disk(path: bytes) -> int:
    with open(os.path.join(path, uidlist.NAME), "rb") as file:
        return uidlist.parse_header(file.readline().rstrip()).uidvalidity


def do_create(there: Account, disk: Recorder) -> None:
    folders.create(there.home, LAYOUT, ("Fresh",), "")
    value = uidvalidity_on_disk(LAYOUT.path(there.home.root, ("Fresh",)))
    disk.ack(Folder(("Fresh",), True, value))
    deliver(there, ("Fresh",), "a")
    disk.ack(Stored("a", (("Fresh",),)))


def do_delete(there: Account, disk: Recorder) -> None:
    disk.ack(Going("", BOX))
    folders.delete(there.home, LAYOUT, BOX)
    disk.ack(Folder(BOX, False))


def do_delete_twice(there: Account, disk: Recorder) -> None:
    disk.ack(Going("", BOX))
    disk.ack(Going("", ("Box", "Child")))
    folders.delete(there.home, LAYOUT, BOX)
    disk.ack(Folder(BOX, False))
    folders.delete(there.home, LAYOUT, ("Box", "Child"))
    disk.ack(Folder(("Box", "Child"), False))


def do_rename(there: Account, disk: Recorder) -> None:
    value = delivering.told_row(there.box(BOX)).uidvalidity
    disk.ack(Going("", BOX))
    disk.ack(Stored("kept", (BOX, ("Other",))))
    folders.rename(there.home, LAYOUT, BOX, ("Other",))
    disk.ack(Folder(BOX, False))
    disk.ack(Folder(("Other",), True, value))
    disk.ack(Stored("kept", (("Other",),)))


def do_rewrite(there: Account, disk: Recorder) -> None:
    """A rewrite, then a delivery that is told and expunged: its UID must not come again."""
    box = there.box(INBOX)
    with Hold(box) as hold:
        with open(box.uidlist, "rb") as file:
            records = uidlist.parse(file.read()).records
        hold.rewrite([r for r in records if r[2] in {names.base_of(n) for n in _files(box)}])
    do_deliver_and_look(there, disk)


def _files(box: Box) -> list[bytes]:
    return os.listdir(box.cur) + os.listdir(box.new)


def do_subscribe(there: Account, disk: Recorder) -> None:
    there.subscribe(("News",), subscribe=True)
    disk.ack(Subscribed(("News",)))


def do_select(there: Account, disk: Recorder) -> None:
    deliver(there, INBOX, "a")
    disk.ack(Stored("a", (INBOX,)))
    delivering.opened(there.box(INBOX), flagging.claim_new)
    tell(there, disk, INBOX)
    lose(there, disk, INBOX, ["a"])


def do_more_keywords(there: Account, disk: Recorder) -> None:
    """The keywords of one message beyond the letters, while those of another change."""
    disk.ack(HasKeyword(BOX, "kept", "k26"))
    disk.ack(Flagged(BOX, "kept", frozenset(f"k{n}" for n in range(26)), durable=True))
    box = there.box(BOX)
    flagging.store(box, list(uids(there, BOX).values()), flagging.Change("add", 0, ["k27"]))


def do_first_delivery(there: Account, disk: Recorder) -> None:
    """An account nobody has had mail for yet."""
    root = os.path.join(os.path.dirname(there.home.root), b"bob")
    other = account(root, disk, "first")
    deliver(other, INBOX, "a")
    disk.ack(("bob", uidvalidity_on_disk(root)))
    other.close()


SCENARIOS: dict[str, Callable[[Account, Recorder], None]] = {
    name.removeprefix("do_"): function for name, function in list(globals().items()) if name.startswith("do_")
}


def run(workplace: bytes, name: str, skip: int = -1) -> Recorder:
    top = os.path.join(workplace, b"before")
    shutil.rmtree(top, ignore_errors=True)
    root = os.path.join(top, b"alice")
    os.makedirs(root)
    there = account(root, Disk(), "first")
    for token in ("old1", "old2"):
        deliver(there, INBOX, token)
    folders.create(there.home, LAYOUT, BOX, "")
    folders.create(there.home, LAYOUT, ("Box", "Child"), "")
    deliver(there, BOX, "kept")
    for place in (INBOX, BOX):
        uids(there, place)
    if name == "more_keywords":
        wanted = [f"k{n}" for n in range(27)]
        flagging.store(there.box(BOX), list(uids(there, BOX).values()), flagging.Change("set", 0, wanted))
    recorder = Recorder(top, skip=skip)
    object.__setattr__(there.home, "disk", recorder)
    for place in (INBOX, BOX):
        tell(there, recorder, place)
        recorder.ack(Folder(place, True, delivering.told_row(there.box(place)).uidvalidity))
    for token, place in (("old1", INBOX), ("old2", INBOX), ("kept", BOX)):
        recorder.ack(Stored(token, (place,)))
    SCENARIOS[name](there, recorder)
    there.close()
    return recorder
