"""The server's own filter: tokens, arithmetic, what is remembered, what it says, and that nothing breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junk_letters import letter
from support.wait import wait_until

from pymx.config.model import Junk
from pymx.junk import bayes
from pymx.junk.filter import Filter
from pymx.junk.learn import Kind, LessonRefused
from pymx.junk.notebook import NAME, Notebook, Notebooks, NotebookUnusable, Totals
from pymx.junk.tokens import MAX_TOKENS, hashes, message_key, sender_of, words_of
from pymx.mail.header import split_head
from pymx.mail.spam import Opinion
from pymx.spool import Content

ALICE, BOB = "alice@example.test", "bob@example.test"
HOSTNAME = "mx.example.test"


def octets(number: int, *, spam: bool, author: str = "") -> bytes:
    return letter(number, spam=spam, author=author).encode()


# Tokens


def test_tokens_are_what_a_reader_sees() -> None:
    """RFC 2047 words, quoted-printable, base64 and HTML are undone; scripts and tags are no words."""
    message = (
        b"From: =?utf-8?q?J=C3=BCrgen?= <juergen@shop.test>\r\nSubject: =?utf-8?b?R8O8bnN0aWc=?= offer\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\nList-Id: News <news.shop.test>\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Gr=C3=BC=C3=9Fe von uns\r\n"
        b"--b\r\nContent-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"PHNjcmlwdD5oaWRkZW4oKTwvc2NyaXB0PjxhIGhyZWY9Imh0dHBzOi8vd3d3LmNsaWNrLnRlc3QveCI+dmk8Yj5hZ3JhPC9iPjwvYT4=\r\n"
        b"--b\r\nContent-Type: application/zip; name=bill.ZIP\r\n\r\nPK\r\n--b--\r\n"
    )
    words = set(words_of(message))
    assert {"subject:günstig", "subject:offer", "grüße", "von", "viagra"} <= words
    assert {"from:juergen@shop.test", "from:shop.test", "author:jürgen"} <= words
    assert {"link:www.click.test", "link:click.test", "attached:zip", "extension:zip", "type:multipart/mixed"} <= words
    assert not {"hidden", "script", "href"} & words


def test_words_without_spaces_between_them_are_pairs() -> None:
    message = "Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n無料で商品を差し上げます\r\n".encode()
    assert {"無料", "で商", "品を"} <= set(words_of(message))


@pytest.mark.parametrize(
    ("value", "sender"),
    [
        ("a@x.test", "a@x.test"),
        ('"B, C" <A@X.test>', "a@x.test"),
        ("victim@y.test <a@x.test>", "a@x.test"),
        ("a@x.test, b@x.test", ""),
        ("nobody", ""),
        ("", ""),
    ],
)
def test_the_sender_is_the_one_address_in_from(value: str, sender: str) -> None:
    assert sender_of(f"From: {value}\r\n".encode()) == sender


def test_a_message_is_known_again_in_another_folder() -> None:
    """What servers put above it changes nothing; another message is another."""
    one = split_head(octets(1, spam=True))[0]
    assert message_key(b"Received: from x\r\nX-Spam-Score: 1\r\n" + one) == message_key(one)
    assert message_key(split_head(octets(2, spam=True))[0]) != message_key(one)


@given(st.binary(max_size=3000) | st.text(max_size=2000).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(max_examples=300)
def test_any_octets_have_tokens(message: bytes) -> None:
    """Never raises, and never more than the limit."""
    words = words_of(message)
    assert len(words) <= MAX_TOKENS + 100
    assert len(hashes(words)) == len(words)
    message_key(message)
    sender_of(message)


HEAD = b"From: a@x.test\r\nSubject: x\r\nContent-Type: text/html; charset=utf-8\r\n"


@pytest.mark.parametrize(
    "message",
    [
        b"Subject: " + b"=?utf-8?q?a?= " * 70_000 + b"\r\n\r\n",
        b"From: " + b"a@x," * 250_000 + b"\r\n\r\n",
        b"From: " + b"<" * 1_000_000 + b"\r\n\r\n",
        HEAD + b"\r\n" + b"<" * 1_000_000,
        HEAD + b"\r\n" + b"&lt" * 340_000,
        HEAD + b"\r\n" + b"http://" * 140_000,
        HEAD + b"\r\n" + b"a" * 1_000_000,
        HEAD + b"\r\n" + "ﷺ".encode() * 340_000,
        HEAD + b"\r\n" + b" ".join(b"%x" % n for n in range(150_000)),
        HEAD + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=" * 1_000_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 90_000,
        b"\r\n" * 500_000,
        b"List-Id: " + b"x@y" * 300_000 + b"\r\n\r\n",
        b"".join(name + b": " + b"a" * 5000 + b"\r\n" for name in (b"From", b"Reply-To", b"List-Id", b"X-Mailer")),
    ],
)
def test_hostile_messages_take_no_time(message: bytes) -> None:
    """At most a second for a megabyte; in fact far less, since only the beginning is looked at."""
    started = time.process_time()
    words_of(message)
    message_key(message)
    sender_of(message)
    assert time.process_time() - started < len(message) / 1_000_000 + 0.1


# Arithmetic


def test_chi_square_is_that_of_the_tables() -> None:
    """P(X > x) for v degrees of freedom, from any statistics book."""
    for x, degrees, expected in ((3.841, 2, 0.1465), (9.488, 4, 0.05), (18.307, 10, 0.05), (124.342, 100, 0.05)):
        assert bayes.chi2q(x, degrees) == pytest.approx(expected, abs=2e-3)
    assert bayes.chi2q(0, 300) == 1.0
    assert bayes.chi2q(4144.0, 300) == 0.0


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=bayes.MAX_TELLING))
def test_the_combination_is_a_probability(probabilities: list[float]) -> None:
    assert -1e-9 <= bayes.combined(probabilities) <= 1 + 1e-9


@given(st.lists(st.floats(min_value=0.01, max_value=0.99), min_size=1, max_size=50))
def test_both_sides_are_treated_alike(probabilities: list[float]) -> None:
    mirrored = bayes.combined([1 - p for p in probabilities])
    assert bayes.combined(probabilities) == pytest.approx(1 - mirrored, abs=1e-6)


def test_what_speaks_for_both_sides_is_in_the_middle() -> None:
    """Fisher's method by Robinson: not sure of either, where a plain product would be."""
    assert bayes.combined([0.99] * 30 + [0.01] * 30) == pytest.approx(0.5, abs=0.01)
    assert bayes.combined([0.9] * 20) > 0.999
    assert bayes.combined([0.1] * 20) < 0.001
    assert bayes.combined([]) == 0.5


def test_a_token_seen_once_says_less_than_one_seen_often() -> None:
    """Robinson's f(w) with SpamBayes' constants; one as frequent in both says nothing."""
    found = {token: p for p, token in bayes.telling([(1, 1, 0), (2, 50, 0), (3, 10, 20), (4, 0, 0)], 100, 200)}
    assert found[1] == pytest.approx((0.45 * 0.5 + 1) / 1.45)
    assert 0.5 < found[1] < found[2] < 1
    assert set(found) == {1, 2}


# What is remembered


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ALICE).mkdir(mode=0o700)
    (tmp_path / BOB).mkdir()
    return tmp_path


@pytest.fixture
def notebook(home: Path) -> Iterator[Notebook]:
    made = Notebook(home / ALICE / NAME, make=True, max_tokens=1000)
    yield made
    made.close()


def test_a_message_is_counted_once(notebook: Notebook) -> None:
    assert notebook.learn(1, [10, 11], spam=True, now=0)
    assert not notebook.learn(1, [10, 11], spam=True, now=0)
    assert notebook.learned() == (1, 0)
    assert sorted(notebook.counts([10, 11, 12])) == [(10, 1, 0), (11, 1, 0)]


def test_one_that_is_learned_as_the_other_kind_is_taken_back_first(notebook: Notebook) -> None:
    notebook.learn(1, [10], spam=True, now=0)
    notebook.learn(2, [10], spam=True, now=0)
    assert notebook.learn(1, [10], spam=False, now=0)
    assert notebook.learned() == (1, 1)
    assert notebook.counts([10]) == [(10, 1, 1)]


def test_what_only_stays_does_not_overrule_a_move(notebook: Notebook) -> None:
    notebook.learn(1, [10], spam=True, now=0)
    assert not notebook.learn(1, [10], spam=False, now=0, unless_known=True)
    assert notebook.counts([10]) == [(10, 1, 0)]


def test_it_stays_small(notebook: Notebook) -> None:
    """Those seen once go first, the oldest of them first; what was seen often stays."""
    for number in range(100):
        fresh = range(1_000 + number * 100, 1_100 + number * 100)
        notebook.learn(number, [1, 2, 3, *fresh], spam=bool(number % 2), now=number * 86400)
    totals = notebook.totals()
    assert totals.tokens <= 1000 + 32 * 103
    assert len(notebook.counts([1, 2, 3])) == 3
    assert notebook.counts(list(range(10_900, 11_000)))
    assert notebook.counts(list(range(1_000, 1_100))) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=30))
@settings(max_examples=40)
def test_counts_are_those_of_what_each_message_is_now(steps: list[tuple[int, bool, bool]]) -> None:
    """Whatever is moved to and fro: the sums are as if each message had been learned once, as what it is now."""
    path = Path(f"/dev/shm/pymx-test-{os.getpid()}-{random.getrandbits(60):x}")
    path.mkdir()
    notebook = Notebook(path / NAME, make=True, max_tokens=1000)
    try:
        now: dict[int, bool] = {}
        for message, spam, careful in steps:
            notebook.learn(message, [message, 99], spam=spam, now=0, unless_known=careful)
            if not (careful and message in now):
                now[message] = spam
        spam_count = sum(now.values())
        assert notebook.learned() == (spam_count, len(now) - spam_count)
        rows = {token: (spam, ham) for token, spam, ham in notebook.counts([*now, 99])}
        assert all(rows[message] == (int(spam), int(not spam)) for message, spam in now.items())
        assert rows.get(99, (0, 0)) == notebook.learned()
    finally:
        notebook.close()
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def test_an_account_made_anew_does_not_inherit_what_was_learned(home: Path) -> None:
    """The mail of a removed user is moved away, and the file with it, while a process still has it open."""
    notebooks = Notebooks(home.joinpath, max_tokens=1000)
    notebooks.use(ALICE, lambda n: n.learn(1, [10], spam=True, now=0), make=True)
    (home / ALICE).rename(home / "removed")
    assert notebooks.use(ALICE, Notebook.learned) is None
    (home / ALICE).mkdir()
    assert notebooks.use(ALICE, Notebook.learned, make=True) == (0, 0)
    notebooks.close()


def test_a_damaged_file_is_moved_aside(home: Path) -> None:
    (home / ALICE / NAME).write_bytes(b"no database" * 1000)
    notebooks = Notebooks(home.joinpath, max_tokens=1000)
    with pytest.raises(NotebookUnusable, match="moved aside"):
        notebooks.use(ALICE, Notebook.learned)
    assert (home / ALICE / f"{NAME}.damaged").exists()
    assert notebooks.use(ALICE, Notebook.learned) is None
    notebooks.close()


def test_only_so_many_are_open(home: Path) -> None:
    notebooks = Notebooks(home.joinpath, max_tokens=1000, max_open=1)
    for account in (ALICE, BOB, ALICE):
        notebooks.use(account, lambda n: n.learn(1, [10], spam=True, now=0), make=True)
    assert notebooks.use(BOB, Notebook.learned) == (1, 0)
    notebooks.close()


def test_the_file_is_as_readable_as_the_mail(home: Path) -> None:
    notebooks = Notebooks(home.joinpath, max_tokens=1000)
    notebooks.use(ALICE, Notebook.learned, make=True)
    assert (home / ALICE / NAME).stat().st_mode & 0o777 == 0o600
    assert notebooks.forget(ALICE)
    assert not notebooks.forget(ALICE)
    notebooks.close()


# What it says


@contextlib.asynccontextmanager
async def filtering(home: Path, **options: int) -> AsyncIterator[Filter]:
    settings = Junk(**{"min_learned": 10, **options})
    own = Filter(home.joinpath, settings, hostname=HOSTNAME, taught=home / "junk.taught", note_after_s=0.01)
    try:
        yield own
    finally:
        await own.close()


async def train(own: Filter, count: int = 15, account: str = ALICE) -> None:
    for number in range(count):
        await own.teach(account, octets(number, spam=True), Kind.SPAM)
        await own.teach(account, octets(number, spam=False), Kind.HAM)


async def asked(own: Filter, message: bytes, account: str = ALICE) -> Opinion | None:
    (opinion,) = await own.judge([account], Content.from_bytes(message))
    return opinion


async def test_it_is_silent_until_it_has_learned_enough_of_both(home: Path) -> None:
    async with filtering(home) as own:
        assert await asked(own, octets(50, spam=True)) is None
        for number in range(12):
            await own.teach(ALICE, octets(number, spam=True), Kind.SPAM)
        for number in range(9):
            await own.teach(ALICE, octets(number, spam=False), Kind.KEPT)
        assert await asked(own, octets(50, spam=True)) is None
        await own.teach(ALICE, octets(9, spam=False), Kind.STAYED)
        assert await asked(own, octets(50, spam=True)) is not None


async def test_a_silent_filter_costs_no_wait(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most accounts never taught theirs: their mail does not queue up behind what the thread does for others."""
    async with filtering(home) as own:
        assert await asked(own, octets(50, spam=True)) is None
        go_on = threading.Event()
        own._thread.submit(go_on.wait)
        assert await asked(own, octets(51, spam=True)) is None
        go_on.set()
    assert "junk_filter_failed" not in [r.getMessage() for r in caplog.records]


async def test_what_another_process_teaches_is_known_soon(home: Path) -> None:
    async with filtering(home) as own, filtering(home) as other:
        assert await asked(own, octets(50, spam=True)) is None
        await train(other)
        async with asyncio.timeout(20):
            while await asked(own, octets(50, spam=True)) is None:
                await asyncio.sleep(0.01)


async def test_without_room_for_the_mark_the_filter_is_always_asked(home: Path) -> None:
    (home / "junk.taught").mkdir()
    async with filtering(home) as own:
        assert await asked(own, octets(50, spam=True)) is None
        await train(own)
        assert await asked(own, octets(50, spam=True)) is not None


async def test_it_tells_junk_from_wanted_mail_and_says_why(home: Path) -> None:
    async with filtering(home) as own:
        await train(own)
        for number in range(50, 80):
            junk, wanted = await asked(own, octets(number, spam=True)), await asked(own, octets(number, spam=False))
            assert junk is not None
            assert junk.is_junk
            assert "sure that it is junk, after 15 messages of junk and 15 others; most telling: " in junk.reason
            assert wanted is not None
            assert not wanted.is_junk


async def test_each_account_has_its_own(home: Path) -> None:
    """What alice calls junk is nothing to bob."""
    async with filtering(home) as own:
        await train(own)
        opinions = await own.judge([BOB, ALICE], Content.from_bytes(octets(50, spam=True)))
        assert opinions[0] is None
        assert opinions[1] is not None
        assert opinions[1].is_junk


def claim(result: str, host: str = HOSTNAME) -> bytes:
    return f"Authentication-Results: {host}; spf=pass; dmarc={result} header.from=x.test\r\n".encode()


@pytest.mark.parametrize(
    ("proof", "is_junk"),
    [
        (claim("pass"), False),
        (claim("PASS (p=none)"), False),
        (claim("fail"), True),
        (claim("pass", "other.test"), True),
        (claim("pass", HOSTNAME + ".other.test"), True),
        (claim("none") + claim("pass", HOSTNAME + ".other.test"), True),
        (claim("none smtp.mailfrom=dmarc=pass@x.test"), True),
        (claim('none reason="; dmarc=pass"'), True),
        (claim("none (; dmarc=pass)"), True),
        (b"", True),
    ],
)
async def test_who_was_written_to_is_known_if_it_is_him(proof: bytes, is_junk: bool, home: Path) -> None:
    """What is as sure as can be is junk whoever's name it bears, unless DMARC passed; if it failed, no name counts."""
    friend = "friend@x.test"
    async with filtering(home) as own:
        await train(own)
        own.wrote_to(ALICE, ["Friend@X.test"])
        message = proof + octets(50, spam=True, author=friend)

        async def noted() -> bool:
            opinion = await asked(own, claim("pass") + octets(51, spam=True, author=friend))
            return opinion is not None and "you have written to the sender" in opinion.reason

        async with asyncio.timeout(20):
            while not await noted():
                await asyncio.sleep(0.01)
        opinion = await asked(own, message)
        assert opinion is not None
        assert opinion.is_junk is is_junk
        assert ("written" in opinion.reason) is (proof != claim("fail"))


async def test_senders_of_kept_mail_are_known_until_one_goes_to_junk(home: Path) -> None:
    friend = "friend@x.test"
    async with filtering(home) as own:
        await train(own)
        await own.teach(ALICE, octets(60, spam=False, author=friend), Kind.KEPT)
        opinion = await asked(own, claim("pass") + octets(61, spam=True, author=friend))
        assert opinion is not None
        assert not opinion.is_junk
        assert "kept mail of the sender" in opinion.reason
        await own.teach(ALICE, octets(62, spam=True, author=friend), Kind.SPAM)
        opinion = await asked(own, claim("pass") + octets(63, spam=True, author=friend))
        assert opinion is not None
        assert opinion.is_junk


async def test_a_broken_file_lets_mail_through_and_is_said(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / ALICE / NAME).write_bytes(b"no database" * 1000)
    async with filtering(home) as own:
        assert await asked(own, octets(1, spam=True)) is None
        assert await asked(own, octets(1, spam=True)) is None
    assert [r.getMessage() for r in caplog.records].count("junk_filter_failed") == 1


async def test_what_waits_to_be_noted_is_noted_at_the_end(home: Path) -> None:
    """Of more accounts than there are open notebooks, several messages each: every one is counted."""
    accounts = [f"user{number}@example.test" for number in range(12)]
    for account in accounts:
        (home / account).mkdir()
    settings = Junk(min_learned=10)
    own = Filter(home.joinpath, settings, hostname=HOSTNAME, taught=home / "junk.taught", note_after_s=3600)
    for _ in range(5):
        for account in accounts:
            own.wrote_to(account, ["Friend@x.test"])
    await own.close()
    notebooks = Notebooks(home.joinpath, max_tokens=1000)
    known = hashes(["sender:friend@x.test"])[0]
    assert [notebooks.use(account, lambda n: n.sender(known)) for account in accounts] == [(5, 0)] * 12
    notebooks.close()


async def test_an_account_without_a_directory_learns_nothing(home: Path) -> None:
    async with filtering(home) as own:
        with pytest.raises(LessonRefused):
            await own.teach("nobody@example.test", octets(1, spam=True), Kind.SPAM)
        own.wrote_to("nobody@example.test", ["a@x.test"])
        assert await asked(own, octets(1, spam=True), "nobody@example.test") is None
    assert not (home / "nobody@example.test").exists()


async def test_a_large_message_is_judged_by_its_beginning(home: Path, tmp_path: Path) -> None:
    async with filtering(home) as own:
        await train(own)
        opinion = await asked(own, octets(50, spam=True) + b"padding of no meaning\r\n" * 400_000)
        assert opinion is not None
        assert opinion.is_junk


@given(st.binary(max_size=2000))
@settings(max_examples=30, deadline=None)
def test_any_message_is_judged(message: bytes) -> None:
    """Never raises."""
    path = Path(f"/dev/shm/pymx-test-{os.getpid()}-{random.getrandbits(60):x}")
    (path / ALICE).mkdir(parents=True)

    async def judge() -> None:
        async with filtering(path, min_learned=1) as own:
            await own.teach(ALICE, b"Subject: a\r\n\r\n" + message, Kind.SPAM)
            await own.teach(ALICE, b"Subject: b\r\n\r\nthe other", Kind.HAM)
            opinion = await asked(own, message)
            assert opinion is not None
            assert math.isfinite(len(opinion.reason))

    try:
        asyncio.run(judge())
    finally:
        for file in (path / ALICE).iterdir():
            file.unlink()
        (path / ALICE).rmdir()
        (path / "junk.taught").unlink()
        path.rmdir()


async def test_a_closed_filter_has_no_opinion(home: Path) -> None:
    """A delivery that outlives the server's rooms goes to INBOX."""
    async with filtering(home) as own:
        await train(own)
    assert await asked(own, octets(50, spam=True)) is None
    own.wrote_to(ALICE, ["a@x.test"])


async def test_totals_are_what_pymxctl_shows(home: Path) -> None:
    async with filtering(home) as own:
        await train(own, 3)
        own.wrote_to(ALICE, ["a@x.test", "b@x.test"])
        notebooks = Notebooks(home.joinpath, max_tokens=1000)

        def senders() -> bool:
            totals = notebooks.use(ALICE, Notebook.totals)
            return isinstance(totals, Totals) and (totals.spam, totals.ham, totals.senders) == (3, 3, 5)

        await wait_until(senders)
        notebooks.close()
