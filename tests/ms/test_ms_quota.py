"""Limits of an account: what is counted, when it is told, and that the notice arrives where there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
from ms_support import OWNER, maildir

from pymx.config.model import Mail
from pymx.mail.flags import DELETED
from pymx.mda.quotanotice import QuotaNotices
from pymx.ms.deliveries import Delivery
from pymx.ms.errors import OverQuota
from pymx.ms.owner import Owner
from pymx.ms.quota import Crossing
from pymx.ms.store import Append, Store
from pymx.proto.imap.render import render
from pymx.spool import Content

MESSAGE = b"Subject: filler\r\n\r\n" + b"x" * 979 + b"\r\n"  # 1,000 octets
LIMITED = replace(OWNER, quota_octets=10_000)
FEW = replace(OWNER, quota_messages=20)


def open_store(tmp_path: Path) -> Store:
    return Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = open_store(tmp_path)
    await store.start()
    yield store
    await store.close()


async def deliver(store: Store, owner: Owner, count: int = 1) -> None:
    for _ in range(count):
        (result,) = await store.deliver([Delivery(owner, "INBOX", Content.from_bytes(MESSAGE))])
        if isinstance(result, Exception):
            raise result


def told(tmp_path: Path) -> list[EmailMessage]:
    """The notices."""
    files = [path.read_bytes() for part in ("new", "cur") for path in (maildir(tmp_path) / part).iterdir()]
    notices = [message_from_bytes(data, policy=default) for data in files if b"filler" not in data]
    return sorted(notices, key=lambda notice: notice["Subject"])


async def expunge(store: Store, keep: int) -> None:
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    await mailbox.store_flags(mailbox.uids[keep:], "add", DELETED, ())
    await mailbox.expunge(None)
    mailbox.close()


async def test_octets_and_messages_are_limited(store: Store) -> None:
    await deliver(store, LIMITED, 10)
    with pytest.raises(OverQuota, match="over quota"):
        await deliver(store, LIMITED)
    await deliver(store, FEW, 10)
    with pytest.raises(OverQuota):
        await deliver(store, FEW)
    with pytest.raises(OverQuota):
        await store.check_quota(FEW, 1)
    await store.check_quota(OWNER, 10**9)
    both = replace(OWNER, quota_octets=10**6, quota_messages=21)
    await deliver(store, both)
    item = Append(Content.from_bytes(MESSAGE), 0, (), None)
    with pytest.raises(OverQuota):
        await store.append(replace(both, quota_messages=22), "INBOX", [item, item])
    mailbox = await store.open(replace(both, quota_messages=23), "INBOX", read_only=True)
    await store.create(OWNER, "Copies")
    with pytest.raises(OverQuota):
        await mailbox.copy(mailbox.uids[:3], "Copies")
    await mailbox.copy(mailbox.uids[:2], "Copies")
    mailbox.close()


@pytest.mark.parametrize(("owner", "at_80", "at_95"), [(LIMITED, 8, 10), (FEW, 16, 19)])
async def test_each_level_is_told_once_when_it_is_passed(store: Store, owner: Owner, at_80: int, at_95: int) -> None:
    crossings: list[Crossing] = []
    store.quota_crossed = lambda _, crossing: crossings.append(crossing)

    async def levels() -> list[int]:
        await asyncio.sleep(0)
        return [crossing.level for crossing in crossings]

    await deliver(store, owner, at_80 - 1)
    assert await levels() == []
    await deliver(store, owner)
    assert await levels() == [80]
    assert crossings[0].usage.messages == at_80
    await deliver(store, owner, at_95 - at_80 - 1)
    assert await levels() == [80]
    await deliver(store, owner)
    assert await levels() == [80, 95]
    await expunge(store, at_95 - 1)  # not far below
    await deliver(store, owner)
    assert await levels() == [80, 95]
    await expunge(store, at_80 // 2)
    await deliver(store, owner, at_80 // 2)
    assert await levels() == [80, 95, 80]


async def test_append_and_copy_pass_levels_too(store: Store) -> None:
    crossings: list[int] = []
    store.quota_crossed = lambda _, crossing: crossings.append(crossing.level)
    await store.append(LIMITED, "INBOX", [Append(Content.from_bytes(MESSAGE), 0, (), None)] * 8)
    mailbox = await store.open(LIMITED, "INBOX", read_only=True)
    await store.create(OWNER, "Copies")
    await mailbox.copy(mailbox.uids[:2], "Copies")
    mailbox.close()
    await asyncio.sleep(0)
    assert crossings == [80, 95]


async def test_of_two_processes_one_tells_it(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path)
    await other.start()
    crossings: list[int] = []
    for one in (store, other):
        one.quota_crossed = lambda _, crossing: crossings.append(crossing.level)
    await deliver(store, LIMITED, 7)
    await asyncio.gather(deliver(store, LIMITED), deliver(other, LIMITED))
    await asyncio.sleep(0)
    assert crossings == [80]
    await other.close()


async def test_notice_is_plain_and_arrives_in_a_full_mailbox(store: Store, tmp_path: Path) -> None:
    """It takes no room from the check, and asks for no further notice."""
    notices = QuotaNotices(store, hostname="mx.test")
    owner = replace(OWNER, quota_octets=20_000)
    await deliver(store, owner, 16)
    await asyncio.sleep(0)
    await notices.close()
    await deliver(store, owner, 3)
    await asyncio.sleep(0)
    await notices.close()
    found = told(tmp_path)
    assert [notice["Subject"] for notice in found] == ["Your mailbox is 80 % full", "Your mailbox is 98 % full"]
    assert (await store.usage(owner)).octets > 19_900
    with pytest.raises(OverQuota):
        await deliver(store, owner)
    await notices.close()
    assert len(told(tmp_path)) == 2
    message = found[0]
    assert message.get_content_type() == "text/plain"
    assert message["To"] == OWNER.email
    assert message["Auto-Submitted"] == "auto-generated"
    assert "0.0 of 0.0 MB" in message.get_content()
    assert "is 80 % full" in message.get_content()
