"""The store's door: deliveries, quota, folders, sessions' views, hints."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, content, deliver, drop, files, look, maildir, new_store, subjects

from pymx.config.model import Mail
from pymx.mail.flags import ANSWERED, DELETED, FLAGGED, MAX_KEYWORDS, SEEN
from pymx.mail.search import All
from pymx.ms.account import Account
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.disk import Disk
from pymx.ms.errors import (
    InvalidName,
    LimitReached,
    MailboxExists,
    NoSuchMailbox,
    OverQuota,
    ReadOnly,
    StorageFull,
)
from pymx.ms.mailbox import NO_RECENT, Mailbox
from pymx.ms.owner import Owner
from pymx.ms.store import MAX_OPEN_ACCOUNTS, Append, Store
from pymx.spool import SpoolWriter


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = new_store(tmp_path)
    await store.start()
    yield store
    await store.close()


async def rows(mailbox: Mailbox) -> list[tuple[int, ...]]:
    return [row async for batch in mailbox.rows(mailbox.uids) for row in batch]


# Delivery


async def test_a_delivery_to_a_missing_mailbox_goes_to_inbox_unless_it_may_be_made(store: Store) -> None:
    results = await store.deliver(
        [Delivery(OWNER, "Nowhere", content("a")), Delivery(OWNER, "Lists.New", content("b"), create=True)]
    )
    assert [r.mailbox for r in results if isinstance(r, Delivered)] == ["INBOX", "Lists.New"]
    assert await look(store, "Lists.New") == {1: "b"}


async def test_equal_messages_for_several_are_one_file(store: Store, tmp_path: Path) -> None:
    """STORE.md s. 4.1: equal bytes are hard-linked, a field of one's own means a file of one's own."""
    message = content("same")
    owners = [Owner("example.test", name) for name in ("alice", "bob", "carol")]
    results = await store.deliver(
        [Delivery(owner, "INBOX", message) for owner in owners]
        + [Delivery(OWNER, "INBOX", message.prepended(b"Delivered-To: alice@example.test\r\n"))]
    )
    assert all(isinstance(r, Delivered) for r in results)
    root = tmp_path / "mail" / "example.test"
    inodes = {files(root / name)[0].stat().st_ino for name in ("bob", "carol")}
    assert len(inodes) == 1
    assert sorted(path.stat().st_nlink for path in files(root / "alice")) == [1, 3]


async def test_one_full_mailbox_does_not_stop_the_others(store: Store) -> None:
    small = Owner("example.test", "small", quota_octets=10)
    results = await store.deliver([Delivery(o, "INBOX", content("x")) for o in (small, OWNER)])
    assert isinstance(results[0], OverQuota)
    assert isinstance(results[1], Delivered)


async def test_a_large_message_in_a_file_is_stored_whole(store: Store, tmp_path: Path) -> None:
    """Above 1 MiB nothing is held in memory or rendered at delivery."""
    spool = tmp_path / "spool"
    spool.mkdir()
    writer = SpoolWriter(spool)
    writer.feed(b"Subject: large\r\n\r\n")
    for _ in range(40):
        writer.feed(b"0123456789abcde\r\n" * 2500)
    await store.deliver([Delivery(OWNER, "INBOX", writer.finish())])
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    async for _, message in mailbox.messages(mailbox.uids):
        assert message is not None
        chunks = b"".join([chunk async for chunk in message.chunks()])
        assert chunks == await message.read()
        assert len(chunks) == message.octets == 18 + 40 * 2500 * 17
    rendered = [row async for batch in mailbox.rows(mailbox.uids, rendered=True) for row in batch]
    assert rendered[0][7].startswith(b"ESubject: large")
    mailbox.close()


async def test_usage_and_quota(store: Store) -> None:
    owner = Owner("example.test", "alice", quota_octets=200)
    await store.check_quota(owner, 200)
    await deliver(store, "a", "b")
    usage = await store.usage(owner)
    assert (usage.messages, usage.octets) == (2, 2 * content("a").size_octets)
    with pytest.raises(OverQuota):
        await store.check_quota(owner, 200)
    with pytest.raises(OverQuota):
        await store.append(owner, "INBOX", [Append(content("x", 300), 0, (), None)])


async def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """ENOSPC in the middle of a uidlist line: cut off again, 452 for the peer."""

    class Full(Disk):
        full = False

        def append(self, fd: int, data: bytes) -> None:
            if not self.full:
                super().append(fd, data)
                return
            os.write(fd, data[:7])
            self.truncate(fd, os.fstat(fd).st_size - 7)
            raise OSError(errno.ENOSPC, "full")

    disk = Full()
    store = Store(Mail(root=str(tmp_path / "mail")), render=None, runtime_dir=None, hostname="mx", disk=disk)
    await store.start()
    await deliver(store, "a")
    disk.full = True
    (result,) = await store.deliver([Delivery(OWNER, "INBOX", content("b"))])
    assert isinstance(result, StorageFull)
    disk.full = False
    assert await look(store) == {1: "a"}
    assert await deliver(store, "c") == [2]
    await store.close()


# Sessions


async def test_append_keeps_flags_keywords_and_date(store: Store) -> None:
    await deliver(store, "a")
    done = await store.append(
        OWNER,
        "INBOX",
        [Append(content("b"), SEEN | ANSWERED, ("$One", "two"), 1_500_000_000), Append(content("c"), 0, (), None)],
    )
    assert done.uids == [2, 3]
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    found = await rows(mailbox)
    assert [(r[2], r[3]) for r in found] == [(0, 0), (SEEN | ANSWERED, 0b11), (0, 0)]
    assert found[1][5] == 1_500_000_000
    assert mailbox.keywords == ["$One", "two"]
    mailbox.close()


async def test_refresh_tells_arrivals_expunges_and_flags_once(store: Store) -> None:
    await deliver(store, "a", "b", "c", "d")
    one = await store.open(OWNER, "INBOX", read_only=False)
    two = await store.open(OWNER, "INBOX", read_only=False)
    assert list(one.uids) == list(two.uids) == [1, 2, 3, 4]
    stored = await one.store_flags([2, 4], "add", DELETED | SEEN, [])
    assert [row[2] for row in stored.rows] == [DELETED | SEEN] * 2
    assert (await one.refresh()).flagged == []
    assert [row[0] for row in (await two.refresh()).flagged] == [2, 4]
    assert await one.expunge([1, 2]) == [2]
    await deliver(store, "e")
    changes = await two.refresh()
    assert (changes.expunged, changes.arrived) == ([2], 1)
    assert list(two.uids) == [1, 3, 4, 5]
    assert await two.refresh() == type(changes)([], 0, [], False)
    one.close()
    two.close()


async def test_expunged_messages_stay_in_the_view_while_they_must(store: Store) -> None:
    """RFC 3501 s. 7.4.1: no EXPUNGE while FETCH, STORE or SEARCH runs."""
    await deliver(store, "a", "b", "c")
    one = await store.open(OWNER, "INBOX", read_only=False)
    two = await store.open(OWNER, "INBOX", read_only=False)
    await one.store_flags([1, 3], "add", DELETED, [])
    await one.expunge(None)
    await deliver(store, "d")
    held = await two.refresh(expunge=False)
    assert (held.expunged, held.arrived, list(two.uids)) == ([], 1, [1, 2, 3, 4])
    assert [row[0] for row in await rows(two)] == [2, 4]
    assert (await two.refresh()).expunged == [3, 1]
    assert list(two.uids) == [2, 4]
    one.close()
    two.close()


async def test_recent_is_for_the_first_who_selects(store: Store) -> None:
    """RFC 3501 s. 2.3.2; EXAMINE takes nothing away."""
    await deliver(store, "a", "b")
    examined = await store.open(OWNER, "INBOX", read_only=True)
    first = await store.open(OWNER, "INBOX", read_only=False)
    second = await store.open(OWNER, "INBOX", read_only=False)
    assert (examined.first_recent, first.first_recent) == (1, 1)
    assert second.first_recent > 2
    await deliver(store, "c")
    assert (await store.status(OWNER, "INBOX")).recent == 1
    third = await store.open(OWNER, "INBOX", read_only=True)
    assert third.first_recent == 3
    for mailbox in (examined, first, second, third):
        mailbox.close()
    assert (await store.open(OWNER, "INBOX", read_only=False)).first_recent == 3
    closed = await store.open(OWNER, "INBOX", read_only=True)
    assert closed.first_recent == NO_RECENT
    closed.close()


async def test_store_modes_and_unchanged_since(store: Store) -> None:
    """RFC 7162 s. 3.1.3: conditional STORE."""
    await deliver(store, "a", "b")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([1, 2], "set", SEEN, ["x", "y"])
    done = await mailbox.store_flags([1], "remove", SEEN, ["X", "unknown"])
    assert (done.rows[0][2], done.rows[0][3]) == (0, 0b10)
    before = done.rows[0][1]
    late = await mailbox.store_flags([1, 2], "add", FLAGGED, [], unchanged_since=before - 1)
    assert (late.modified, [row[0] for row in late.rows]) == ([1], [2])
    mailbox.close()


async def test_a_read_only_mailbox_refuses_changes(store: Store) -> None:
    await deliver(store, "a")
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    with pytest.raises(ReadOnly):
        await mailbox.store_flags([1], "add", SEEN, [])
    with pytest.raises(ReadOnly):
        await mailbox.expunge(None)
    with pytest.raises(ReadOnly):
        await mailbox.move([1], "INBOX")
    mailbox.close()


async def test_copy_and_move_carry_everything(store: Store) -> None:
    await deliver(store, "a", "b", "c")
    await store.create(OWNER, "Target")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([2], "add", FLAGGED, ["kept"])
    copied = await mailbox.copy([1, 2], "Target")
    moved = await mailbox.move([2, 3], "Target")
    assert (copied.source_uids, copied.target_uids) == ([1, 2], [1, 2])
    assert (moved.source_uids, moved.target_uids) == ([2, 3], [3, 4])
    assert (await mailbox.refresh()).expunged == [3, 2]
    target = await store.open(OWNER, "Target", read_only=True)
    assert await subjects(target) == {1: "a", 2: "b", 3: "b", 4: "c"}
    assert [(row[2], row[3]) for row in await rows(target)] == [(0, 0), (FLAGGED, 1), (FLAGGED, 1), (0, 0)]
    assert target.keywords == ["kept"]
    with pytest.raises(NoSuchMailbox):
        await mailbox.copy([1], "Nowhere")
    target.close()
    mailbox.close()


async def test_keywords_beyond_the_letters(store: Store, tmp_path: Path) -> None:
    """Maildir names have 26 letters; more go to a file of ours, and come back from it when the index is lost."""
    await deliver(store, "a", "b")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    names = [f"k{n}" for n in range(MAX_KEYWORDS)]
    await mailbox.store_flags([1], "set", 0, names)
    await mailbox.store_flags([2], "set", 0, ["k30", "k1"])
    with pytest.raises(LimitReached):
        await mailbox.store_flags([1], "add", 0, ["one-more"])
    await store.create(OWNER, "Copy")
    await mailbox.copy([2], "Copy")
    await mailbox.store_flags([1], "remove", 0, ["k40"])
    mailbox.close()
    for path in tmp_path.rglob("pymx.index*"):
        path.unlink()
    for name, wanted in (("INBOX", {1: set(names) - {"k40"}, 2: {"k1", "k30"}}), ("Copy", {1: {"k1", "k30"}})):
        again = await store.open(OWNER, name, read_only=True)
        found = {
            row[0]: {text for bit, text in enumerate(again.keywords) if row[3] >> bit & 1} for row in await rows(again)
        }
        assert found == wanted
        again.close()


async def test_a_letter_no_message_uses_is_given_away(store: Store) -> None:
    await deliver(store, "a")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([1], "set", 0, [f"k{n}" for n in range(26)])
    await mailbox.store_flags([1], "remove", 0, ["k7"])
    await mailbox.store_flags([1], "add", 0, ["one-more"])
    assert mailbox.keywords[7] == "one-more"
    mailbox.close()


async def test_search_runs_on_the_view(store: Store) -> None:
    await deliver(store, "a", "b")
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    await deliver(store, "c")
    assert await mailbox.search(All()) == [1, 2]
    mailbox.close()


# Folders


async def test_first_login_makes_the_usual_folders_once(store: Store) -> None:
    await store.prepare(OWNER)
    names = {f.name: f.special_use for f in await store.folders(OWNER) if f.exists and f.subscribed}
    assert names == {
        "INBOX": "",
        "Archive": "\\Archive",
        "Drafts": "\\Drafts",
        "Junk": "\\Junk",
        "Sent": "\\Sent",
        "Trash": "\\Trash",
    }
    await store.delete(OWNER, "Junk")
    await store.unsubscribe(OWNER, "Junk")
    await store.prepare(OWNER)
    assert "Junk" not in {f.name for f in await store.folders(OWNER)}


async def test_folders_are_made_renamed_and_deleted(store: Store, tmp_path: Path) -> None:
    await store.create(OWNER, "A.B")
    await store.create(OWNER, "A.B.C")
    await store.deliver([Delivery(OWNER, "A.B", content("x"))])
    before = await store.status(OWNER, "A.B")
    with pytest.raises(MailboxExists):
        await store.create(OWNER, "A.B")
    with pytest.raises(MailboxExists):
        await store.create(OWNER, "inbox")
    await store.rename(OWNER, "A", "Z")
    assert {f.name for f in await store.folders(OWNER) if f.exists} == {"INBOX", "Z.B", "Z.B.C"}
    after = await store.status(OWNER, "Z.B")
    assert (after.uidvalidity, after.messages, after.highestmodseq) == (
        before.uidvalidity,
        before.messages,
        before.highestmodseq,
    )
    for old, new, error in (
        ("Z.B", "Z.B.D", InvalidName),
        ("Nope", "X", NoSuchMailbox),
        ("Z.B", "INBOX", MailboxExists),
        ("Z.B", "Z.B.C", InvalidName),
    ):
        with pytest.raises(error):
            await store.rename(OWNER, old, new)
    mailbox = await store.open(OWNER, "Z.B", read_only=True)
    await store.delete(OWNER, "Z.B")
    with pytest.raises(NoSuchMailbox):
        await mailbox.refresh()
    mailbox.close()
    with pytest.raises(InvalidName):
        await store.delete(OWNER, "INBOX")
    await store.create(OWNER, "Z.B")
    assert (await store.status(OWNER, "Z.B")).uidvalidity > before.uidvalidity
    assert not [p for p in maildir(tmp_path).iterdir() if p.name.startswith("..")]


async def test_renaming_inbox_moves_its_messages(store: Store) -> None:
    """RFC 3501 s. 6.3.5."""
    await deliver(store, "a", "b")
    await store.rename(OWNER, "INBOX", "Old")
    assert (await look(store), await look(store, "Old")) == ({}, {1: "a", 2: "b"})
    assert await deliver(store, "c") == [3]


async def test_the_fs_layout(tmp_path: Path) -> None:
    """Folders are directories in directories."""
    store = new_store(tmp_path, layout="fs")
    await store.start()
    await store.create(OWNER, "A.B")
    await store.deliver([Delivery(OWNER, "A.B", content("x"))])
    assert files(maildir(tmp_path, "A/B"))
    assert {f.name: f.exists for f in await store.folders(OWNER)} == {"INBOX": True, "A": False, "A.B": True}
    await store.rename(OWNER, "A", "Z")
    assert await look(store, "Z.B") == {1: "x"}
    await store.delete(OWNER, "Z.B")
    await store.close()


# Hints


async def changed(store: Store, name: str = "INBOX") -> tuple[Mailbox, asyncio.Event]:
    mailbox = await store.open(OWNER, name, read_only=True)
    event = asyncio.Event()
    mailbox.watch(event.set)
    return mailbox, event


async def test_a_delivery_wakes_the_sessions_of_this_process(store: Store) -> None:
    await deliver(store, "a")
    mailbox, event = await changed(store)
    await deliver(store, "b")
    await asyncio.wait_for(event.wait(), 5)
    assert (await mailbox.refresh()).arrived == 1
    mailbox.close()


async def test_a_foreign_delivery_wakes_them_within_about_a_second(store: Store, tmp_path: Path) -> None:
    await deliver(store, "a")
    mailbox, event = await changed(store)
    drop(maildir(tmp_path), "1700000000.M20P1.other", "foreign")
    await asyncio.wait_for(event.wait(), 5)
    assert (await mailbox.refresh()).arrived == 1
    mailbox.close()


async def test_a_delivery_wakes_the_sessions_of_another_store(tmp_path: Path) -> None:
    """Datagrams between processes; the other's inotify is off, so that only the hint can do it."""
    one, two = new_store(tmp_path, runtime=True), new_store(tmp_path, runtime=True)
    await one.start()
    await two.start()
    await deliver(one, "a")
    mailbox, event = await changed(two)
    two.watch.remove(mailbox._box)
    await deliver(one, "b")
    await asyncio.wait_for(event.wait(), 5)
    assert (await mailbox.refresh()).arrived == 1
    mailbox.close()
    await one.close()
    await two.close()
    assert list((tmp_path / "run").iterdir()) == []


async def test_deleting_the_mailbox_wakes_its_sessions(store: Store) -> None:
    await store.create(OWNER, "Gone")
    mailbox, event = await changed(store, "Gone")
    await store.delete(OWNER, "Gone")
    await asyncio.wait_for(event.wait(), 5)
    with pytest.raises(NoSuchMailbox):
        await mailbox.refresh()
    mailbox.close()


async def test_only_so_many_indexes_are_open(store: Store) -> None:
    """Sessions that wait cost no index connection; what was closed is opened again when needed."""
    owners = [Owner("example.test", f"user{n}") for n in range(MAX_OPEN_ACCOUNTS + 8)]
    for owner in owners:
        await store.deliver([Delivery(owner, "INBOX", content("x"))])
    boxes = [await store.open(owner, "INBOX", read_only=False) for owner in owners]
    assert len(store._open_indexes) <= MAX_OPEN_ACCOUNTS
    for box in boxes:
        await store.deliver([Delivery(box.owner, "INBOX", content("y"))])
        assert (await box.refresh()).arrived == 1
        box.close()
    assert len(store._accounts) <= MAX_OPEN_ACCOUNTS


async def test_a_look_at_many_accounts_leaves_no_more_indexes_open(store: Store) -> None:
    """Each 30 s at all that sessions watch: the memory of an index opened in between does not come back."""
    owners = [Owner("example.test", f"user{n}") for n in range(MAX_OPEN_ACCOUNTS + 20)]
    boxes = []
    for owner in owners:
        await store.deliver([Delivery(owner, "INBOX", content("x"))])
        boxes.append(await store.open(owner, "INBOX", read_only=False))
    opened = 0

    class Counting(dict[str, Account]):
        def __setitem__(self, email: str, account: Account) -> None:
            nonlocal opened
            super().__setitem__(email, account)
            opened = max(opened, len(self))

    store._open_indexes = Counting(store._open_indexes)
    for box in boxes:
        box._box.seen = None  # as if its files had just changed
    await store.watch._one_look([box._box for box in boxes])
    assert opened <= MAX_OPEN_ACCOUNTS + 1
    assert len(store._open_indexes) <= MAX_OPEN_ACCOUNTS
    for box in boxes:
        box.close()


async def test_usage_counts_mailboxes_never_looked_at(store: Store, tmp_path: Path) -> None:
    """An account taken over from another server."""
    for part in ("cur", "new", "tmp"):
        maildir(tmp_path, f".Old/{part}").mkdir(parents=True)
        maildir(tmp_path, part).mkdir(parents=True)
    drop(maildir(tmp_path, ".Old"), "1.2.mx", "old")
    assert (await store.usage(OWNER)).messages == 1
    assert await look(store, "Old") == {1: "old"}


async def test_maildirsize_goes_at_the_first_change(store: Store, tmp_path: Path) -> None:
    """Dovecot and Courier make it anew; a stale one would be wrong (STORE.md s. 1)."""
    await deliver(store, "a")
    maildir(tmp_path, "maildirsize").write_text("1S\n")
    store.hints.close()
    other = new_store(tmp_path)
    await other.start()
    await deliver(other, "b")
    assert not maildir(tmp_path, "maildirsize").exists()
    await other.close()


async def test_a_masked_foreign_change_is_found_when_all_is_quiet(store: Store, tmp_path: Path) -> None:
    """STORE.md s. 5: a change in the same clock tick as ours leaves no other time; two seconds later it is seen."""
    await deliver(store, "a")
    await look(store)
    stat = maildir(tmp_path, "new").stat()
    drop(maildir(tmp_path), "1700000000.M20P1.other", "masked")
    os.utime(maildir(tmp_path, "new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert await look(store) == {1: "a"}
    with sqlite3.connect(maildir(tmp_path, "pymx.index")) as db:
        db.execute("UPDATE mailbox SET dirty_since = dirty_since - 3")
    db.close()
    store._accounts[OWNER.email].box(("INBOX",)).last_listing -= 61  # at most once a minute
    assert await look(store) == {1: "a", 2: "masked"}
