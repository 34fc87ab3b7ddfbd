"""Round trips with a real Dovecot: what one writes, the other shows with the same UIDs, flags, keywords and names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_dovecot import DOVEADM, Dovecot

from pymx.config.model import Mail
from pymx.mail import mutf7
from pymx.mail.flags import DELETED, FLAGGED, SEEN, SYSTEM_FLAGS
from pymx.ms.deliveries import Delivery
from pymx.ms.owner import Owner
from pymx.ms.store import Append, Store
from pymx.spool import Content

pytestmark = pytest.mark.skipif(DOVEADM is None, reason="no doveadm on this machine")
OWNER = Owner("example.test", "alice")


def message(subject: str) -> str:
    return f"From: a@example.com\nSubject: {subject}\n\nA body.\n"


def content(subject: str) -> Content:
    return Content.from_bytes(message(subject).replace("\n", "\r\n").encode())


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "mail" / "example.test" / "alice"
    path.mkdir(parents=True, mode=0o700)
    return path


@pytest.fixture
def dovecot(tmp_path: Path, maildir: Path) -> Dovecot:
    return Dovecot(tmp_path / "dovecot", maildir)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(
        Mail(root=str(tmp_path / "mail")), render=lambda _: (b"E", b"B", None), runtime_dir=None, hostname="mx.test"
    )
    await store.start()
    yield store
    await store.close()


async def shown(store: Store, name: str) -> dict[int, frozenset[str]]:
    """UIDs and flags as pymx has them."""
    mailbox = await store.open(OWNER, name, read_only=True)
    out = {}
    async for batch in mailbox.rows(mailbox.uids):
        for uid, _, flags, bits, *_ in batch:
            names = {text for text, bit in SYSTEM_FLAGS.items() if flags & bit}
            names |= {text for bit, text in enumerate(mailbox.keywords) if bits >> bit & 1}
            out[uid] = frozenset(names)
    mailbox.close()
    return out


async def compare(store: Store, dovecot: Dovecot) -> None:
    """Every mailbox, both ways."""
    folders = await store.folders(OWNER)
    assert {mutf7.encode(f.name) for f in folders if f.exists} == dovecot.mailboxes()
    assert {mutf7.encode(f.name) for f in folders if f.subscribed} == dovecot.subscribed()
    for folder in folders:
        if folder.exists:
            assert await shown(store, folder.name) == dovecot.messages(mutf7.encode(folder.name)), folder.name
            status = await store.status(OWNER, folder.name)
            assert status.uidvalidity == dovecot.uidvalidity(mutf7.encode(folder.name))
    assert dovecot.complaints == []


def written_by_dovecot(dovecot: Dovecot) -> None:
    dovecot.imap('CREATE "Lists.Python"', 'CREATE "&AMQ-rger"', 'CREATE "Drop"', 'SUBSCRIBE "Lists.Python"')
    dovecot.imap('SUBSCRIBE "&AMQ-rger"', "SUBSCRIBE INBOX")
    for number in range(6):
        dovecot.append("INBOX", "\\Seen $Work" if number % 2 else "$Other \\Flagged", message(f"old {number}"))
    dovecot.append("Lists.Python", "\\Draft", message("list"))
    dovecot.imap("SELECT INBOX", "UID STORE 2,5 +FLAGS (\\Deleted)", "EXPUNGE", "UID STORE 3 +FLAGS ($Third)")


async def test_a_maildir_of_dovecot_shows_the_same_in_pymx(store: Store, dovecot: Dovecot) -> None:
    """STORE.md s. 9: an existing Maildir is served in place."""
    written_by_dovecot(dovecot)
    assert sorted(await shown(store, "INBOX")) == [1, 3, 4, 6]
    await compare(store, dovecot)


async def test_what_pymx_did_shows_the_same_in_dovecot(store: Store, dovecot: Dovecot) -> None:
    """STORE.md s. 9: back to Dovecot at any moment."""
    written_by_dovecot(dovecot)
    await compare(store, dovecot)
    for number in range(5):
        await store.deliver([Delivery(OWNER, "INBOX", content(f"new {number}"))])
    await store.append(OWNER, "Lists.Python", [Append(content("appended"), SEEN, ("$Fresh", "$Work"), 1_600_000_000)])
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags([3, 7, 8], "add", FLAGGED, ["$Pymx", "$work"])
    await mailbox.store_flags([1], "set", SEEN, [])
    await mailbox.store_flags([6, 9], "add", DELETED, [])
    assert await mailbox.expunge(None) == [6, 9]
    await mailbox.copy([3, 7], "Lists.Python")
    await mailbox.move([8], "Ärger")
    await store.create(OWNER, "Made.Here")
    await store.subscribe(OWNER, "Made.Here")
    await store.unsubscribe(OWNER, "Ärger")
    await store.rename(OWNER, "Lists.Python", "Moved")
    await store.delete(OWNER, "Drop")
    mailbox.close()
    await compare(store, dovecot)


async def test_both_in_turns_stay_of_one_mind(store: Store, dovecot: Dovecot) -> None:
    """Each sees what the other did just before, in both directions, several times."""
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    for turn in range(4):
        await store.deliver([Delivery(OWNER, "INBOX", content(f"pymx {turn}"))])
        dovecot.append("INBOX", f"$Turn{turn}", message(f"dovecot {turn}"))
        await mailbox.refresh()
        await mailbox.store_flags([mailbox.uids[-1]], "add", SEEN, [f"$Pymx{turn}"])
        dovecot.imap("SELECT INBOX", f"UID STORE {mailbox.uids[0]} +FLAGS (\\Answered $D{turn})")
        await compare(store, dovecot)
    assert len(mailbox.uids) == 8
    dovecot.imap("SELECT INBOX", "UID STORE 1:4 +FLAGS (\\Deleted)", "EXPUNGE")
    changes = await mailbox.refresh()
    assert changes.expunged == [4, 3, 2, 1]
    mailbox.close()
    await compare(store, dovecot)


async def test_dovecot_accepts_a_rewritten_and_a_keyword_heavy_mailbox(store: Store, dovecot: Dovecot) -> None:
    """All 26 letters in use, many dead lines: Dovecot reads both without a word."""
    names = tuple(f"$k{n}" for n in range(26))
    await store.append(OWNER, "INBOX", [Append(content("many"), 0, names, None)])
    for number in range(3):
        await store.deliver([Delivery(OWNER, "INBOX", content(f"{number}"))])
    await compare(store, dovecot)
    assert (await shown(store, "INBOX"))[1] == frozenset(names)


async def test_dovecot_keeps_uids_after_pymx_lost_its_index(store: Store, dovecot: Dovecot, maildir: Path) -> None:
    """STORE.md s. 5: the index is a cache."""
    written_by_dovecot(dovecot)
    await store.deliver([Delivery(OWNER, "INBOX", content("one"))])
    before = await shown(store, "INBOX")
    for path in maildir.glob("pymx.index*"):
        path.unlink()
    assert await shown(store, "INBOX") == before
    await compare(store, dovecot)
