"""Three IMAP sessions in two processes, and a program that knows nothing of them, as one example plays them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from imap_model import Box, Ear, Flags, Heard, View, World, subsets
from imap_rig import Client, Rig, running
from support.tls import TlsFiles

T = TypeVar("T")
MODES = {
    "plain": "",
    "condstore": "ENABLE CONDSTORE",
    "qresync": "ENABLE QRESYNC",
    "rev2": "ENABLE IMAP4rev2",
    "uidonly": "ENABLE UIDONLY",
    "uidonly qresync": "ENABLE UIDONLY QRESYNC",
}
FLAGS = (b"\\Seen", b"\\Flagged", b"\\Deleted", b"$Label", b"work")
LETTERS = {b"": frozenset(), b"S": {b"\\Seen"}, b"FS": {b"\\Flagged", b"\\Seen"}, b"T": {b"\\Deleted"}}
SYSTEM = frozenset({b"\\Seen", b"\\Flagged", b"\\Deleted"})


def message(token: str) -> bytes:
    return f"From: a@example.test\r\nSubject: {token}\r\n\r\nText\r\n".encode()


def spaced(flags: Iterable[bytes]) -> str:
    return b" ".join(sorted(flags)).decode()


def listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


@dataclass
class Session:
    """A client's connection, in the worker that it stays with."""

    number: int
    client: Client
    ear: Ear
    mode: str
    idling: bool = False
    # What it kept of mailboxes it left: MODSEQ, sequence, flags
    kept: dict[int, tuple[int, list[int], dict[int, Flags]]] = field(default_factory=dict)

    @property
    def view(self) -> View:
        assert self.ear.view is not None
        return self.ear.view


@dataclass
class Stage:
    """The two processes, and the directory both serve."""

    runner: asyncio.Runner
    rig: Rig
    ports: tuple[int, int]
    account: Path
    names: Iterator[int] = field(default_factory=count)
    spare: dict[tuple[int, str], list[Client]] = field(default_factory=dict)  # connections of earlier examples

    async def client(self, worker: int, mode: str) -> Client:
        """Logged in and set up."""
        if spare := self.spare.get((worker, mode)):
            return spare.pop()
        client = await self.connect(worker)
        if MODES[mode]:
            await client.ok(MODES[mode])
        return client

    async def close(self) -> None:
        for clients in self.spare.values():
            for client in clients:
                await client.close()

    async def connect(self, worker: int) -> Client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.ports[worker], ssl=self.rig.tls, server_hostname="localhost"
        )
        client = Client(reader, writer, self.rig.tls)
        client.greeting = await client.line()
        await client.ok("LOGIN alice@example.test secret")
        return client


@contextmanager
def staged(tls_files: TlsFiles) -> Iterator[Stage]:
    """This process and another one serve one directory."""
    top = Path(tempfile.mkdtemp(prefix="pymx-imap-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    server = Path(__file__).parent / "imap_server_process.py"
    arguments = (server, top, tls_files.certificate, tls_files.private_key, tls_files.ca, top / "run")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        rig = runner.run(stack.enter_async_context(running(top, tls_files, runtime_dir=top / "run")))
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(server.parents[1]), *sys.path]))},
        )  # fmt: skip
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            stage = Stage(runner, rig, (rig.port, port), top / "mail" / "example.test" / "alice")
            yield stage
            runner.run(stage.close())
        finally:
            process.communicate(timeout=60)
            runner.run(stack.aclose())
    shutil.rmtree(top)


class Foreign:
    """A program that knows Maildir and nothing of locks. What it does is never in the same tick as something else."""

    def __init__(self, account: Path) -> None:
        self.account = account
        self.serial = 0

    def path(self, box: Box) -> Path:
        return self.account / f".{box.name}"

    def _show(self, *changed: Path) -> None:
        for path in changed:
            self.serial += 1
            os.utime(path, ns=(time.time_ns(), time.time_ns() + self.serial))

    def drop(self, box: Box, token: str) -> None:
        self.serial += 1
        path = self.path(box)
        name = f"17000{self.serial:05d}.M{self.serial}P1.foreign"
        (path / "tmp" / name).write_bytes(message(token).replace(b"\r\n", b"\n"))
        (path / "tmp" / name).rename(path / "new" / name)
        self._show(path / "new")

    def find(self, box: Box, uid: int) -> Path:
        lines = (self.path(box) / "dovecot-uidlist").read_text().splitlines()[1:]
        (base,) = (line.partition(" :")[2] for line in lines if line.split()[0] == str(uid))
        (found,) = (p for part in ("new", "cur") for p in (self.path(box) / part).iterdir() if p.name.startswith(base))
        return found

    def unlink(self, box: Box, uid: int) -> None:
        found = self.find(box, uid)
        found.unlink()
        self._show(found.parent)

    def rename(self, box: Box, uid: int, letters: str, target: Box | None = None) -> None:
        found = self.find(box, uid)
        base, _, info = found.name.partition(":2,")
        keywords = "" if target else "".join(letter for letter in info if letter.islower())
        there = self.path(target or box) / "cur"
        found.rename(there / f"{base}:2,{letters}{keywords}")
        self._show(found.parent, there)


class Company(RuleBasedStateMachine):
    """Three sessions, two mailboxes, and what the model says of them; the rules are in `test_imap_model.py`."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.world = World()
        self.foreign = Foreign(stage.account)
        self.sessions: list[Session] = []
        self.broken = False
        self.recent: dict[tuple[str, int], View] = {}
        self.raced: list[str] = []

    def play(self, act: Coroutine[object, object, T]) -> T:
        try:
            return self.stage.runner.run(self._play(act))
        except BaseException:
            self.broken = True
            raise

    async def _play(self, act: Coroutine[object, object, T]) -> T:
        done = await act
        await self._listen_to_all()
        return done

    async def _listen_to_all(self) -> None:
        for session in self.sessions:
            if session.idling:
                await self._listen(session)

    async def _listen(self, session: Session) -> None:
        """What an idle session is to know is told to it unasked (RFC 2177)."""
        while not session.view.is_told():
            line = await session.client.line()
            assert line, "connection closed"
            session.ear.take([line])
        session.view.check()

    def box(self, at: int) -> Box:
        return list(self.world.boxes.values())[at]

    async def ready(self, number: int) -> Session:
        """The session, awake; one whose mailbox was renamed by others is told so, and comes back."""
        session = self.sessions[number]
        view = session.ear.view
        if view is not None and not view.alive:
            session.client.send(b"x NOOP\r\n")
            await self._dismissed(session)
            session = self.sessions[number]
        if session.idling:
            session.idling = False
            session.client.send(b"DONE\r\n")
            session.ear.take(await session.client.answer("i"))
            session.view.check()
        return session

    async def _dismissed(self, session: Session) -> None:
        """Its mailbox has another name: the server has nothing more to tell it, and it comes back."""
        while not (line := await session.client.line()).startswith(b"* BYE"):
            assert line, "connection closed"
            session.ear.take([line])
        assert await session.client.line() == b""
        await session.client.close()
        self.sessions[session.number] = await self._login(session.number, session.mode)

    async def selected(self, number: int) -> Session:
        session = await self.ready(number)
        if session.ear.view is None:
            await self._select(session, self.box(number % 2), read_only=False, point=None)
        elif session.view.box.unseen:
            # FETCH and SEARCH answer from the index first and look at the files then
            await self.tell(session, "NOOP")
            session.view.box.unseen = False
        return session

    async def _login(self, number: int, mode: str) -> Session:
        client = await self.stage.client(number % 2, mode)
        ear = Ear(
            number,
            condstore="condstore" in mode,
            qresync="qresync" in mode,
            uidonly="uidonly" in mode,
            rev2=mode == "rev2",
        )
        return Session(number, client, ear, mode)

    async def ask(self, session: Session, command: str | bytes, *, quiet: bool = False, ok: bool = True) -> Heard:
        heard = session.ear.take(await session.client.ask(command), quiet=quiet)
        assert heard.tagged.startswith(b"OK" if ok else b"NO"), (command, heard.lines)
        return heard

    async def tell(
        self, session: Session, command: str | bytes, about: Iterable[int] = (), *, quiet: bool = False
    ) -> Heard:
        """A command that tells everything, but for expunged messages if `quiet`; `about`: whose flags it asks for."""
        view = session.ear.view
        others = view.box.touched_by_others(session.number, view.synced) if view else set()
        heard = await self.ask(session, command, quiet=quiet)
        if view is not None:
            view.check(but_expunged=quiet)
            needless = heard.flags - set(about) - others
            assert not needless, f"{command!r} told flags of {needless}, which only this session changed"
            self._recent(view, heard)
        return heard

    def _recent(self, view: View, heard: Heard) -> None:
        """RFC 3501 s. 2.3.2: \\Recent in one session only."""
        for uid, items in heard.fetched.items():
            if b"\\Recent" in items and not view.read_only:
                first = self.recent.setdefault((str(view.box.uidvalidity), uid), view)
                assert first is view, f"{uid} is recent in two sessions"

    async def _begin(self, modes: list[str]) -> None:
        self.auditor = await self._login(3, "condstore")
        number = next(self.stage.names)
        for letter in "AB":
            box = Box(f"x{number}{letter}")
            await self.auditor.client.ok(f"CREATE {box.name}")
            self.world.boxes[box.name] = box
            await self._status(self.auditor, box)
        for at in (0, 0, 0, 0, 0, 1):
            await self._deliver(self.box(at))
        for at, mode in enumerate(modes):
            self.sessions.append(await self._login(at, mode))
            await self._select(self.sessions[at], self.box(0), read_only=False, point=None)

    def teardown(self) -> None:
        if self.sessions:
            self.play(self._end())

    async def _end(self) -> None:
        try:
            if not self.broken:
                for number in range(3):
                    await self.tell(await self.selected(number), "NOOP")
                for box in self.world.boxes.values():
                    await self._audit(box)
                for session in self.sessions:
                    await self._go(session)
                for name in self.world.boxes:
                    await self.auditor.client.ok(f"DELETE {name}")
                await self._go(self.auditor)
        finally:
            for session in [*self.sessions, self.auditor] if self.broken else ():
                await session.client.close()
            self.sessions = []

    async def _go(self, session: Session) -> None:
        """Leave the connection to the next example."""
        if session.ear.view is not None:
            self._leave(session)
            await self.ask(session, "UNSELECT")
        self.stage.spare.setdefault((session.number % 2, session.mode), []).append(session.client)

    async def _audit(self, box: Box) -> None:
        """A fresh look, from both processes."""
        await self._status(self.auditor, box)
        for number in (0, 1):
            fresh = await self._login(number, "qresync")
            await self._select(fresh, box, read_only=True, point=6)
            if box.messages:
                heard = await self.tell(
                    fresh, "UID FETCH 1:* (UID FLAGS MODSEQ BODY.PEEK[HEADER.FIELDS (SUBJECT)])", box.uids
                )
                assert sorted(heard.fetched) == box.uids
                for uid, items in heard.fetched.items():
                    assert f"Subject: {box.messages[uid].token}\r\n".encode() in items
            await self._go(fresh)

    async def _select(self, session: Session, box: Box, *, read_only: bool, point: int | None) -> None:
        """Into the mailbox: anew, or with QRESYNC from a point or (0) from what this client kept of it."""
        self._leave(session)
        since, kept, parameter = -1, None, ""
        if session.ear.qresync and point is not None:
            if point == 0 and id(box) in session.kept:
                kept = session.kept[id(box)]
                parameter = f" (QRESYNC ({box.uidvalidity} {kept[0]}{self._known(session, kept[1])}))"
            elif point and box.points:
                modseq, since = box.points[-point % len(box.points)]
                parameter = f" (QRESYNC ({box.uidvalidity} {modseq}))"
        view = session.ear.view = View(box, self.world, session.number, read_only=read_only)
        heard = await self.ask(session, f"{'EXAMINE' if read_only else 'SELECT'} {box.name}{parameter}")
        assert b"[READ-ONLY]" if read_only else b"[READ-WRITE]" in heard.tagged
        view.check()
        validity, uidnext = heard.code(rb"\[UIDVALIDITY (\d+)\]"), heard.code(rb"\[UIDNEXT (\d+)\]")
        highest, unseen = heard.code(rb"\[HIGHESTMODSEQ (\d+)\]"), heard.code(rb"\[UNSEEN (\d+)\]")
        assert validity
        assert uidnext
        assert highest
        assert (box.uidvalidity, box.uidnext) == (int(validity[1]), int(uidnext[1]))
        box.highest(int(highest[1]), self.world.now)
        if not session.ear.rev2 and not session.ear.uidonly:
            first = next((n for n, uid in enumerate(box.uids, 1) if b"\\Seen" not in box.messages[uid].flags), 0)
            assert (int(unseen[1]) if unseen else 0) == first
        if since >= 0:
            assert sorted(heard.earlier) == sorted(box.gone_since(since)), "VANISHED (EARLIER)"
            assert set(heard.fetched) == box.changed_since(since), "changed since"
        elif kept is not None:
            self._resynchronized(box, kept, heard)
        box.unseen = False

    @staticmethod
    def _known(session: Session, uids: Sequence[int]) -> str:
        """Known UIDs, and what numbers some of them have (RFC 7162 s. 3.2.5.1, 3.2.5.2)."""
        if not uids:
            return ""
        if session.ear.uidonly:
            return f" {listed(uids)}"
        numbers = sorted({1, (len(uids) + 1) // 2, len(uids)})
        return f" {listed(uids)} ({listed(numbers)} {listed(uids[n - 1] for n in numbers)})"

    @staticmethod
    def _resynchronized(box: Box, kept: tuple[int, list[int], dict[int, Flags]], heard: Heard) -> None:
        """What the client kept is right after it (but for new messages)."""
        _, uids, flags = kept
        flags = {uid: flags[uid] for uid in uids if uid not in heard.earlier}
        assert not uids or set(heard.earlier) <= set(uids), "VANISHED (EARLIER) of UIDs that the client does not know"
        for uid, items in heard.fetched.items():
            found = re.search(rb"FLAGS \(([^)]*)\)", items)
            assert found
            flags[uid] = frozenset(found[1].split()) - {b"\\Recent"}
        for uid in set(uids) | (set(heard.fetched) if uids else set(box.uids)):
            now = box.messages.get(uid)
            assert flags.get(uid) == (now.flags if now else None), f"after QRESYNC {uid} is {flags.get(uid)}, not {now}"

    @staticmethod
    def _leave(session: Session) -> None:
        view, session.ear.view = session.ear.view, None
        if view is not None and session.ear.qresync:
            session.kept[id(view.box)] = (view.modseq, view.sure, {uid: view.flags[uid] for uid in view.sure})

    async def _close(self, session: Session) -> None:
        view = session.view
        if not view.read_only:
            self.world.remove(view.box, view.box.deleted(view.sure))
        self._leave(session)
        await self.ask(session, "CLOSE")

    async def _status(self, session: Session, box: Box) -> None:
        items = "MESSAGES UNSEEN DELETED UIDNEXT UIDVALIDITY" + (" HIGHESTMODSEQ" if session.ear.condstore else "")
        heard = await self.tell(session, f"STATUS {box.name} ({items})")
        line = next(line for line in heard.lines if line.startswith(b"* STATUS"))
        words = line.partition(b"(")[2].rstrip(b")").split()
        found = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        flags = [message.flags for message in box.messages.values()]
        assert found[b"MESSAGES"] == len(flags)
        assert found[b"UNSEEN"] == sum(b"\\Seen" not in each for each in flags)
        assert found[b"DELETED"] == sum(b"\\Deleted" in each for each in flags)
        assert found[b"UIDNEXT"] == box.uidnext
        box.uidvalidity = box.uidvalidity or found[b"UIDVALIDITY"]
        assert found[b"UIDVALIDITY"] == box.uidvalidity
        if session.ear.condstore:
            box.highest(found[b"HIGHESTMODSEQ"], self.world.now)
        box.unseen = False

    async def _deliver(self, box: Box) -> None:
        token = self.world.token()
        uid = self.world.add(box, token, frozenset())
        assert await self.stage.rig.deliver(message(token), box.name) == uid

    def _chosen(self, session: Session, mask: int, by_uid: bool) -> tuple[str, list[int], bool]:
        """A command to be formatted with its verb, the UIDs it is about, whether it goes by UID."""
        view = session.view
        by_uid = by_uid or session.ear.uidonly
        chosen = list(subsets(view.sure, mask))
        if by_uid:
            return f"UID {{verb}} {'1:*' if mask == 63 else listed(chosen)}", chosen, True
        numbers = [n for n, uid in enumerate(view.sure, 1) if uid in chosen]
        return f"{{verb}} {'1:*' if mask == 63 else listed(numbers)}", chosen, False

    @staticmethod
    def _with(now: Flags, sign: str, flags: Flags) -> Flags:
        return now | flags if sign == "+" else now - flags if sign == "-" else flags

    async def _noticed(self, box: Box) -> None:
        """Somebody looks, so that what was dropped before has its UID: two at once are in no order."""
        if box.unseen:
            await self._status(self.auditor, box)

    async def _finish(self, session: Session) -> None:
        """After a race: whose UID was not learned is looked at, and then everything must be known."""
        view = session.view
        if None in view.uids:
            items = "(UID FLAGS MODSEQ)" if session.ear.condstore else "(UID FLAGS)"
            session.ear.take(await session.client.ask(f"UID FETCH 1:* {items}"), racing=True)
            fresh = [uid for uid in view.box.uids if uid not in view.uids]
            for at, uid in enumerate(view.uids):
                if uid is None and fresh:
                    view.uids[at] = fresh.pop(0)
        for uid in view.sure:
            if uid in view.box.messages:
                view.flags.setdefault(uid, view.box.messages[uid].flags)
        await self.ask(session, "NOOP")
        view.check()

    def _racing(self, session: Session, kind: str, mask: int) -> Coroutine[object, object, list[bytes] | int]:
        """One side of a race; what it does is in the model already."""
        view, box = session.view, session.view.box
        chosen = list(subsets(view.sure, mask))
        if kind in ("append", "deliver"):
            token = self.world.token()
            self.raced.append(token)
            text = message(token)
            if kind == "deliver":
                return self.stage.rig.deliver(text, box.name)
            return session.client.ask(f"APPEND {box.name} {{{len(text)}+}}\r\n".encode() + text)
        if kind == "noop" or not chosen or (view.read_only and kind != "fetch"):
            return session.client.ask("NOOP")
        if kind == "expunge":
            self.world.remove(box, box.deleted(chosen))
            return session.client.ask(f"UID EXPUNGE {listed(chosen)}")
        if kind == "fetch":
            return session.client.ask(
                f"UID FETCH {listed(chosen)} (UID {'MODSEQ ' if session.ear.condstore else ''}FLAGS)"
            )
        sign, flags = ("+", frozenset({b"\\Flagged"})) if kind == "flag" else ("-", frozenset({b"\\Seen"}))
        for uid in chosen:
            if uid in box.messages:
                self.world.flag(box, uid, self._with(box.messages[uid].flags, sign, flags), session.number)
        return session.client.ask(f"UID STORE {listed(chosen)} {sign}FLAGS ({spaced(flags)})")
