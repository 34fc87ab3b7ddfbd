"""Listings, columns of text for FETCH, have what rows have, and are read ahead by one hop and no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, deliver, maildir

from pymx.config.model import Mail
from pymx.ms import reading, removing
from pymx.ms.arrive import Rendered
from pymx.ms.listing import LARGE_OCTETS, RENDERED, Listing, Pieces
from pymx.ms.mailbox import Mailbox
from pymx.ms.store import Store
from pymx.proto.imap.render import render

COLUMNS = ("flags", "modseq", "octets", "day", "time", *RENDERED)
COUNT = 700  # more than are read in one hop without looking ahead


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    for part in ("cur", "new", "tmp"):
        (maildir(tmp_path) / part).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        path = maildir(tmp_path) / "cur" / f"{1_600_000_000 + number}.M1P1.h:2,{'FS'[number % 2]}"
        subject = {5: b"x" * LARGE_OCTETS, 7: "grün".encode("latin-1")}.get(number, b"number %d" % number)
        path.write_bytes(b"Subject: %b\nFrom: a@example.test\n\ntext\n" % subject)
        date = -86_401 if number == 650 else 1_600_000_000 + number * 40_000
        os.utime(path, (date, date))
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    yield store
    await store.close()


async def rows(mailbox: Mailbox, uids: list[int]) -> dict[int, tuple[bytes, ...]]:
    """What a listing should have, from the rows."""
    out = {}
    async for batch in mailbox.rows(uids, rendered=True):
        for uid, modseq, flags, keywords, octets, date, _, envelope, structure in batch:
            day, second = divmod(date, 86_400)
            time = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
            state = f"{flags}:{keywords}" if keywords else str(flags)
            texts = [text.encode() for text in (state, str(modseq), str(octets), str(day), time)]
            out[uid] = (*texts, envelope, structure)
    return out


async def listed(mailbox: Mailbox, uids: list[int]) -> dict[int, tuple[bytes, ...]]:
    out: dict[int, tuple[bytes, ...]] = {}
    async for piece in mailbox.listings(uids, COLUMNS):
        assert list(map(int, piece.texts["uid"])) == list(piece.uids)
        columns = [piece.texts[column] for column in COLUMNS]
        out.update(zip(piece.uids, zip(*columns, strict=True), strict=True))
    return out


async def test_listing_has_what_rows_have_rendered_before_or_not(store: Store) -> None:
    """A large one, octets outside ASCII, dates before 1970, gaps, and messages that are gone."""
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    everything = list(mailbox.uids)
    cold = await listed(mailbox, everything)
    assert list(cold) == everything
    assert cold == await rows(mailbox, everything)
    assert b"gr\xfcn" in cold[8][5]
    assert cold[651][3:5] == (b"-2", b"23:59:59")
    assert await listed(mailbox, everything) == cold
    await mailbox.store_flags([2, 300], "add", 0, ["$Word"])
    await mailbox.store_flags(list(range(100, 110)), "add", 8, [])
    await mailbox.expunge(list(range(100, 110)))
    for uids in (everything, everything[:20], everything[::3], everything[::50], [700], []):
        assert await listed(mailbox, uids) == await rows(mailbox, uids)
    await deliver(store, "one more")
    await mailbox.refresh()
    everything = list(mailbox.uids)
    assert await listed(mailbox, everything) == await rows(mailbox, everything)
    mailbox.close()


async def test_a_hop_that_failed_is_done_once_more(store: Store) -> None:
    """The store runs a hop again after it has made a damaged index anew."""
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    await listed(mailbox, list(mailbox.uids))
    pieces = Pieces(mailbox.uids[100:], COLUMNS)
    box, low = mailbox._box, mailbox._low
    with pytest.raises(ZeroDivisionError):
        pieces.hop(_Failing(box, after=2), low, render)  # type: ignore[arg-type]
    found: list[int] = []
    while not pieces.done:
        found += [uid for piece in pieces.hop(box, low, render) for uid in piece.uids]
    assert found == list(mailbox.uids[100:])
    mailbox.close()


async def test_nothing_is_kept_of_a_message_that_is_gone_since(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its piece takes the long way for ever, and its number may be a message of another mailbox one day."""
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    box, low = mailbox._box, mailbox._low

    def render_late(message: bytes) -> Rendered:
        removing.expunge(box, [1], only_deleted=False)
        return render(message)

    def preview_late(message: bytes) -> str:
        removing.expunge(box, [3], only_deleted=False)
        return "text"

    monkeypatch.setattr(reading, "preview", preview_late)
    reading.rows(box, low, [1, 2], True, render_late)
    reading.previews(box, low, [3, 4], lazy=False)
    with box.home.index.read() as db:
        assert db.execute("SELECT id & 4294967295 FROM rendered").fetchall() == [(2,), (4,)]
    mailbox.close()


class _Failing:
    """A box whose index can't be read after a few times."""

    def __init__(self, box: object, *, after: int) -> None:
        self._box = box
        self._left = after

    @property
    def home(self) -> object:
        self._left -= 1
        if self._left < 0:
            raise ZeroDivisionError
        return self._box.home  # type: ignore[attr-defined]


class _Hops:
    """Hops that end when the test says so."""

    def __init__(self, pieces: Pieces, count: int) -> None:
        self.begun: list[asyncio.Future[list[Listing]]] = []
        self._pieces = pieces
        self._count = count

    def begin(self) -> asyncio.Future[list[Listing]]:
        self.begun.append(asyncio.get_running_loop().create_future())
        return self.begun[-1]

    def end(self, number: int, *uids: int) -> None:
        if number + 1 == self._count:
            self._pieces._next = len(self._pieces._uids)
        self.begun[number].set_result([Listing([uid], {}, 0) for uid in uids])


async def test_the_next_hop_is_under_way_while_the_last_is_taken_and_no_other() -> None:
    """What waits for a slow client is one hop at most."""
    pieces = Pieces(range(1, 10), COLUMNS)
    hops = _Hops(pieces, 3)
    found = pieces.read_ahead(hops.begin)
    first = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0)
    hops.end(0, 1, 2)
    assert (await first).uids == [1]
    assert len(hops.begun) == 2
    hops.end(1, 3)
    await asyncio.sleep(0)
    assert len(hops.begun) == 2
    assert (await anext(found)).uids == [2]
    assert len(hops.begun) == 2
    assert (await anext(found)).uids == [3]
    hops.end(2, 4)
    assert [piece.uids async for piece in found] == [[4]]
    assert len(hops.begun) == 3


async def test_who_stops_waits_for_the_hop_under_way_and_does_not_hear_of_its_failure() -> None:
    pieces = Pieces(range(1, 10), COLUMNS)
    hops = _Hops(pieces, 3)
    found = pieces.read_ahead(hops.begin)
    first = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0)
    hops.end(0, 1)
    await first
    closing = asyncio.ensure_future(found.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    hops.begun[1].set_exception(OSError())
    await closing


async def test_a_hop_that_fails_is_told() -> None:
    pieces = Pieces(range(1, 10), COLUMNS)
    hops = _Hops(pieces, 3)
    found = pieces.read_ahead(hops.begin)
    first = asyncio.ensure_future(anext(found))
    await asyncio.sleep(0)
    hops.begun[0].set_exception(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await first
