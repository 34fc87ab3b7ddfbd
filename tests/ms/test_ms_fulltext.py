"""The full-text index: whatever is in it, a search gives what asking every message gives."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ms_support import OWNER, maildir

from pymx.config.model import Mail
from pymx.mail import flags
from pymx.mail.search import And, Criterion, Flags, Header, Not, Or, Text, Uids
from pymx.ms import fulltext, fulltextbuild, search
from pymx.ms.fulltext import FullText
from pymx.ms.mailbox import Mailbox, _SearchView
from pymx.ms.mend import Mending, open_account
from pymx.ms.searching import find, narrow
from pymx.ms.store import Append, Store
from pymx.proto.imap.render import render
from pymx.spool import Content

PART = (
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/html; charset=%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b\r\n"
    b'--b\r\nContent-Type: application/pdf; name="%b"\r\n\r\nxyz\r\n--b--\r\n'
)
MESSAGES = [
    b"Subject: Hello\r\n\r\nThe quick brown fox\r\njumps over the lazy dog\r\n",
    b"Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n\r\nGr\xc3\xbc\xc3\x9fe aus der Stra\xc3\x9fe\r\n",
    "Subject: ΟΔΟΣ\r\nX-Note: ἀρχή\r\n\r\nὁ λόγος ΤΗΣ ΟΔΟΥ και οδός\r\n".encode(),
    "Subject: İstanbul\r\n\r\nDIYARBAKIR ılık İYİ ıssız\r\n".encode(),
    b"Subject: x\r\n"
    + PART % (b"utf-8", b"7bit", b'<p>one<b>word</b> a&uuml;s &quot;quo"ted&quot;</p>', b"invoice.pdf"),
    b"Subject: y\r\n"
    + PART % (b"iso-8859-1", b"quoted-printable", b"caf=E9 na=EFve", b"=?utf-8?q?r=C3=A9sum=C3=A9.pdf?="),
    b"Subject: z\r\nX-Other: =?utf-8?q?caf=C3=A9?= =?utf-8?q?_au_lait?=\r\n\r\nnothing\x00here \xff\xfe\r\n",
    b"Subject: attached\r\nContent-Type: message/rfc822\r\n\r\n"
    b"Subject: inner fox\r\nFrom: deep@example.test\r\n\r\nbrown bear\r\n",
    b"Subject: folded\r\n header line\r\nList-Id: <dev.lists.example>\r\n\r\nab\r\ncd\r\n",
    "Subject: emoji\r\n\r\nparty 🎉🎉🎉 ﬁne ﬁsh Å Å\r\n".encode(),
    b"Subject: long\r\n\r\n" + b"word " * 60_000 + b"at the very end a needle\r\n",
    b"",
]
KEYS = [
    *("fox", "brown fox", "QUICK", "grüße", "GRÜSSE", "strasse", "STRAßE", "οδός", "ΟΔΟΣ", "οδοσ", "λόγος"),
    *("istanbul", "İstanbul", "ISTANBUL", "diyarbakır", "DIYARBAKIR", "ılık", "iyi", "onewo", "aüs", '"quo"ted"'),
    *("café", "CAFE", "naïve", "invoice.pdf", "résumé", "café au lait", "nothing\x00here", "inner", "deep@example"),
    *(
        "brown bear",
        "folded header",
        "dev.lists",
        "b\r\nc",
        "b\nc",
        "🎉🎉🎉",
        "🎉",
        "fine fish",
        "å å",
        "needle",
        "xyz",
    ),
    *("ab", "", "   ", "word " * 12, "AND", 'a"b', "fox\ud800", "---", "nowhere"),
]
texts = st.sampled_from(KEYS) | st.text(alphabet='abcdefox ßσςΣıİ"é\x00', min_size=1, max_size=6)
leaves: st.SearchStrategy[Criterion] = st.one_of(
    st.builds(Text, texts, st.booleans()),
    st.builds(
        Header, st.sampled_from(["Subject", "X-Note", "X-Other", "List-Id", "From", "to", "Content-Type"]), texts
    ),
    st.builds(Flags, st.just(flags.SEEN), st.booleans()),
    st.builds(Uids, st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=3).map(tuple)),
)
criteria: st.SearchStrategy[Criterion] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner), st.builds(Or, inner, inner), st.builds(And, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=5,
)


def settings_of(tmp_path: Path) -> Mail:
    return Mail(root=str(tmp_path / "mail"))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(settings_of(tmp_path), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    await append(store, MESSAGES)
    yield store
    await store.close()


async def append(store: Store, messages: list[bytes], mailbox: str = "INBOX") -> list[int]:
    items = [
        Append(Content.from_bytes(message or b"\r\n"), (number % 2) * flags.SEEN, (), 1_700_000_000 + number)
        for number, message in enumerate(messages)
    ]
    return (await store.append(OWNER, mailbox, items)).uids


@contextlib.contextmanager
def builder(tmp_path: Path, **options: int) -> Iterator[fulltextbuild.Builder]:
    account = open_account(settings_of(tmp_path), OWNER, "mx.test")
    try:
        yield fulltextbuild.Builder(account, **{"max_percent": 1000, **options})  # type: ignore[arg-type]  # all are ints
    finally:
        account.close()


def build(tmp_path: Path, **options: int) -> fulltextbuild.Built:
    with builder(tmp_path, **options) as one:
        return one.run()


def file_of(tmp_path: Path) -> FullText:
    return FullText(os.fsencode(maildir(tmp_path) / "pymx.index"), 0o600)


def stats(tmp_path: Path) -> fulltextbuild.Stats:
    return fulltextbuild.stats(file_of(tmp_path))


def answers(mailbox: Mailbox, criterion: Criterion) -> tuple[list[int], list[int]]:
    """With the index, and without."""
    view = _SearchView(mailbox)
    narrowing = narrow(mailbox._box, mailbox._guid, mailbox.uidvalidity, criterion, view.uids)
    with_index = find(mailbox._box, mailbox._low, criterion, view, render, lambda: False, narrowing)
    return with_index, search.run(criterion, view)


async def check_all(store: Store, name: str = "INBOX") -> None:
    """Every key, in header and body, with and without the index."""
    mailbox = await store.open(OWNER, name, read_only=True)
    for key in KEYS:
        for criterion in (Text(key, headers=True), Text(key, headers=False), Header("X-Other", key)):
            found, expected = answers(mailbox, criterion)
            assert found == expected, criterion
    mailbox.close()


def narrowed(mailbox: Mailbox, key: str) -> set[int]:
    """The messages that have to be read for a text."""
    narrowing = narrow(mailbox._box, mailbox._guid, mailbox.uidvalidity, Text(key, headers=True), mailbox.uids)
    assert narrowing is not None
    ((_, possible),) = narrowing.possible.items()
    return possible.intersection(mailbox.uids)


async def test_any_search_gives_the_same_whatever_the_index_holds(store: Store, tmp_path: Path) -> None:
    """STORE.md 8: unindexed UIDs are scanned and merged: same answer always."""
    build(tmp_path, chunk=5, volume=5)
    await append(store, MESSAGES[:3])
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    file = file_of(tmp_path)
    with contextlib.closing(file.connect()) as db:
        whole = db.execute("SELECT volume, mailbox, uids FROM covered").fetchall()

    def hold(chosen: set[int]) -> None:
        """Leave the file as if only those had been taken in."""
        with contextlib.closing(file.connect()) as db:
            for volume, number, blob in whole:
                left = array("I", [uid for uid in array("I", blob) if uid in chosen])
                db.execute("UPDATE covered SET uids=? WHERE volume=? AND mailbox=?", (left.tobytes(), volume, number))

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(criteria, st.sets(st.integers(1, 15)) | st.just(set(range(16))))
    def check(criterion: Criterion, chosen: set[int]) -> None:
        hold(chosen)
        found, expected = answers(mailbox, criterion)
        assert found == expected

    check()
    mailbox.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=40), st.text(min_size=3, max_size=4), st.integers(0, 37), st.booleans())
def test_every_part_of_a_text_is_found_by_its_trigrams(text: str, other: str, start: int, take_part: bool) -> None:
    """The same folding on both sides: a key within a text has all its trigrams there, in any script."""
    from pymx.mail.text import fold

    folded = fold(text)
    key = folded[start : start + 5] if take_part else fold(other)
    if len(key) < 3:
        return
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"CREATE VIRTUAL TABLE body USING {fulltextbuild._TABLE}")
        db.execute("INSERT INTO body(rowid, text) VALUES(1, ?)", (fulltext.indexable(folded),))
        found = db.execute("SELECT rowid FROM body WHERE body MATCH ?", (fulltext._query(key),)).fetchall()
    assert found or key not in folded


async def test_built_index_leaves_few_messages_to_read(store: Store, tmp_path: Path) -> None:
    built = build(tmp_path)
    assert built.messages == len(MESSAGES) - 1
    assert built.left_out == 1  # the one with 300,000 characters
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert narrowed(mailbox, "brown fox") == {1, 11}  # what is left out is always asked
    assert narrowed(mailbox, "GRÜSSE") == {2, 11}
    await check_all(store)
    assert await mailbox.search(Text("needle", headers=False)) == [11]
    for number, path in enumerate(sorted((maildir(tmp_path) / "cur").iterdir())):
        if number not in (0, 10):
            path.write_bytes(b"")
    assert await mailbox.search(Text("brown fox", headers=False)) == [1]
    mailbox.close()


async def test_what_came_later_is_scanned_and_then_taken_in(store: Store, tmp_path: Path) -> None:
    build(tmp_path)
    (uid,) = await append(store, [b"Subject: late\r\n\r\nanother brown fox\r\n"])
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert await mailbox.search(Text("brown fox", headers=True)) == [1, uid]
    assert uid in narrowed(mailbox, "nowhere to be seen")
    assert build(tmp_path).messages == 1
    assert uid not in narrowed(mailbox, "nowhere to be seen")
    assert await mailbox.search(Text("brown fox", headers=True)) == [1, uid]
    mailbox.close()


async def test_search_asks_for_a_build_and_deliveries_do_not(store: Store, tmp_path: Path) -> None:
    wanted: list[str] = []
    store.wants_fulltext = wanted.append
    assert not (maildir(tmp_path) / "pymx.fts").exists()
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert await mailbox.search(Flags(flags.SEEN, want=True))
    assert await mailbox.search(Header("From", "nobody")) == []
    assert wanted == []
    assert await mailbox.search(Text("brown fox", headers=True)) == [1]
    assert wanted == [OWNER.email]
    assert time.time() - file_of(tmp_path).searched_s() < 60
    build(tmp_path)
    await mailbox.search(Text("brown fox", headers=True))
    assert wanted == [OWNER.email]
    mailbox.close()


async def test_rename_and_a_new_index_keep_what_is_covered(store: Store, tmp_path: Path) -> None:
    """Rows are known by GUID and UIDVALIDITY, whatever number the other index gives a mailbox."""
    await store.create(OWNER, "Old")
    await append(store, MESSAGES, "Old")
    build(tmp_path)
    await store.rename(OWNER, "Old", "New")
    for path in maildir(tmp_path).glob("pymx.index*"):
        path.unlink()
    await store.create(OWNER, "Old")
    await append(store, [b"Subject: other\r\n\r\nno animal\r\n"] * 12, "Old")
    for name in ("New", "Old", "INBOX"):
        await check_all(store, name)
    mailbox = await store.open(OWNER, "New", read_only=True)
    assert narrowed(mailbox, "brown fox") == {1, 11}
    mailbox.close()
    assert build(tmp_path).messages == 12


async def test_reindex_keeps_the_answers(store: Store, tmp_path: Path) -> None:
    build(tmp_path)
    (maildir(tmp_path) / "pymx.index").write_bytes(b"garbage" * 1000)
    account = open_account(settings_of(tmp_path), OWNER, "mx.test")
    Mending(account, account.home.index.path, lambda _: None).run()
    account.close()
    await check_all(store)


async def test_deleted_mailbox_and_expunged_messages_make_room(store: Store, tmp_path: Path) -> None:
    """A volume of which more than 30 % are gone is dropped, and the rest of it taken in anew."""
    await store.create(OWNER, "Old")
    await append(store, [b"Subject: %d\r\n\r\nbrown fox\r\n" % n for n in range(200)], "Old")
    build(tmp_path)
    mailbox = await store.open(OWNER, "Old", read_only=False)
    await mailbox.store_flags(mailbox.uids[:50], "add", flags.DELETED, ())
    await mailbox.expunge(None)
    assert build(tmp_path).dropped == 0
    assert await mailbox.search(Text("brown fox", headers=False)) == list(mailbox.uids[50:])
    await mailbox.store_flags(mailbox.uids[50:100], "add", flags.DELETED, ())
    await mailbox.expunge(None)
    built = build(tmp_path)
    assert (built.dropped, built.messages) == (1, 100 + len(MESSAGES) - 1)
    mailbox.close()
    await store.delete(OWNER, "Old")
    build(tmp_path)
    assert stats(tmp_path).messages == len(MESSAGES) - 1
    await check_all(store)


async def test_newest_come_first_and_the_oldest_go_when_there_is_no_room(store: Store, tmp_path: Path) -> None:
    """The file is held below a part of what the account's mail takes."""
    noise = random.Random(7)
    bodies = [bytes(noise.choices(b"abcdefghijklmnopqrstuvwxyz0123456789", k=3000)) for _ in range(300)]
    await append(store, [b"Subject: noise\r\n\r\n" + body + b"\r\n" for body in bodies])
    limit = 1_500_000
    options = {"least_octets": limit, "max_percent": 1, "chunk": 5, "volume": 20}
    built = build(tmp_path, **options)
    assert built.full
    assert 0 < built.messages < 300
    assert built.size_octets <= limit
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    unread = set(mailbox.uids) - narrowed(mailbox, "nowhere to be seen")
    assert min(unread) > 300 - built.messages
    await append(store, [b"Subject: more\r\n\r\n" + body + b"\r\n" for body in bodies[:30]])
    with contextlib.closing(sqlite3.connect(maildir(tmp_path) / "pymx.index")) as db:
        db.execute("UPDATE message SET internaldate = internaldate + 10000 WHERE id & 4294967295 > 312")
        db.commit()
    again = build(tmp_path, **options)
    assert again.dropped
    assert again.size_octets <= limit
    mailbox.close()
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert set(mailbox.uids[-30:]).isdisjoint(narrowed(mailbox, "nowhere to be seen"))
    found, expected = answers(mailbox, Text(bodies[5][100:120].decode(), headers=False))
    assert found == expected
    assert len(found) == 2
    mailbox.close()


@pytest.mark.parametrize("damage", ["text", "torn", "schema", "tables", "pages"])
async def test_damaged_file_is_deleted_and_built_anew(store: Store, tmp_path: Path, damage: str) -> None:
    build(tmp_path)
    path = maildir(tmp_path) / "pymx.fts"
    data = path.read_bytes()
    if damage == "text":
        path.write_bytes(b"this is no database" * 500)
    elif damage == "torn":
        path.write_bytes(data[: len(data) // 3])
    elif damage == "pages":
        path.write_bytes(data[:8192] + b"\xa5" * (len(data) - 8192))
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            if damage == "schema":
                db.execute("PRAGMA user_version=77")
            else:
                db.execute("DROP TABLE volume")
                db.execute("DROP TABLE body_1")
    await check_all(store)
    build(tmp_path)
    assert stats(tmp_path).messages == len(MESSAGES) - 1
    await check_all(store)


async def test_mailbox_set_back_to_an_earlier_state_is_not_believed(store: Store, tmp_path: Path) -> None:
    """UIDs of a restored backup are given once more, to other messages."""
    uidlist = maildir(tmp_path) / "dovecot-uidlist"
    before = uidlist.read_bytes()
    (uid,) = await append(store, [b"Subject: late\r\n\r\nanother brown fox\r\n"])
    build(tmp_path)
    await store.close()
    for path in [*(maildir(tmp_path) / "new").iterdir(), *(maildir(tmp_path) / "cur").iterdir()]:
        if b"another brown fox" in path.read_bytes():
            path.unlink()
    uidlist.write_bytes(before)
    for path in maildir(tmp_path).glob("pymx.index*"):
        path.unlink()
    restored = Store(settings_of(tmp_path), render=render, runtime_dir=None, hostname="mx.test")
    await restored.start()
    mailbox = await restored.open(OWNER, "INBOX", read_only=True)
    assert await mailbox.search(Text("brown fox", headers=True)) == [1]
    mailbox.close()
    assert await append(restored, [b"Subject: new\r\n\r\nbrown foxes\r\n"]) == [uid]
    mailbox = await restored.open(OWNER, "INBOX", read_only=True)
    assert await mailbox.search(Text("brown foxes", headers=True)) == [uid]
    mailbox.close()
    await restored.close()


async def test_switched_off_for_an_account(store: Store, tmp_path: Path) -> None:
    build(tmp_path)
    file = file_of(tmp_path)
    file.switch(on=False)
    assert not (maildir(tmp_path) / "pymx.fts").exists()
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert await mailbox.search(Text("brown fox", headers=True)) == [1]
    assert build(tmp_path).refused
    assert not (maildir(tmp_path) / "pymx.fts").exists()
    file.switch(on=True)
    assert build(tmp_path).messages
    mailbox.close()


async def test_only_one_builds_and_a_search_meanwhile_is_answered(store: Store, tmp_path: Path) -> None:
    with file_of(tmp_path).building() as free:
        assert free
        assert build(tmp_path).refused
        await check_all(store)
    with builder(tmp_path, chunk=2) as one:
        calls: list[int] = []
        mailbox = await store.open(OWNER, "INBOX", read_only=True)

        def stopped() -> bool:
            calls.append(len(answers(mailbox, Text("brown fox", headers=True))[0]))
            return len(calls) == 4

        one._stopped = stopped
        built = one.run()
        assert built.messages + built.left_out == 6
        assert set(calls) == {1}
        mailbox.close()
    await check_all(store)


_CHILD = """
import sys
from pymx.config.model import Mail
from pymx.ms.fulltextbuild import Builder
from pymx.ms.mend import open_account
from pymx.ms.owner import Owner
account = open_account(Mail(root=sys.argv[1]), Owner("example.test", "alice"), "mx.test")
print("ready", flush=True)
Builder(account, max_percent=1000, chunk=3, volume=7).run()
"""


async def test_killed_at_any_moment_the_builder_leaves_a_sound_index(store: Store, tmp_path: Path) -> None:
    """kill -9, again and again, until one gets to the end."""
    moments = random.Random(3)
    for number in range(4):
        await append(store, MESSAGES[:6] * 5)
        child = subprocess.Popen(  # our own interpreter
            [sys.executable, "-c", _CHILD, str(tmp_path / "mail")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if number < 3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(moments.uniform(0.0, 0.05))
            child.send_signal(signal.SIGKILL)
        child.wait(30)
        child.stdout.close()
        mailbox = await store.open(OWNER, "INBOX", read_only=True)
        for key in ("brown fox", "grüße", "needle"):
            found, expected = answers(mailbox, Text(key, headers=True))
            assert found == expected
        mailbox.close()
    assert build(tmp_path).messages == 0
    with contextlib.closing(file_of(tmp_path).connect()) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_accounts_that_searched_lately_are_kept_up_the_latest_first(tmp_path: Path) -> None:
    """Within 30 days; in `index_dir` too; what is no account, or was not searched, is left alone."""
    from pymx.app.fulltext import searchers

    mail = Mail(root=str(tmp_path / "mail"), index_dir=str(tmp_path / "index"))
    now = time.time()
    for email, days in (("old@a.test", 31), ("first@a.test", 2), ("last@b.test", 1), ("never@b.test", None)):
        local_part, _, domain = email.partition("@")
        directory = tmp_path / "index" / domain / local_part
        directory.mkdir(parents=True)
        if days is not None:
            with contextlib.closing(FullText(os.fsencode(directory / "pymx.index"), 0o600).connect()) as db:
                fulltext.set_meta(db, "searched", now - days * 86_400)
    (tmp_path / "index" / ".removed").mkdir()
    (tmp_path / "index" / "file").touch()
    assert searchers(mail, now) == ["last@b.test", "first@a.test"]
    assert searchers(Mail(root=str(tmp_path / "nowhere")), now) == []
