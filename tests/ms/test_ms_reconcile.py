"""What foreign programs and accidents do to a Maildir, and what the store makes of it (STORE.md s. 5)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, deliver, drop, files, look, maildir, new_store

from pymx.mail.flags import FLAGGED, SEEN
from pymx.ms import uidlist
from pymx.ms.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = new_store(tmp_path)
    await store.start()
    yield store
    await store.close()


def parsed(directory: Path) -> uidlist.UidList:
    found = uidlist.parse((directory / "dovecot-uidlist").read_bytes())
    assert found.clean
    return found


async def test_foreign_deliveries_get_uids_in_order_of_arrival(store: Store, tmp_path: Path) -> None:
    """Rule 3: sorted by seconds, microseconds, base."""
    await deliver(store, "a")
    drop(maildir(tmp_path), "1700000000.M20P1.other", "third")
    drop(maildir(tmp_path), "1700000000.M3P1.other", "second")
    drop(maildir(tmp_path), "1699999999.1_2.other:2,S", "first", "cur")
    assert await look(store) == {1: "a", 2: "first", 3: "second", 4: "third"}
    assert [record[0] for record in parsed(maildir(tmp_path)).records] == [1, 2, 3, 4]


async def test_foreign_flag_changes_and_moves_to_cur_are_seen(store: Store, tmp_path: Path) -> None:
    """Rule 2: the base is the message, whatever its flags and directory."""
    await deliver(store, "a", "b")
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    one, two = files(maildir(tmp_path))
    one.rename(one.parent.parent / "cur" / f"{one.name}:2,FS")
    two.rename(two.parent.parent / "cur" / f"{two.name}:2,")
    changes = await mailbox.refresh()
    assert [(row[0], row[2]) for row in changes.flagged] == [(1, SEEN | FLAGGED)]
    assert (changes.expunged, changes.arrived) == ([], 0)
    assert (await store.status(OWNER, "INBOX")).unseen == 1
    mailbox.close()


async def test_foreign_expunge_is_seen(store: Store, tmp_path: Path) -> None:
    """Rule 5."""
    await deliver(store, "a", "b", "c")
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    files(maildir(tmp_path))[1].unlink()
    assert (await mailbox.refresh()).expunged == [2]
    assert list(mailbox.uids) == [1, 3]
    mailbox.close()


async def test_a_message_that_comes_back_after_its_expunge_is_another_one(store: Store, tmp_path: Path) -> None:
    """Rule 4: its UID was told as expunged."""
    await deliver(store, "a", "b")
    path = files(maildir(tmp_path))[0]
    kept = path.read_bytes()
    path.unlink()
    assert await look(store) == {2: "b"}
    path.write_bytes(kept)
    assert await look(store) == {2: "b", 3: "a"}
    bases = [record[2] for record in parsed(maildir(tmp_path)).records]
    assert len(bases) == len(set(bases))


async def test_one_base_twice_becomes_two_messages(store: Store, tmp_path: Path) -> None:
    """Rule 6: another file of the same base gets a base of its own."""
    await deliver(store, "a")
    path = files(maildir(tmp_path))[0]
    (maildir(tmp_path) / "cur" / f"{path.name}:2,S").write_bytes(b"Subject: copy\n\nother\n")
    await look(store)
    assert sorted((await look(store)).values()) == ["a", "copy"]


async def test_the_same_file_under_two_names_is_one_message(store: Store, tmp_path: Path) -> None:
    """Rule 6: a foreign move in progress is left alone for 30 s."""
    await deliver(store, "a")
    path = files(maildir(tmp_path))[0]
    os.link(path, maildir(tmp_path) / "cur" / f"{path.name}:2,S")
    assert await look(store) == {1: "a"}


async def test_unusable_names_and_directories_are_left_alone(store: Store, tmp_path: Path) -> None:
    await deliver(store, "a")
    (maildir(tmp_path) / "cur" / "directory").mkdir()
    drop(maildir(tmp_path), "bad\nname", "bad")
    assert await look(store) == {1: "a"}
    assert parsed(maildir(tmp_path))


async def test_a_lost_index_is_rebuilt(store: Store, tmp_path: Path) -> None:
    """UIDs and flags same, modseq now."""
    await deliver(store, "a", "b", "c")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([2], "add", FLAGGED, ["$Word"])
    mailbox.close()
    before, status = await look(store), await store.status(OWNER, "INBOX")
    for path in maildir(tmp_path).glob("pymx.index*"):
        path.unlink()
    assert await look(store) == before
    again = await store.open(OWNER, "INBOX", read_only=True)
    rows = [row async for batch in again.rows(again.uids) for row in batch]
    assert [(row[0], row[2], row[3]) for row in rows] == [(1, 0, 0), (2, FLAGGED, 1), (3, 0, 0)]
    assert again.keywords == ["$Word"]
    assert (again.uidvalidity, again.uidnext) == (status.uidvalidity, status.uidnext)
    assert again.highestmodseq > status.highestmodseq
    again.close()


@pytest.mark.parametrize("damage", [b"this is no database" * 300, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_index_is_moved_aside(tmp_path: Path, damage: bytes) -> None:
    store = new_store(tmp_path)
    await store.start()
    await deliver(store, "a", "b")
    await store.close()
    for path in maildir(tmp_path).glob("pymx.index*"):
        path.unlink()
    (maildir(tmp_path) / "pymx.index").write_bytes(damage)
    store = new_store(tmp_path)
    await store.start()
    assert await look(store) == {1: "a", 2: "b"}
    assert list(maildir(tmp_path).glob("pymx.index.damaged-*"))
    await store.close()


@pytest.mark.parametrize("left", [None, b"", b"rubbish\n"])
async def test_a_lost_uidlist_is_rewritten_from_the_index(store: Store, tmp_path: Path, left: bytes | None) -> None:
    """Same UIDVALIDITY, next UID, GUID and UIDs."""
    await deliver(store, "a", "b", "c")
    files(maildir(tmp_path))[2].unlink()
    await look(store)
    before = parsed(maildir(tmp_path))
    path = maildir(tmp_path) / "dovecot-uidlist"
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    assert await look(store) == {1: "a", 2: "b"}
    after = parsed(maildir(tmp_path))
    assert after.header.uidvalidity == before.header.uidvalidity
    assert after.header.guid == before.header.guid
    assert after.next_uid == before.next_uid == 4


async def test_an_older_uidlist_does_not_bring_uids_back(store: Store, tmp_path: Path) -> None:
    """A restored file: next UID is the larger of both."""
    await deliver(store, "a")
    path = maildir(tmp_path) / "dovecot-uidlist"
    old = path.read_bytes()
    await deliver(store, "b", "c")
    files(maildir(tmp_path))[2].unlink()
    assert await look(store) == {1: "a", 2: "b"}
    path.write_bytes(old)
    assert await look(store) == {1: "a", 2: "b"}
    assert await deliver(store, "d") == [4]
    assert await look(store) == {1: "a", 2: "b", 4: "d"}


async def test_a_torn_tail_is_cut(store: Store, tmp_path: Path) -> None:
    await deliver(store, "a", "b")
    path = maildir(tmp_path) / "dovecot-uidlist"
    path.write_bytes(path.read_bytes()[:-5])
    assert await look(store) == {1: "a", 2: "b"}
    parsed(maildir(tmp_path))


async def test_version_1_is_read_and_rewritten(store: Store, tmp_path: Path) -> None:
    """Courier's form."""
    for part in ("cur", "new", "tmp"):
        (maildir(tmp_path) / part).mkdir(parents=True)
    drop(maildir(tmp_path), "1.2.mx:2,S", "seven", "cur")
    drop(maildir(tmp_path), "2.2.mx", "nine")
    (maildir(tmp_path) / "dovecot-uidlist").write_bytes(b"1 1600000000 12\n7 1.2.mx:2,S\n9 2.2.mx\n")
    assert await look(store) == {7: "seven", 9: "nine"}
    status = await store.status(OWNER, "INBOX")
    assert (status.uidvalidity, status.uidnext) == (1600000000, 12)
    assert parsed(maildir(tmp_path)).header.guid


async def test_another_uidvalidity_in_the_file_is_another_mailbox(store: Store, tmp_path: Path) -> None:
    """Changed by the other server's command: the index forgets what it knew."""
    await deliver(store, "a", "b")
    found = parsed(maildir(tmp_path))
    found.header.uidvalidity += 7
    found.records = [(uid + 10, keys, base) for uid, keys, base in found.records]
    (maildir(tmp_path) / "dovecot-uidlist").write_bytes(found.to_bytes())
    assert await look(store) == {11: "a", 12: "b"}
    assert (await store.status(OWNER, "INBOX")).uidvalidity == found.header.uidvalidity


async def test_one_uid_for_two_messages_gives_a_new_uidvalidity(store: Store, tmp_path: Path) -> None:
    """Uidlist and index contradict each other: nobody can know."""
    await deliver(store, "a", "b")
    before = await store.status(OWNER, "INBOX")
    found = parsed(maildir(tmp_path))
    found.records = [(1, b"", found.records[1][2]), (2, b"", found.records[0][2])]
    (maildir(tmp_path) / "dovecot-uidlist").write_bytes(found.to_bytes())
    assert await look(store) == {1: "a", 2: "b"}
    assert (await store.status(OWNER, "INBOX")).uidvalidity > before.uidvalidity


async def test_after_a_power_cut_every_message_has_a_new_modseq(tmp_path: Path) -> None:
    """A change told at the end may have been lost with the index."""
    store = new_store(tmp_path, boot="one")
    await store.start()
    await deliver(store, "a", "b")
    status = await store.status(OWNER, "INBOX")
    # no close: the process is gone with the machine
    after = new_store(tmp_path, boot="two")
    await after.start()
    mailbox = await after.open(OWNER, "INBOX", read_only=True)
    rows = [row async for batch in mailbox.rows(mailbox.uids) for row in batch]
    assert all(row[1] > status.highestmodseq for row in rows)
    mailbox.close()
    await after.close()
    await store.close()


async def test_a_clean_stop_and_a_boot_change_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path, boot="one")
    await store.start()
    await deliver(store, "a", "b")
    status = await store.status(OWNER, "INBOX")
    await store.close()
    store = new_store(tmp_path, boot="two")
    await store.start()
    assert (await store.status(OWNER, "INBOX")) == status
    await store.close()


async def test_many_dead_lines_are_dropped_from_the_uidlist(store: Store, tmp_path: Path) -> None:
    """STORE.md s. 4.9: more than a quarter and more than 1,000; next UID stays."""
    directory = maildir(tmp_path)
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    for number in range(1200):
        (directory / "cur" / f"{number}.x,S=12,W=14:2,T").write_bytes(b"Subject: x\n\n")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    assert len(await mailbox.expunge(None)) == 1200
    assert len((await mailbox.refresh()).expunged) == 1200
    mailbox.close()
    assert await deliver(store, "a") == [1201]
    assert parsed(directory).records[0][0] == 1201
    assert len(parsed(directory).records) == 1
