"""Large mailboxes from elsewhere are rendered beside the session, from the other end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_support import OWNER, maildir

from pymx.app.upkeep import Task, work
from pymx.config.model import Mail
from pymx.ms import prerender
from pymx.ms.store import Store
from pymx.proto.imap.render import render

COUNT = prerender.LEAST + 50


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    for part in ("cur", "new", "tmp"):
        (maildir(tmp_path) / part).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        name = f"{1_600_000_000 + number}.M1P1.h:2,S"
        (maildir(tmp_path) / "cur" / name).write_bytes(b"Subject: number %d\n\ntext\n" % number)
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    yield store
    await store.close()


def task(tmp_path: Path, guid: str) -> Task:
    return Task(Mail(root=str(tmp_path / "mail")), "mx.test", OWNER.email, guid)


async def test_opening_a_large_cold_mailbox_asks_for_it_and_a_warm_one_does_not(store: Store, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    store.wants_rendering = lambda email, guid: asked.append((email, guid))
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    ((email, guid),) = asked
    assert email == OWNER.email
    rows = {row[0]: row async for batch in mailbox.rows(mailbox.uids[:200], rendered=True) for row in batch}
    assert work(task(tmp_path, guid)).messages == COUNT - 200
    assert work(task(tmp_path, guid)).messages == 0
    found = {row[0]: row async for batch in mailbox.rows(mailbox.uids, rendered=True) for row in batch}
    assert len(found) == COUNT
    assert all(found[uid] == row for uid, row in rows.items())
    assert all(b'"number %d"' % (uid - 1) in row[7] for uid, row in found.items())
    mailbox.close()
    (await store.open(OWNER, "INBOX", read_only=True)).close()
    assert len(asked) == 1
    assert work(task(tmp_path, "no such mailbox")).messages == 0


async def test_flags_need_no_date_and_searches_do(store: Store) -> None:
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    undated = [row async for batch in mailbox.rows(mailbox.uids, dated=False) for row in batch]
    assert len(undated) == COUNT
    assert {row[5] for row in undated} == {None}
    dated = [row async for batch in mailbox.rows(mailbox.uids) for row in batch]
    assert None not in {row[5] for row in dated}
    mailbox.close()
