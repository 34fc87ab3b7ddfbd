"""What makes searches of large mailboxes fast, and that nothing depends on it."""

from __future__ import annotations

import contextlib
import gzip
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, maildir

from pymx.config.model import Mail
from pymx.mail import flags
from pymx.mail.search import And, Criterion, Header, Not, Or, Text
from pymx.ms import index, searching
from pymx.ms.box import Box
from pymx.ms.mailbox import Mailbox, _SearchView
from pymx.ms.searchahead import Ahead
from pymx.ms.store import Append, Store
from pymx.ms.where import Where
from pymx.proto.imap.render import render
from pymx.spool import Content

MESSAGES = 60
FROM_ANN, SUBJECT = Header("From", "ann1"), Header("Subject", "invoice")
SEARCHES: list[Criterion] = [
    FROM_ANN,
    SUBJECT,
    Not(SUBJECT),
    Or(FROM_ANN, SUBJECT),
    And((FROM_ANN, Not(SUBJECT))),
    Header("To", "bob"),
    Not(And((Header("To", "bob"), SUBJECT))),
]


def message(number: int) -> bytes:
    word = "invoice" if number % 4 == 0 else "order"
    long = "y" * 9000 if number % 10 == 9 else ""  # too long for the index: the message is asked
    return (
        f"From: ann{number % 3} <a@example.test>\r\nTo: bob{number % 2}\r\nSubject: {word} {long} {number}\r\n\r\n"
        f"body {number}\r\n"
    ).encode()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    items = [Append(Content.from_bytes(message(number)), flags.SEEN, (), None) for number in range(MESSAGES)]
    await store.append(OWNER, "INBOX", items)
    yield store
    await store.close()


@pytest.fixture
async def mailbox(store: Store) -> AsyncIterator[Mailbox]:
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    yield mailbox
    mailbox.close()


def has_texts(box: Box) -> bool:
    with box.home.index.read() as db:
        return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'keys_text'").fetchone())


def make_older(box: Box) -> None:
    """The index file as an earlier version made it, opened anew."""
    with box.home.index.write() as db:
        db.execute("DROP INDEX keys_text")
    with box.home.index._mutex:
        box.home.index._drop()


def plans(mailbox: Mailbox, criterion: Criterion) -> str:
    """How SQLite reads what a search over `keys` asks."""
    box = mailbox._box
    where = Where(criterion, low=mailbox._low, first_recent=1, keyword_bit=lambda _: None)
    asked: list[str] = []
    with box.home.index.read() as db:
        db.set_trace_callback(asked.append)
        where.select_at_once(db, mailbox.uids)
        db.set_trace_callback(None)
        return " ".join([row[3] for row in db.execute("EXPLAIN QUERY PLAN " + asked[0])])


async def answers(mailbox: Mailbox) -> list[list[int]]:
    return [await mailbox.search(criterion) for criterion in SEARCHES]


async def test_searches_of_from_and_subject_read_narrow_rows_alone(mailbox: Mailbox) -> None:
    for criterion in (FROM_ANN, SUBJECT, Or(FROM_ANN, SUBJECT), Not(SUBJECT)):
        assert "COVERING INDEX keys_text" in plans(mailbox, criterion)
    assert "INTEGER PRIMARY KEY" in plans(mailbox, Header("To", "bob"))


async def test_an_older_index_file_stays_and_gets_the_narrow_rows_at_a_search(mailbox: Mailbox) -> None:
    """Nothing is rendered anew, and the file can go back to the earlier version."""
    box = mailbox._box
    expected = await answers(mailbox)
    assert expected[1] == [number + 1 for number in range(0, MESSAGES, 4)]
    make_older(box)
    inode = os.stat(box.home.index.path).st_ino
    assert await answers(mailbox) == expected  # so few messages that it does not matter
    assert not has_texts(box)
    assert "COVERING" not in plans(mailbox, SUBJECT)
    box.home.index.add_texts()
    assert has_texts(box)
    assert "COVERING INDEX keys_text" in plans(mailbox, SUBJECT)
    assert await answers(mailbox) == expected
    with box.home.index.read() as db:
        assert db.execute("PRAGMA user_version").fetchone() == (index.SCHEMA,) == (2,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert os.stat(box.home.index.path).st_ino == inode


async def test_a_search_of_a_large_mailbox_adds_them(store: Store, tmp_path: Path) -> None:
    directory = maildir(tmp_path, ".Large")
    for part in ("cur", "new", "tmp"):
        (directory / part).mkdir(parents=True)
    (directory / "maildirfolder").touch()
    for number in range(searching._MANY):
        (directory / "cur" / f"1577700000.M{number}P1.other:2,S").write_bytes(b"Subject: few %d\n\n" % number)
    large = await store.open(OWNER, "Large", read_only=True)
    box = large._box
    make_older(box)
    assert len(await large.search(Header("Subject", "few 7"))) == 111
    assert has_texts(box)
    large.close()


async def test_an_index_of_very_many_messages_is_left_as_it_is(mailbox: Mailbox) -> None:
    """Deliveries would wait for too long."""
    box = mailbox._box
    expected = await answers(mailbox)
    make_older(box)
    with box.home.index.write() as db:
        db.execute("UPDATE mailbox SET messages = messages + ?", (index._MOST_ADDED,))
    box.home.index.add_texts()
    assert not has_texts(box)
    assert await answers(mailbox) == expected


async def test_an_index_that_somebody_writes_is_left_as_it_is(
    mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    box = mailbox._box
    expected = await answers(mailbox)
    make_older(box)
    with box.home.index.read() as db:
        db.execute("PRAGMA busy_timeout=0")
    with contextlib.closing(sqlite3.connect(os.fsdecode(box.home.index.path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        box.home.index.add_texts()
        assert [record.message for record in caplog.records if "search_index_not_made" in record.message]
        other.execute("ROLLBACK")
    assert not has_texts(box)
    assert await answers(mailbox) == expected


@pytest.mark.parametrize("portion", [1, 4, 7, MESSAGES])
@pytest.mark.parametrize("criterion", [*SEARCHES, Text("body 1", headers=False)], ids=str)
async def test_portions_scanned_by_two_threads_give_the_same(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, portion: int, criterion: Criterion
) -> None:
    view = _SearchView(mailbox)
    whole = searching.find(mailbox._box, mailbox._low, criterion, view, render, lambda: False)
    monkeypatch.setattr(searching, "_PORTION", portion)
    monkeypatch.setattr(searching, "_FOR_ONE", 1)
    assert searching.find(mailbox._box, mailbox._low, criterion, view, render, lambda: False) == whole
    with mailbox._box.home.index.write() as db:
        db.execute("DELETE FROM keys WHERE id & 4294967295 BETWEEN 20 AND 25")
    assert searching.find(mailbox._box, mailbox._low, criterion, view, render, lambda: False) == whole


async def test_a_scan_stops_when_it_is_told_to(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_PORTION", 5)
    found = searching.find(mailbox._box, mailbox._low, SUBJECT, _SearchView(mailbox), render, lambda: True)
    assert found == []


@pytest.mark.parametrize("chosen", [set(), {5}, {1, 7, 8, 300}, set(range(0, 400, 2)), {2, 999}])
def test_uids_that_may_hold_a_text_are_those_of_the_view(chosen: set[int]) -> None:
    """The full-text index also knows messages that are gone, and later ones."""
    uids = list(range(3, 300, 2))
    assert searching._common(uids, chosen) == [uid for uid in uids if uid in chosen]


async def test_messages_are_read_where_they_are_by_now(store: Store, mailbox: Mailbox, tmp_path: Path) -> None:
    """Names are looked up ahead; then files are renamed, compressed, expunged, or not what their rows say."""
    uids = list(mailbox.uids)
    ahead = Ahead(_SearchView(mailbox), mailbox._box, mailbox._low, uids, lambda: False)
    assert ahead.message(1) == message(0)
    assert ahead.header(1) == message(0).partition(b"body")[0]
    paths = {int(path.read_bytes().split(b"body ")[1]) + 1: path for path in (maildir(tmp_path) / "cur").iterdir()}
    await mailbox.store_flags([3], "add", flags.FLAGGED, ())
    await mailbox.store_flags([4], "add", flags.DELETED, ())
    await mailbox.expunge([4])
    paths[5].write_bytes(gzip.compress(paths[5].read_bytes()))
    paths[6].write_bytes(paths[6].read_bytes() + b"more\n" * 50)
    for uid in (3, 5):
        assert ahead.header(uid) == message(uid - 1).partition(b"body")[0]
        assert ahead.message(uid) == message(uid - 1)
    assert ahead.header(4) is ahead.message(4) is None
    assert ahead.message(6) == message(5) + b"more\r\n" * 50
    assert ahead.message(7) == message(6)


async def test_names_are_looked_up_for_many_messages_at_once(mailbox: Mailbox) -> None:
    """One question of the index for up to 500 messages, not two for each."""
    view = _SearchView(mailbox)
    asked: list[str] = []
    with mailbox._box.home.index.read() as db:
        db.set_trace_callback(asked.append)
    find = searching.find(mailbox._box, mailbox._low, Text("body 1", headers=False), view, render, lambda: False)
    with mailbox._box.home.index.read() as db:
        db.set_trace_callback(None)
    assert find == [number + 1 for number in range(MESSAGES) if str(number).startswith("1")]
    assert 0 < len(asked) < 5
