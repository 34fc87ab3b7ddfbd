"""Worker processes for the model test: each has a store and at most one mailbox selected, and does what it is told.

They are forked from one server process that has imported everything, so a killed one is soon replaced.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ms_support import content, new_store

from pymx.mail.flags import DELETED
from pymx.ms.deliveries import Delivered, Delivery
from pymx.ms.errors import NoSuchMailbox, StoreError
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.store import Append, Store

Message = tuple[str, int, tuple[str, ...]]  # token, flags, keywords


@dataclass(frozen=True)
class Op:
    """What one actor does to one message of one mailbox."""

    kind: str
    name: str = "INBOX"
    target: str = "INBOX"
    token: str = ""
    mode: str = "add"
    flags: int = 0
    keywords: tuple[str, ...] = ()


@dataclass
class Reply:
    """What it told; `seen` are UIDVALIDITY and UID of each message whose text was seen with it."""

    told: object = "ok"
    seen: dict[tuple[int, int], str] = field(default_factory=dict)
    trouble: str = ""


class Actor:
    """A session of one account, with the store of this process."""

    def __init__(self, store: Store, owner: Owner) -> None:
        self.store = store
        self.owner = owner
        self.mailbox: Mailbox | None = None
        self.tokens: dict[int, str] = {}  # of the selected mailbox, by UID
        self.reply = Reply()

    async def do(self, op: Op) -> Reply:
        self.reply = Reply()
        try:
            try:
                self.reply.told = await getattr(self, "_" + op.kind)(op)
            except NoSuchMailbox:
                if self.mailbox is None:
                    raise
                self.leave()  # replaced or renamed since it was selected: a client selects anew
                self.reply.told = await getattr(self, "_" + op.kind)(op)
        except StoreError as error:
            self.leave()
            self.reply.told = type(error).__name__
        except Exception:
            self.reply.trouble = traceback.format_exc()
        return self.reply

    def leave(self) -> None:
        if self.mailbox is not None:
            self.mailbox.close()
        self.mailbox, self.tokens = None, {}

    async def _select(self, name: str, *, expunge: bool = True) -> Mailbox:
        """The mailbox, selected, its view moved to now; what a session may rely on is checked."""
        if self.mailbox is not None and self.mailbox.name != name:
            self.leave()
        if self.mailbox is None:
            self.mailbox = await self.store.open(self.owner, name, read_only=False)
        box = self.mailbox
        before = list(box.uids)
        changes = await box.refresh(expunge=expunge)
        for position in changes.expunged:
            del before[position - 1]
        assert list(box.uids[: len(before)]) == before, "the view lost its order"
        assert len(box.uids) == len(before) + changes.arrived, "arrivals miscounted"
        assert list(box.uids) == sorted(set(box.uids)), "UIDs do not ascend"
        assert not box.uids or box.uids[-1] < box.uidnext, "UIDNEXT is too low"
        async for uid, message in box.messages([uid for uid in box.uids if uid not in self.tokens]):
            if message is not None:
                self.tokens[uid] = (await message.read()).partition(b"\r\n")[0].decode().removeprefix("Subject: ")
                self.reply.seen[box.uidvalidity, uid] = self.tokens[uid]
        return box

    async def _uids(self, op: Op, *, expunge: bool = True) -> tuple[Mailbox, list[int]]:
        box = await self._select(op.name, expunge=expunge)
        return box, [uid for uid in box.uids if self.tokens.get(uid) == op.token]

    async def _deliver(self, op: Op) -> object:
        (done,) = await self.store.deliver([Delivery(self.owner, op.name, content(op.token))])
        if not isinstance(done, Delivered):
            raise done
        self.reply.seen[done.uidvalidity, done.uid] = op.token
        return done.mailbox

    async def _append(self, op: Op) -> object:
        done = await self.store.append(
            self.owner, op.name, [Append(content(op.token), op.flags, op.keywords, 1_600_000_000)]
        )
        self.reply.seen[done.uidvalidity, done.uids[0]] = op.token
        return "ok"

    async def _flag(self, op: Op) -> object:
        box, uids = await self._uids(op, expunge=False)
        await box.store_flags(uids, op.mode, op.flags, op.keywords)  # type: ignore[arg-type]  # drawn from the three
        return "ok"

    async def _expunge(self, op: Op) -> object:
        box, uids = await self._uids(op)
        await box.store_flags(uids, "add", DELETED, [])
        await box.expunge(uids)
        return "ok"

    async def _copy(self, op: Op) -> object:
        box, uids = await self._uids(op)
        copied = await (box.move if op.kind == "move" else box.copy)(uids, op.target)
        for old, new in zip(copied.source_uids, copied.target_uids, strict=True):
            assert old in uids
            self.reply.seen[copied.uidvalidity, new] = op.token
        return "ok"

    _move = _copy

    async def _create(self, op: Op) -> object:
        await self.store.create(self.owner, op.name)
        return "ok"

    async def _delete(self, op: Op) -> object:
        await self.store.delete(self.owner, op.name)
        return "ok"

    async def _rename(self, op: Op) -> object:
        await self.store.rename(self.owner, op.name, op.target)
        return "ok"

    async def _look(self, op: Op) -> object:
        """The mailbox's messages, in no order."""
        return tuple(sorted((await self.rows(op.name)).values()))

    async def rows(self, name: str) -> dict[int, Message]:
        box = await self._select(name)
        out: dict[int, Message] = {}
        async for batch in box.rows(box.uids):
            for uid, _, flags, bits, *_ in batch:
                known = sorted(n for bit, n in enumerate(box.keywords) if bits >> bit & 1)
                out[uid] = (self.tokens.get(uid, "?"), flags, tuple(known))
        return out

    async def _dump(self, _: Op) -> object:
        """Every mailbox: UIDVALIDITY and messages by UID; STATUS agrees."""
        out = {}
        for folder in await self.store.folders(self.owner):
            if folder.exists:
                messages = await self.rows(folder.name)
                status = await self.store.status(self.owner, folder.name)
                assert status.messages == len(messages), "STATUS counts other messages"
                assert status.unseen == sum(not flags & 1 for _, flags, _ in messages.values()), "STATUS unseen"
                out[folder.name] = (status.uidvalidity, messages)
        return out


async def fresh_dump(top: Path, owner: Owner) -> Reply:
    """As a store sees the account that has just been opened."""
    store = new_store(top)
    await store.start()
    actor = Actor(store, owner)
    reply = await actor.do(Op("dump"))
    actor.leave()
    await store.close()
    return reply


async def _serve(pipe: Connection, top: Path) -> None:
    store = new_store(top, runtime=True)
    await store.start()
    actor: Actor | None = None
    loop = asyncio.get_running_loop()
    while (command := await loop.run_in_executor(None, pipe.recv)) is not None:
        local_part, op = command
        if actor is None or actor.owner.local_part != local_part:
            if actor is not None:
                actor.leave()
            actor = Actor(store, Owner("example.test", local_part))
        pipe.send(await actor.do(op))
    if actor is not None:
        actor.leave()
    await store.close()


def work(pipe: Connection, top: str) -> None:
    """The main function of a worker."""
    asyncio.run(_serve(pipe, Path(top)))


class Worker:
    """One of them, as the test holds it."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ms_workers"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, str(self._top)), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, local_part: str, op: Op) -> Callable[[], Reply]:
        """Has it done; the function that is returned waits for the answer."""
        self._pipe.send((local_part, op))

        def answer() -> Reply:
            if not self._pipe.poll(60):
                raise AssertionError(f"no answer to {op}")
            reply: Any = self._pipe.recv()
            assert isinstance(reply, Reply)
            return reply

        return answer

    def kill(self) -> None:
        """SIGKILL, now; another one takes its place."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._start()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)
        self._pipe.close()
        self._process.close()
