"""pymxctl mailbox check|reindex: each kind of damage is found, said, and mended with the same UIDs; nothing is changed
by looking (STORE.md s. 5, 9)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from ms_dovecot import DOVEADM, Dovecot
from ms_support import OWNER, content, deliver, drop, files, look, maildir, new_store

from pymx.admin import ctl
from pymx.config.model import Mail
from pymx.mail.flags import DELETED, SEEN
from pymx.ms.mend import Mending, index_path, open_account
from pymx.ms.store import Append, Store


@dataclass
class Ctl:
    config: Path

    def __call__(self, *words: str) -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            status = ctl.main(["--config", str(self.config), "mailbox", *words])
        return status, out.getvalue()

    def kinds(self, *, wrong: bool = True) -> set[str]:
        status, out = self("check", "--json", OWNER.email)
        found = json.loads(out)
        assert status == any(f["wrong"] for f in found)
        return {f["kind"] for f in found if f["wrong"] or not wrong}


@pytest.fixture
def pymxctl(tmp_path: Path) -> Ctl:
    path = tmp_path / "pymx.toml"
    path.write_text(
        f'hostname = "mx.test"\ndata_dir = "{tmp_path}"\nuser = "none"\n[mail]\nroot = "{tmp_path}/mail"\n'
        f'[control]\nsocket = "{tmp_path}/run/control.sock"\n'
    )
    return Ctl(path)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = new_store(tmp_path)
    await store.start()
    yield store
    await store.close()


async def some_mail(store: Store) -> None:
    """Six messages with flags and keywords, one expunged, and a folder."""
    await deliver(store, *[f"m{n}" for n in range(5)])
    await store.append(OWNER, "INBOX", [Append(content("six"), SEEN, ("$Work", "$Later"), 1_600_000_000)])
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([2], "add", DELETED, [])
    await mailbox.expunge(None)
    await mailbox.store_flags([3], "add", 0, ["$Work"])
    mailbox.close()
    await store.create(OWNER, "Work.Ärger")
    await deliver(store, "in a folder", mailbox="Work.Ärger")
    await store.subscribe(OWNER, "Work.Ärger")


async def facts(store: Store, name: str = "INBOX") -> tuple[int, list[tuple[int, int, frozenset[str]]], dict[int, str]]:
    """UIDVALIDITY; UIDs with flags and keywords; subjects."""
    mailbox = await store.open(OWNER, name, read_only=True)
    out = []
    async for batch in mailbox.rows(mailbox.uids):
        for uid, _, flags, bits, *_ in batch:
            out.append((uid, flags, frozenset(k for n, k in enumerate(mailbox.keywords) if bits >> n & 1)))
    mailbox.close()
    return mailbox.uidvalidity, out, await look(store, name)


def tree(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Names, inodes, sizes and mtimes of everything below."""
    out = {}
    for path in sorted(directory.rglob("*")):
        found = path.lstat()
        out[str(path)] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return out


async def test_a_sound_account_has_no_findings_and_is_not_touched(tmp_path: Path, pymxctl: Ctl) -> None:
    """Exit status 0, and no file is made, changed or renamed."""
    store = new_store(tmp_path)
    await store.start()
    await some_mail(store)
    await facts(store)
    await store.close()
    before = tree(maildir(tmp_path))
    status, out = pymxctl("check")
    assert (status, out) == (0, "1 account looked at: nothing is wrong\n")
    assert tree(maildir(tmp_path)) == before


async def test_check_while_the_store_has_the_account_open(store: Store, pymxctl: Ctl) -> None:
    """Looks beside a running server."""
    await some_mail(store)
    await facts(store)
    assert pymxctl.kinds() == set()


def uidlist(tmp_path: Path) -> Path:
    return maildir(tmp_path) / "dovecot-uidlist"


def tear(tmp_path: Path) -> None:
    path = uidlist(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])


def break_line(tmp_path: Path) -> None:
    lines = uidlist(tmp_path).read_bytes().split(b"\n")
    lines[2] = b"garbage in the middle"
    uidlist(tmp_path).write_bytes(b"\n".join(lines))


def swap_lines(tmp_path: Path) -> None:
    lines = uidlist(tmp_path).read_bytes().split(b"\n")
    lines[1], lines[3] = lines[3], lines[1]
    uidlist(tmp_path).write_bytes(b"\n".join(lines))


def break_header(tmp_path: Path) -> None:
    uidlist(tmp_path).write_bytes(b"\0" * 40 + uidlist(tmp_path).read_bytes()[40:])


def repeat_base(tmp_path: Path) -> None:
    lines = uidlist(tmp_path).read_bytes().splitlines()
    uidlist(tmp_path).write_bytes(b"\n".join([*lines, b"9 " + lines[1].split(b" ", 1)[1]]) + b"\n")


def remove_uidlist(tmp_path: Path) -> None:
    uidlist(tmp_path).unlink()


def lose_lines(tmp_path: Path) -> None:
    uidlist(tmp_path).write_bytes(b"\n".join(uidlist(tmp_path).read_bytes().split(b"\n")[:3]) + b"\n")


def remove_keywords(tmp_path: Path) -> None:
    (maildir(tmp_path) / "dovecot-keywords").unlink()


def tear_keywords(tmp_path: Path) -> None:
    path = maildir(tmp_path) / "dovecot-keywords"
    path.write_bytes(path.read_bytes() + b"99 nonsense")


def wrong_sizes(tmp_path: Path) -> None:
    """Octets appended to two messages, as an editor does; flags and letters stay."""
    for path in files(maildir(tmp_path))[-2:]:
        path.write_bytes(path.read_bytes() + b"more\nand more\n")


def old_tmp(tmp_path: Path) -> None:
    path = maildir(tmp_path) / "tmp" / "never-ended"
    path.write_text("x")
    os.utime(path, (time.time() - 37 * 3600,) * 2)


def on_index(statement: str) -> Callable[[Path], None]:
    def damage(tmp_path: Path) -> None:
        db = sqlite3.connect(maildir(tmp_path) / "pymx.index")
        db.execute(statement)
        db.commit()
        db.close()

    return damage


def break_subscriptions(tmp_path: Path) -> None:
    path = maildir(tmp_path) / "subscriptions"
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (tear, "uidlist_torn"),
    (break_line, "uidlist_line"),
    (swap_lines, "uidlist_order"),
    (break_header, "uidlist_header"),
    (repeat_base, "uidlist_base_twice"),
    (remove_uidlist, "uidlist_missing"),
    (lose_lines, "uidlist_lines_lost"),
    (remove_keywords, "keywords_nameless"),
    (tear_keywords, "keywords_torn"),
    (wrong_sizes, "size_wrong"),
    (old_tmp, "tmp_old"),
    (on_index("UPDATE mailbox SET messages = 77, octets = 5"), "index_counters"),
    (on_index("UPDATE message SET flags = flags | 4 WHERE id = (SELECT max(id) FROM message)"), "index_flags"),
    (on_index("UPDATE message SET octets = octets + 1"), "index_octets"),
    (on_index("DELETE FROM message WHERE id = (SELECT min(id) FROM message)"), "index_no_row"),
    (on_index("INSERT INTO message(id, name) VALUES(9999 << 32 | 1, x'41')"), "index_orphans"),
    (break_subscriptions, "subscriptions_torn"),
]


@pytest.mark.parametrize(("damage", "kind"), DAMAGES, ids=[kind for _, kind in DAMAGES])
async def test_damage_is_found_and_mended_with_the_same_uids(
    tmp_path: Path, store: Store, pymxctl: Ctl, damage: Callable[[Path], None], kind: str
) -> None:
    """Found by looking; mended while a store has the account open; UIDs, flags and keywords as before."""
    await some_mail(store)
    before, folder = await facts(store), await facts(store, "Work.Ärger")
    damage(tmp_path)
    assert kind in pymxctl.kinds()
    status, out = pymxctl("reindex", OWNER.email)
    assert status == 0
    assert "mended" in out
    assert pymxctl.kinds() == set(), out
    assert await facts(store) == before
    assert await facts(store, "Work.Ärger") == folder


async def test_a_damaged_index_is_moved_aside_and_what_can_be_read_is_saved(tmp_path: Path, pymxctl: Ctl) -> None:
    """STORE.md s. 5: UIDs, flags and keywords the same, even with the uidlist gone as well."""
    store = new_store(tmp_path)
    await store.start()
    await some_mail(store)
    await store.create(OWNER, "Old", "\\Archive")
    await deliver(store, "archived", mailbox="Old")
    before = await facts(store)
    await store.close()
    index = maildir(tmp_path) / "pymx.index"
    db = sqlite3.connect(index)
    page = db.execute("SELECT rootpage FROM sqlite_master WHERE name='rendered'").fetchone()[0]
    octets = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    with index.open("r+b") as file:
        file.seek((page - 1) * octets)
        file.write(b"\xa5" * octets)
    uidlist(tmp_path).unlink()
    assert "index_damaged" in pymxctl.kinds()
    status, out = pymxctl("reindex", OWNER.email)
    assert status == 0, out
    assert "rows were saved" in out
    assert list(maildir(tmp_path).glob("pymx.index.damaged-*"))
    assert pymxctl.kinds() == set()
    store = new_store(tmp_path)
    await store.start()
    assert await facts(store) == before
    assert {f.name: f.special_use for f in await store.folders(OWNER)}["Old"] == "\\Archive"
    await store.close()


async def test_an_index_that_is_no_database_is_made_anew(tmp_path: Path, pymxctl: Ctl) -> None:
    """Same UIDs from the uidlist."""
    store = new_store(tmp_path)
    await store.start()
    await some_mail(store)
    before = await facts(store)
    await store.close()
    (maildir(tmp_path) / "pymx.index").write_bytes(b"not a database" * 1000)
    assert "index_damaged" in pymxctl.kinds()
    assert pymxctl("reindex", OWNER.email)[0] == 0
    assert pymxctl.kinds() == set()
    store = new_store(tmp_path)
    await store.start()
    assert await facts(store) == before
    await store.close()


async def test_what_other_programs_just_did_is_no_fault(tmp_path: Path, store: Store, pymxctl: Ctl) -> None:
    """A foreign delivery, a foreign flag: the next access takes them in."""
    await some_mail(store)
    drop(maildir(tmp_path), "1700000000.M1P1.other", "foreign")
    path = files(maildir(tmp_path))[0]
    path.rename(path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,F")
    assert pymxctl.kinds() == set()
    assert "index_behind" in pymxctl.kinds(wrong=False)


async def test_check_says_each_finding_with_its_remedy(tmp_path: Path, store: Store, pymxctl: Ctl) -> None:
    """A sentence for what is, one for what to do; exit status 1."""
    await some_mail(store)
    tear(tmp_path)
    status, out = pymxctl("check", OWNER.email, "INBOX")
    assert status == 1
    assert "alice@example.test INBOX: the last line of dovecot-uidlist is torn" in out
    assert "    pymxctl mailbox reindex alice@example.test 'INBOX'\n" in out
    assert pymxctl("check", OWNER.email, "Work.Ärger")[0] == 0
    assert pymxctl("check", OWNER.email, "Nowhere")[0] == 1
    assert pymxctl("check", "nobody@example.test")[0] == 1
    assert pymxctl("check", "../..@..")[0] == 2


async def test_a_file_under_two_names_and_a_second_file_of_one_base(tmp_path: Path, store: Store, pymxctl: Ctl) -> None:
    """STORE.md s. 5 step 6: another message under the same base gets a base of its own."""
    await deliver(store, "one")
    await look(store)
    path = files(maildir(tmp_path))[0]
    (maildir(tmp_path) / "cur" / f"{path.name.partition(':')[0]}:2,S").write_text("Subject: other\n\nx\n")
    assert "base_twice" in pymxctl.kinds()
    assert pymxctl("reindex", OWNER.email)[0] == 0
    assert pymxctl.kinds() == set()
    assert sorted((await look(store)).values()) == ["one", "other"]


async def test_reindex_beside_deliveries_and_flag_changes(tmp_path: Path, store: Store, pymxctl: Ctl) -> None:
    """Under the same locks: nothing is lost, no UID is two messages."""
    await some_mail(store)
    wrong_sizes(tmp_path)
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    first = dict(await look(store))

    async def work() -> None:
        for number in range(40):
            await deliver(store, f"meanwhile {number}")
            await mailbox.refresh()
            await mailbox.store_flags([mailbox.uids[-1]], "add", SEEN, ["$Work"])

    mail = Mail(root=str(tmp_path / "mail"))

    def mend() -> None:
        for _ in range(6):
            account = open_account(mail, OWNER, "mx.test")
            Mending(account, index_path(mail, OWNER), lambda _: None).run()
            account.close()

    await asyncio.gather(work(), asyncio.to_thread(mend))
    await mailbox.refresh()
    mailbox.close()
    found = await look(store)
    assert found == first | {7 + number: f"meanwhile {number}" for number in range(40)}
    assert pymxctl.kinds() == set()


@pytest.mark.skipif(DOVEADM is None, reason="no doveadm on this machine")
@pytest.mark.parametrize(("damage", "kind"), DAMAGES[:11], ids=[kind for _, kind in DAMAGES[:11]])
async def test_dovecot_agrees_after_mending(
    tmp_path: Path, store: Store, pymxctl: Ctl, damage: Callable[[Path], None], kind: str
) -> None:
    """Dovecot had the mailbox open before; after damage and reindex it sees the same UIDs, and complains of nothing."""
    await some_mail(store)
    _, before, _ = await facts(store)
    dovecot = Dovecot(tmp_path / "dovecot", maildir(tmp_path))
    shown = dovecot.messages("INBOX")
    assert sorted(shown) == [uid for uid, *_ in before]
    damage(tmp_path)
    assert pymxctl("reindex", OWNER.email)[0] == 0
    assert dovecot.messages("INBOX") == shown
    fetched = dovecot.imap("EXAMINE INBOX", "UID FETCH 1:* (UID RFC822.SIZE BODY.PEEK[])")
    assert fetched.count("BODY[]") == len(before)
    assert dovecot.messages("INBOX") == shown
    assert dovecot.complaints == []
