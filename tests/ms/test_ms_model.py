"""Two processes and a foreign program on one account, one after the other, at the same time, and killed: in the end,
and whenever somebody looks, it is what a simple model says it may be (STORE.md s. 10).

Operations are drawn by Hypothesis. In `Together` all begin at once. A masked foreign change leaves the directories'
times as they were, as one does in the tick of the clock in which somebody else has just looked; it may be seen late,
but breaks nothing. No UID is ever told for two messages, and views keep their order (the workers look after both).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from ms_model import Model, Running
from ms_support import drop, files
from ms_workers import Op, Reply, Worker, fresh_dump

from pymx.mail.flags import ANSWERED, DELETED, SEEN
from pymx.ms import uidlist
from pymx.ms.owner import Owner

FOREIGN_LETTERS = {0: "", SEEN: "S", ANSWERED | SEEN: "RS"}
NAMES = ["INBOX", "One", "Two"]


@dataclass(frozen=True)
class Act:
    """An operation and who does it: worker 0 or 1, or 2, the foreign program. `pick` chooses among the messages."""

    actor: int
    op: Op
    pick: int = 0


@dataclass(frozen=True)
class Alone:
    act: Act
    masked: bool = False


@dataclass(frozen=True)
class Together:
    acts: tuple[Act, ...]


@dataclass(frozen=True)
class Killed:
    """The worker is killed so many microseconds after it was told."""

    act: Act
    after_us: int


Event = Alone | Together | Killed

_name = st.sampled_from(NAMES)
_other = st.sampled_from(NAMES[1:])
_flags = st.sampled_from([0, SEEN, ANSWERED, SEEN | DELETED])
_keywords = st.sampled_from([(), ("k",), ("$Work", "k")])
_own = st.one_of(
    st.builds(Op, st.sampled_from(["deliver", "look", "expunge"]), _name),
    st.builds(Op, st.just("deliver"), _name),
    st.builds(Op, st.just("append"), _name, flags=_flags, keywords=_keywords),
    st.builds(
        Op, st.just("flag"), _name, mode=st.sampled_from(["add", "remove", "set"]), flags=_flags, keywords=_keywords
    ),
    st.builds(Op, st.sampled_from(["copy", "move"]), _name, _name),
    st.builds(Op, st.sampled_from(["create", "create", "delete"]), _other),
    st.sampled_from([Op("rename", "One", "Two"), Op("rename", "Two", "One")]),
)
_foreign = st.builds(
    Op,
    st.sampled_from(["foreign_deliver", "foreign_flag", "foreign_unlink", "foreign_move"]),
    _name,
    _name,
    flags=st.sampled_from(list(FOREIGN_LETTERS)),
).filter(lambda op: op.kind != "foreign_move" or op.name != op.target)
_pick = st.integers(0, 5)


def _by(actor: int) -> st.SearchStrategy[Act]:
    return st.builds(Act, st.just(actor), _foreign if actor == 2 else _own, _pick)


_anybody = st.one_of(_by(0), _by(1), _by(2))
_events = st.one_of(
    st.builds(Alone, _anybody, st.booleans()),
    st.builds(Together, st.tuples(_by(0), _by(1))),
    st.builds(Together, st.tuples(_by(0), _by(2))),
    st.builds(Killed, st.one_of(_by(0), _by(1)), st.integers(0, 4000)),
)


class Foreign:
    """A program that knows Maildir and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.serial = 0

    def directory(self, name: str) -> Path:
        return self.root if name == "INBOX" else self.root / f".{name}"

    def do(self, op: Op) -> str:
        """What became of it: ok or nothing."""
        directory = self.directory(op.name)
        self.serial += 1
        try:
            if op.kind == "foreign_deliver":
                drop(directory, f"1700000000.M{self.serial}P1.foreign", op.token)
                return "ok"
            found = next((path for path in files(directory) if self._token(path) == op.token), None)
            if found is None:
                return "nothing"
            base, _, info = found.name.partition(":2,")
            letters = "".join(letter for letter in info if letter.islower())
            if op.kind == "foreign_unlink":
                found.unlink()
            elif op.kind == "foreign_flag":
                found.rename(directory / "cur" / f"{base}:2,{FOREIGN_LETTERS[op.flags]}{letters}")
            else:
                found.rename(self.directory(op.target) / "cur" / f"{base}:2,{FOREIGN_LETTERS[op.flags]}")
        except FileNotFoundError:
            return "nothing"  # no such mailbox, or moved or renamed under its hands
        return "ok"

    @staticmethod
    def _token(path: Path) -> str:
        return path.read_bytes().partition(b"\n")[0].decode().strip().removeprefix("Subject: ")

    def directories(self) -> list[Path]:
        roots = [self.root, *(path for path in self.root.glob(".[A-Z]*") if path.is_dir())]
        return [path / part for path in roots for part in ("cur", "new") if (path / part).is_dir()]

    @contextmanager
    def masked(self) -> Iterator[None]:
        before = {path: path.stat().st_mtime_ns for path in self.directories()}
        yield
        for path, mtime in before.items():
            os.utime(path, ns=(mtime, mtime))

    def show(self) -> None:
        """Time goes by: every directory looks changed."""
        self.serial += 1
        for path in self.directories():
            os.utime(path, ns=(time.time_ns(), time.time_ns() + self.serial))


@dataclass
class Rig:
    """The processes; an account for each example."""

    top: Path
    workers: list[Worker]
    numbers: Iterator[int] = field(default_factory=itertools.count)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    top = Path(tempfile.mkdtemp(prefix="pymx-model-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    rig = Rig(top, [Worker(top), Worker(top)])
    yield rig
    for worker in rig.workers:
        worker.close()
    shutil.rmtree(top)


class Example:
    """One drawn list of events, played."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.local_part = f"user{next(rig.numbers)}"
        self.root = rig.top / "mail" / "example.test" / self.local_part
        self.foreign = Foreign(self.root)
        self.model = Model()
        self.tokens: list[str] = []
        self.token_of: dict[tuple[int, int], str] = {}
        self.serials = itertools.count(1)
        self.told: list[object] = []
        self.begin(Act(0, Op("look")))()  # makes the account
        self.begin(Act(1, Op("look")))()

    def begin(self, act: Act) -> Callable[[], Reply]:
        return self.rig.workers[act.actor].begin(self.local_part, act.op)

    def resolve(self, act: Act) -> Act:
        if act.op.kind in ("deliver", "append", "foreign_deliver"):
            self.tokens.append(f"m{len(self.tokens)}")
            return replace(act, op=replace(act.op, token=self.tokens[-1]))
        token = self.tokens[-1 - act.pick % len(self.tokens)] if self.tokens else "none"
        return replace(act, op=replace(act.op, token=token))

    def learn(self, reply: Reply) -> None:
        self.told.append(reply.told)
        assert not reply.trouble, reply.trouble
        for at, token in reply.seen.items():
            assert self.token_of.setdefault(at, token) == token, f"{at} was {self.token_of[at]}, is {token}"

    def play(self, event: Event) -> None:
        match event:
            case Alone():
                self.alone(self.resolve(event.act), masked=event.masked)
            case Together():
                self.together([self.resolve(act) for act in event.acts])
            case Killed():
                self.killed(self.resolve(event.act), event.after_us)
        assert self.model.worlds, f"nothing the model knows of: {event}; told: {self.told[-2:]}"
        if self.model.unsettled() >= 2:
            self.settle()

    def settle(self) -> None:
        self.foreign.show()
        self.model.settle()

    def alone(self, act: Act, *, masked: bool) -> None:
        serial = next(self.serials)
        self.model.start(Running(act.op, serial))
        if act.actor < 2:
            reply = self.begin(act)()
            note(f"   {act.op} -> {reply.told}")
            self.learn(reply)
            self.model.told(serial, reply.told)
        elif masked:
            with self.foreign.masked():
                self.model.did(serial, self.foreign.do(act.op))
        else:
            self.model.did(serial, self.foreign.do(act.op))
            self.settle()

    def together(self, acts: list[Act]) -> None:
        runs = [Running(a.op, next(self.serials), told_counts=a.op.kind in ("deliver", "append")) for a in acts]
        self.model.start(*runs)
        waiting = [(run, self.begin(act)) for run, act in zip(runs, acts, strict=True) if act.actor < 2]
        for run, act in zip(runs, acts, strict=True):
            if act.actor == 2:
                self.model.did(run.serial, self.foreign.do(act.op))
        for run, answer in waiting:
            reply = answer()
            note(f"   {run.op} -> {reply.told}")
            self.learn(reply)
            self.model.told(run.serial, reply.told)

    def killed(self, act: Act, after_us: int) -> None:
        self.model.start(Running(act.op, next(self.serials), killed=True))
        self.begin(act)
        end = time.perf_counter() + after_us / 1e6
        while time.perf_counter() < end:
            pass
        self.rig.workers[act.actor].kill()
        for path in self.root.rglob("*.lock"):
            os.utime(path, (time.time() - 30, time.time() - 30))  # time goes by: a dead process' lock is stale

    def finish(self) -> None:
        """Both processes, and one that finds no index, see the same, and it is what the model says."""
        self.settle()
        dumps = []
        for actor in (0, 1):
            reply = self.begin(Act(actor, Op("dump")))()
            self.learn(reply)
            dumps.append(reply.told)
        for path in self.root.glob("pymx.index*"):
            path.unlink()
        reply = asyncio.run(fresh_dump(self.rig.top, Owner("example.test", self.local_part)))
        self.learn(reply)
        dumps.append(reply.told)
        assert dumps[0] == dumps[1], "the processes disagree"
        assert dumps[0] == dumps[2], "without the index it is another account"
        assert isinstance(dumps[0], dict)
        found = {name: sorted(messages.values()) for name, (_, messages) in dumps[0].items()}
        assert found in self.model.accounts(), (found, self.model.accounts())
        for path in self.root.rglob("dovecot-uidlist"):
            assert uidlist.parse(path.read_bytes()).clean
        shutil.rmtree(self.root)


def play(rig: Rig, events: list[Event]) -> None:
    example = Example(rig)
    for event in events:
        note(str(event))
        example.play(event)
    example.finish()


@pytest.mark.timeout(600)  # one that fails is minimised
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(_events, min_size=1, max_size=25))
def test_an_account_is_what_the_model_says(rig: Rig, events: list[Event]) -> None:
    play(rig, events)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@settings(max_examples=3000, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(_events, min_size=10, max_size=60))
def test_an_account_is_what_the_model_says_for_long(rig: Rig, events: list[Event]) -> None:
    play(rig, events)
