"""SEARCH through the index gives what asking every message gives, and opens no file where the index knows."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ms_support import OWNER, maildir

from pymx.config.model import Mail
from pymx.mail import flags
from pymx.mail.header import split_head
from pymx.mail.search import And, Criterion, Date, Flags, Header, Keyword, ModSeq, Not, Octets, Or, Recent, Text, Uids
from pymx.ms import search
from pymx.ms.errors import Stopped
from pymx.ms.mailbox import Mailbox
from pymx.ms.store import Append, Store
from pymx.proto.imap.render import render
from pymx.spool import Content

HEADERS = [
    b"From: Ann Lee <ann@example.test>\r\nTo: bob@a.test\r\nSubject: Hello\r\nDate: 1 Jan 2020 23:30:00 -0500\r\n",
    b"From: =?utf-8?q?J=C3=B6rg?= <joerg@example.test>\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\nCc: Ann <a@b.test>\r\n",
    b"Subject: GR\xc3\x9cSSE\r\nsubject: second one\r\nDate: nonsense\r\nBcc:\r\n",
    b"From: a\r\n b\r\nTo : spaced@example.test\r\nTO: other@example.test\r\nDate: Thu, 2 Jan 2020 01:00:00 +0900\r\n",
    b"Subject: long " + b"x" * 9000 + b" needle\r\nFrom: ann@example.test\r\n",
    b"Subject: =?utf-8?q?two=0Alines?=\r\nSubject: ends two\r\nSubject: lines begin\r\n",
    b"Subject: \r odd \r ann\r\nFrom: \r\nX-Note: ann\r\nDate: 31 Dec 2019 10:00:00 +0000\r\n",
    b'From: Ann <ann (the) @ (real) parted.test>, b . c@x.test\r\nTo: (only) "ann"@quoted.test\r\n',
    b"",
    b"X-Many: 1\r\n" * 10_050 + b"Subject: far down\r\nFrom: ann@example.test\r\n",
]
KEYS = ["ann", "ANN", "jörg", "grüsse", "grüße", "", " ", "\n", "two\nlines", "\r", " odd", "needle", "far", "hello"]
KEYS += ["ann@parted.test", "b.c@", "ann@quoted", "missing_", "nowhere", "a b", "@example.test, ", "second one"]

texts = st.sampled_from(KEYS)
days = st.dates(datetime.date(2019, 12, 30), datetime.date(2020, 1, 3))
leaves: st.SearchStrategy[Criterion] = st.one_of(
    st.builds(Flags, st.sampled_from([flags.SEEN, flags.DELETED, flags.SEEN | flags.DRAFT]), st.booleans()),
    st.builds(Keyword, st.sampled_from(["junk", "$Label1", "none"]), st.booleans()),
    st.builds(Recent, st.booleans()),
    st.builds(Uids, st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60).map(tuple)),
    st.builds(Octets, st.booleans(), st.integers(20, 10_000)),
    st.builds(Date, st.sampled_from(["internal", "sent"]), st.sampled_from(["before", "on", "since"]), days),
    st.builds(Header, st.sampled_from(["Subject", "From", "to", "CC", "bcc", "X-Note", "Date"]), texts),
    st.builds(Text, texts, st.booleans()),
    st.builds(ModSeq, st.integers(0, 2**62)),
)
criteria: st.SearchStrategy[Criterion] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner), st.builds(Or, inner, inner), st.builds(And, st.lists(inner, max_size=4).map(tuple))
    ),
    max_leaves=8,
)


class Memory:
    """The same mailbox with everything in memory, for `search.run`."""

    def __init__(self, mailbox: Mailbox, rows: list[tuple[int, ...]], messages: dict[int, bytes]) -> None:
        self.uids: Sequence[int] = mailbox.uids
        self.first_recent = mailbox.first_recent
        self._rows = {row[0]: row for row in rows}
        self._messages = messages
        self._names = [name.lower() for name in mailbox.keywords]

    def rows(self, uids: Sequence[int]) -> Iterable[tuple[int, ...]]:
        return [self._rows[uid] for uid in uids if uid in self._rows]

    def header(self, uid: int) -> bytes | None:
        return split_head(self._messages[uid])[0] if uid in self._messages else None

    def message(self, uid: int) -> bytes | None:
        return self._messages.get(uid)

    def keyword_bit(self, name: str) -> int | None:
        return self._names.index(name.lower()) if name.lower() in self._names else None


async def memory(mailbox: Mailbox) -> Memory:
    rows = [row async for batch in mailbox.rows(mailbox.uids) for row in batch]
    messages = {
        uid: await message.read() async for uid, message in mailbox.messages(mailbox.uids) if message is not None
    }
    return Memory(mailbox, rows, messages)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    items = [
        Append(
            Content.from_bytes(header + b"\r\nbody of ann %d\r\n" % number),
            (number % 2) * flags.SEEN | (number % 5 == 0) * flags.DELETED,
            ("Junk",) if number % 3 == 0 else (),
            1_577_700_000 + number * 40_000 if number % 4 else -86_401,
        )
        for number, header in enumerate(HEADERS * 2)
    ]
    await store.append(OWNER, "INBOX", items)
    yield store
    await store.close()


def forget_keys(mailbox: Mailbox, which: str = "1") -> None:
    with mailbox._box.home.index.write() as db:
        db.execute(f"DELETE FROM keys WHERE {which}")


async def test_searches_give_what_asking_every_message_gives(store: Store) -> None:
    """STORE.md 8 says it of texts: the same answer with and without an index."""
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    model = await memory(mailbox)
    for name in ("Subject", "From", "To", "Cc", "Bcc"):
        for key in KEYS:
            assert await mailbox.search(Header(name, key)) == search.run(Header(name, key), model), (name, key)

    from pymx.ms.mailbox import _SearchView
    from pymx.ms.searching import find

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(criteria, st.booleans())
    def check(criterion: Criterion, without_keys: bool) -> None:
        if without_keys:
            forget_keys(mailbox, "id % 3 = 0")
        view = _SearchView(mailbox)
        view.name_keywords(mailbox.keywords)
        assert find(mailbox._box, mailbox._low, criterion, view, render, lambda: False) == search.run(criterion, model)

    check()
    mailbox.close()


async def test_expunged_and_later_messages_are_not_found(store: Store) -> None:
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    other = await store.open(OWNER, "INBOX", read_only=False)
    await store.append(OWNER, "INBOX", [Append(Content.from_bytes(HEADERS[0] + b"\r\n"), 0, (), None)])
    gone = await other.expunge(None)
    assert gone
    found = await mailbox.search(Or(Header("From", "ann"), Not(Header("From", "ann"))))
    assert found == [uid for uid in mailbox.uids if uid not in gone]
    mailbox.close()
    other.close()


async def test_what_delivery_made_is_searched_without_a_file(store: Store, tmp_path: Path) -> None:
    """Messages of which the index knows all that is asked are found with their files gone."""
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    for path in (maildir(tmp_path) / "cur").iterdir():
        path.write_bytes(b"")
    assert await mailbox.search(Header("From", "jörg")) == [2, 12]
    assert await mailbox.search(Date("sent", "on", datetime.date(2020, 1, 1))) == [1, 11]
    mailbox.close()


async def test_the_first_search_makes_what_later_ones_need(store: Store, tmp_path: Path) -> None:
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    forget_keys(mailbox)
    assert await mailbox.search(Header("From", "jörg")) == [2, 12]
    for path in (maildir(tmp_path) / "cur").iterdir():
        path.write_bytes(b"")
    assert await mailbox.search(Header("Cc", "ann")) == [2, 12]
    mailbox.close()


async def test_a_stopped_search_ends(store: Store) -> None:
    """A client that is gone costs no further files."""
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    mailbox.stop()
    with pytest.raises(Stopped):
        await mailbox.search(Text("ann", headers=True))
    mailbox.close()


async def test_a_message_that_is_one_long_header_is_read_in_linear_time(tmp_path: Path, store: Store) -> None:
    import time

    path = maildir(tmp_path) / "new" / "1577700000.M1P1.other"
    path.write_bytes(b"X-Long: 1\n" * 800_000)
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    started = time.process_time()
    assert await mailbox.search(Header("X-Long", "2")) == []
    assert time.process_time() - started < 2.0
    mailbox.close()
