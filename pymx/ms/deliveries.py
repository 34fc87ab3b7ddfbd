"""The deliveries of one message: a mailbox of each recipient, in parallel, equal octets written once.

A mailbox that is missing means INBOX, unless it is to be made. What one mailbox refuses is its own result.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymx import metrics
from pymx.ms import arrive, delivering, folders
from pymx.ms.account import Account
from pymx.ms.box import Box
from pymx.ms.errors import MailboxExists, NoSuchMailbox, StoreError
from pymx.ms.layout import INBOX
from pymx.ms.owner import Owner
from pymx.spool import Content

if TYPE_CHECKING:
    from pymx.ms.store import Store


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message for one mailbox; a missing mailbox means INBOX, unless `create`."""

    owner: Owner
    mailbox: str
    content: Content
    flags: int = 0
    create: bool = False
    exempt: bool = False  # from the account's limits


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where it went. The UID is not yet told: whoever shows it to a client passes the told barrier first."""

    mailbox: str
    uidvalidity: int
    uid: int


async def deliver(store: Store, deliveries: Sequence[Delivery]) -> list[Delivered | StoreError]:
    """Store each; durable at return. One bad mailbox does not stop the others."""
    if len(deliveries) == 1:
        return [await _deliver_alone(store, deliveries[0])]
    groups = _groups([d.content for d in deliveries])
    out: list[Delivered | StoreError | None] = [None] * len(deliveries)
    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            tasks.create_task(_deliver_group(store, deliveries, group, out))
    return [result for result in out if result is not None]


async def _deliver_alone(store: Store, delivery: Delivery) -> Delivered | StoreError:
    try:
        result = await store.run(delivery.owner, lambda account: _deliver(store, account, delivery, None)[0])
    except StoreError as error:
        return error
    metrics.add("store_messages_delivered")
    return result


async def _deliver_group(
    store: Store, deliveries: Sequence[Delivery], group: list[int], out: list[Delivered | StoreError | None]
) -> None:
    """Equal messages: written once, linked into every mailbox."""
    if len(group) == 1:
        out[group[0]] = await _deliver_alone(store, deliveries[group[0]])
        return
    shared: arrive.Prepared | None = None
    waiting = list(group)
    try:
        while waiting and shared is None:
            number = waiting.pop(0)
            delivery = deliveries[number]
            try:
                out[number], shared = await store.run(
                    delivery.owner, functools.partial(_deliver, store, delivery=delivery, shared=None, keep=True)
                )
            except StoreError as error:
                out[number] = error
        async with asyncio.TaskGroup() as tasks:
            for number in waiting:
                tasks.create_task(_deliver_shared(store, deliveries[number], shared, number, out))
    finally:
        if shared is not None:
            shared.close(store.disk)


async def _deliver_shared(
    store: Store,
    delivery: Delivery,
    shared: arrive.Prepared | None,
    number: int,
    out: list[Delivered | StoreError | None],
) -> None:
    try:
        out[number] = await store.run(delivery.owner, lambda account: _deliver(store, account, delivery, shared)[0])
    except StoreError as error:
        out[number] = error


def _deliver(
    store: Store, account: Account, delivery: Delivery, shared: arrive.Prepared | None, keep: bool = False
) -> tuple[Delivered, arrive.Prepared | None]:
    if not delivery.exempt:
        store.check_room(account, delivery.owner, delivery.content.size_octets)
    box = _target(account, delivery)
    try:
        placed = delivering.deliver(box, delivery.content, delivery.flags, store.render, shared=shared, keep=keep)
    except NoSuchMailbox:  # deleted or renamed while we waited for its lock
        box = account.box(INBOX)
        placed = delivering.deliver(box, delivery.content, delivery.flags, store.render, shared=shared, keep=keep)
    if placed.filling:
        store.rows_missing(delivery.owner, box)
    if not delivery.exempt:
        store.came_in(account, delivery.owner)
    return Delivered(account.layout.name(box.levels), placed.uidvalidity, placed.uid), placed.prepared


def _target(account: Account, delivery: Delivery) -> Box:
    levels = account.layout.levels(delivery.mailbox)
    try:
        return account.box(levels)
    except NoSuchMailbox:
        if not delivery.create:
            return account.box(INBOX)
    account.box(INBOX)
    try:
        folders.create(account.home, account.layout, levels, "")
        account.subscribe(levels, subscribe=True)
    except MailboxExists:
        pass  # made by somebody else just now
    return account.box(levels)


def _groups(contents: Sequence[Content]) -> list[list[int]]:
    """Which of these are octet for octet the same message, without reading them."""
    out: list[list[int]] = []
    for number, content in enumerate(contents):
        for group in out:
            if content.same_as(contents[group[0]]):
                group.append(number)
                break
        else:
            out.append([number])
    return out
