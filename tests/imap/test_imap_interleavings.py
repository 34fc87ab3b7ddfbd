"""Interleavings of several sessions on one mailbox, in two workers, against a model of what the mailbox holds.

Hypothesis chooses the modes of the sessions and the order of their commands. Each session is followed by a picture, as
a client keeps it: a list of UIDs moved only by what the server says, and flags by UID. At any time sequence numbers
must mean the same to both sides; in the end every picture must be the model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imap_rig import Client, Rig, running
from support.tls import TlsFiles

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"
ALL = "MessageNew MessageExpunge FlagChange"
# How a session is set up, and whether it may speak of sequence numbers.
MODES: dict[str, tuple[tuple[str, ...], bool]] = {
    "plain": ((), True),
    "condstore": (("ENABLE CONDSTORE",), True),
    "qresync": (("ENABLE QRESYNC",), True),
    "uidonly": (("ENABLE UIDONLY",), False),
    "uidonly qresync": (("ENABLE UIDONLY QRESYNC",), False),
    "rev2": (("ENABLE IMAP4rev2",), True),
    # RFC 5465 s. 6.1: with SELECTED numbers may change at any time, so such a client uses UIDs
    "notify": ((f"NOTIFY SET (selected {ALL}) (personal {ALL})",), False),
    "notify items": (("NOTIFY SET (selected MessageNew (uid flags) MessageExpunge FlagChange)",), False),
    "notify delayed": ((f"NOTIFY SET (selected-delayed {ALL})",), True),
    "notify qresync": (("ENABLE QRESYNC", f"NOTIFY SET (selected {ALL})"), False),
}
OPERATIONS = (
    "append",
    "deliver",
    "flag",
    "unflag",
    "silent",
    "delete",
    "expunge",
    "move",
    "noop",
    "fetch",
    "search",
    "idle",
)
_EXISTS = re.compile(rb"\* (\d+) EXISTS")
_EXPUNGE = re.compile(rb"\* (\d+) EXPUNGE")
_VANISHED = re.compile(rb"\* VANISHED ([\d:,]+)")
_FETCH = re.compile(rb"\* (\d+) FETCH \((.*)\)")
_UIDFETCH = re.compile(rb"\* (\d+) UIDFETCH \((.*)\)")
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_UID = re.compile(rb"UID (\d+)")
_QUIET = ("FETCH", "STORE", "SEARCH")  # RFC 3501 s. 7.4.1


@dataclass(frozen=True, slots=True)
class Step:
    """One command: by which session, on which of the messages it knows, by number or by UID."""

    session: int
    operation: str
    message: int
    by_number: bool


steps = st.builds(Step, st.integers(0, 2), st.sampled_from(OPERATIONS), st.integers(0, 8), st.booleans())


class Picture:
    """A client's view."""

    def __init__(self, client: Client, mode: str) -> None:
        self.client = client
        self.mode = mode
        self.setup, self.numbers = MODES[mode]
        self.vanishes = "qresync" in mode or "uidonly" in mode
        self.uids: list[int | None] = []
        self.flags: dict[int, frozenset[bytes]] = {}

    async def ask(self, command: str | bytes) -> list[bytes]:
        lines = await self.client.ask(command)
        word = (command if isinstance(command, str) else command.decode("latin-1")).split()[0]
        for line in lines[:-1]:
            self.take(line, quiet=word in _QUIET and not self.mode.startswith("notify"))
        assert lines[-1].startswith(b"OK"), (self.mode, command, lines)
        return lines

    def take(self, line: bytes, *, quiet: bool = False) -> None:
        if found := _EXPUNGE.fullmatch(line):
            assert not quiet, "EXPUNGE while numbers must stay"
            assert not self.vanishes, "EXPUNGE to a client that is to get VANISHED"
            self._forget(self.uids.pop(int(found[1]) - 1))
        elif found := _VANISHED.fullmatch(line):
            assert self.vanishes
            assert not quiet, "VANISHED while numbers must stay"
            for part in found[1].split(b","):
                first, _, last = part.partition(b":")
                for uid in range(int(first), int(last or first) + 1):
                    self._vanish(uid)
        elif found := _EXISTS.fullmatch(line):
            assert int(found[1]) >= len(self.uids), "EXISTS must not shrink a mailbox"
            self.uids += [None] * (int(found[1]) - len(self.uids))
        elif found := _UIDFETCH.fullmatch(line):
            assert self.mode.startswith("uidonly")
            self._fetched(int(found[1]), found[2])
        elif found := _FETCH.fullmatch(line):
            assert not self.mode.startswith("uidonly"), "a sequence number"
            number, uid = int(found[1]), _UID.search(found[2])
            assert 1 <= number <= len(self.uids), line
            if uid is not None:
                assert self.uids[number - 1] in (None, int(uid[1])), f"{line!r}, but it is {self.uids[number - 1]}"
                self.uids[number - 1] = int(uid[1])
            known = self.uids[number - 1]
            if known is not None:
                self._fetched(known, found[2])

    def _fetched(self, uid: int, items: bytes) -> None:
        if found := _FLAGS.search(items):
            self.flags[uid] = frozenset(found[1].split()) - {b"\\Recent"}

    def _forget(self, uid: int | None) -> None:
        if uid is not None:
            self.flags.pop(uid, None)

    def _vanish(self, uid: int) -> None:
        if uid in self.uids:
            self.uids.remove(uid)
            self._forget(uid)
            return
        # one whose UID was not learned lies between those that were
        above = next((at for at, known in enumerate(self.uids) if known is not None and known > uid), len(self.uids))
        assert above > 0, f"VANISHED {uid}, which never was here"
        assert self.uids[above - 1] is None, f"VANISHED {uid}, which never was here"
        del self.uids[above - 1]

    async def learn(self) -> None:
        """UIDs and flags of everything there is."""
        if "uidonly" in self.mode:
            before = len(self.uids)
            lines = await self.ask("UID SEARCH RETURN (ALL) UID 1:*")
            found = re.search(rb"ALL ([\d:,]+)", lines[0])
            # what changed while it ran is told behind it
            assert found or not before
            await self.ask("UID FETCH 1:* (FLAGS)")
            if found:
                self._learned(found[1])
        elif self.uids:
            await self.ask("UID FETCH 1:* (FLAGS)" if not self.numbers else "FETCH 1:* (UID FLAGS)")

    def _learned(self, text: bytes) -> None:
        pairs = [part.split(b":") for part in text.split(b",")]
        uids = [uid for pair in pairs for uid in range(int(pair[0]), int(pair[-1]) + 1)]
        there = [uid for uid in uids if uid in self.flags]
        self.uids = [*there, *[None] * (len(self.uids) - len(there))] if len(there) <= len(self.uids) else self.uids

    def choose(self, step: Step) -> tuple[int, str] | None:
        """A message it knows: its UID, and what to call it in a command."""
        known = [(number, uid) for number, uid in enumerate(self.uids, 1) if uid is not None]
        if not known:
            return None
        number, uid = known[step.message % len(known)]
        return (uid, str(number)) if step.by_number and self.numbers else (uid, f"UID {uid}")


class Play:
    """One example: a mailbox of its own, its model, and three pictures of it."""

    def __init__(self, workers: Sequence[Rig], name: str) -> None:
        self.workers = workers
        self.name = name
        self.model: dict[int, frozenset[bytes]] = {}
        self.pictures: list[Picture] = []

    async def begin(self, modes: Sequence[str]) -> None:
        for number, mode in enumerate(modes):
            client = await self.workers[number % len(self.workers)].login()
            if number == 0:
                await client.ok(f"CREATE {self.name}")
                for _ in range(3):
                    self._added(await client.append(MESSAGE, self.name))
            picture = Picture(client, mode)
            for command in picture.setup:
                await picture.ask(command)
            await picture.ask(f"SELECT {self.name}")
            await picture.learn()
            self.pictures.append(picture)

    def _added(self, lines: list[bytes], flags: frozenset[bytes] = frozenset()) -> None:
        found = re.search(rb"\[APPENDUID \d+ (\d+)\]", lines[-1])
        assert found
        self.model[int(found[1])] = flags

    async def step(self, step: Step) -> None:
        picture = self.pictures[step.session]
        match step.operation:
            case "append":
                text = b"APPEND %b (\\Seen) {%d+}\r\n" % (self.name.encode(), len(MESSAGE)) + MESSAGE
                self._added(await picture.ask(text), frozenset({b"\\Seen"}))
            case "deliver":
                rig = self.workers[step.session % len(self.workers)]
                self.model[await rig.deliver(MESSAGE, self.name)] = frozenset()
            case "noop":
                await picture.ask("NOOP")
            case "search":
                await picture.ask("SEARCH UNDELETED" if picture.numbers else "UID SEARCH UNDELETED")
            case "idle":
                await self._idle(picture)
            case _:
                chosen = picture.choose(step)
                if chosen is not None:
                    await self._on_message(picture, step.operation, *chosen)

    async def _idle(self, picture: Picture) -> None:
        """A short one: what was not told yet comes at once."""
        picture.client.send(b"i IDLE\r\nDONE\r\n")
        for line in (await picture.client.answer("i"))[:-1]:
            if line != b"+ idling":
                picture.take(line)

    async def _on_message(self, picture: Picture, operation: str, uid: int, name: str) -> None:
        by, _, number = name.rpartition(" ")
        prefix = f"{by} " if by else ""
        changes = {
            "flag": ("+FLAGS", b"\\Flagged"),
            "unflag": ("-FLAGS", b"\\Flagged"),
            "silent": ("+FLAGS.SILENT", b"$Label"),
            "delete": ("+FLAGS", b"\\Deleted"),
        }
        if operation in changes:
            item, flag = changes[operation]
            await picture.ask(f"{prefix}STORE {number} {item} ({flag.decode()})")
            if uid in self.model:
                now = self.model[uid]
                self.model[uid] = now - {flag} if item.startswith("-") else now | {flag}
                if "SILENT" in item and uid in picture.flags:
                    picture.flags[uid] |= {flag}
        elif operation == "expunge":
            await picture.ask(f"UID EXPUNGE {uid}")
            if b"\\Deleted" in self.model.get(uid, ()):
                del self.model[uid]
        elif operation == "move":
            await picture.ask(f"{prefix}MOVE {number} Trash")
            self.model.pop(uid, None)
        else:
            await picture.ask(f"{prefix}FETCH {number} (UID FLAGS)")

    async def end(self) -> None:
        for picture in self.pictures:
            await picture.ask("NOOP")
            for uid, flags in picture.flags.items():
                assert flags == self.model.get(uid), f"{picture.mode}: {uid} was told as {flags}"
            await picture.learn()
            assert picture.uids == sorted(self.model), picture.mode
            assert picture.flags == self.model, picture.mode
            await picture.client.close()


async def _example(workers: Sequence[Rig], name: str, modes: Sequence[str], order: Sequence[Step]) -> None:
    play = Play(workers, name)
    try:
        await play.begin(modes)
        for step in order:
            await play.step(step)
        await play.end()
    finally:
        for picture in play.pictures:
            await picture.client.close()


def test_every_session_sees_what_the_others_do(tmp_path: Path, tls_files: TlsFiles) -> None:
    """RFC 3501 s. 5.2, 7.4.1; RFC 7162 s. 3.2.10; RFC 9586 s. 3.3; RFC 5465 s. 6; RFC 9051 s. 7.5."""
    names = (f"M{number}" for number in count())

    async def start(stack: AsyncExitStack) -> list[Rig]:
        runtime = tmp_path / "run"
        return [await stack.enter_async_context(running(tmp_path, tls_files, runtime_dir=runtime)) for _ in range(2)]

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        workers = runner.run(start(stack))

        @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            modes=st.lists(st.sampled_from(sorted(MODES)), min_size=3, max_size=3),
            order=st.lists(steps, min_size=4, max_size=30),
        )
        def play(modes: list[str], order: list[Step]) -> None:
            runner.run(_example(workers, next(names), modes, order))

        try:
            play()
        finally:
            runner.run(stack.aclose())
