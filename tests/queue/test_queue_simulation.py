"""The scheduler under load, without sockets or waiting: the window, the paces and the state database, with a clock of
its own and remotes that are functions."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from queue_samples import ALICE

from pymx.config.model import Outbound
from pymx.mail.address import Address
from pymx.mail.envelope import Recipient
from pymx.queue.item import Outcome, QueueId, Result
from pymx.queue.pace import Change, Rules
from pymx.queue.place import Kind, Limits, Place, Strain
from pymx.queue.schedule import next_try
from pymx.queue.state import Finished, NewMessage, State
from pymx.queue.window import WINDOW, Postpone, Start, Window

BEGIN = 20_000 * 86_400.0
SLOTS = 50
EVERYBODY = Limits(5, 100)
LIMITS = {
    "big": Limits(5, 50),
    "hourly": Limits(5, 20, per_hour=600),
    "touchy": Limits(5, 20),
    "down": Limits(5, 20),
}
TOUCHY_PER_MINUTE = 60
DOWN_UNTIL = BEGIN + 3 * 3600
OUTBOUND = Outbound()


@dataclass
class World:
    """Remotes, and what they saw. Domains are named by their provider: big12.test, or own12.test."""

    dice: random.Random
    active: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    begun: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    arrived_at: dict[str, float] = field(default_factory=dict)
    paused: dict[str, float] = field(default_factory=dict)

    def place(self, domain: str) -> Place:
        name = domain.rstrip("0123456789.tes")
        if name in LIMITS:
            return Place(name, name, LIMITS[name], direct=True)
        return Place(f"mx.{domain}", f"mx.{domain}", EVERYBODY, direct=True)

    def begin(self, site: str, now: float) -> tuple[float, Strain | None]:
        """How long the try takes, and what it leads to."""
        assert now >= self.paused.get(site, 0.0), f"{site} asked for a pause"
        self.active[site] += 1
        self.peak[site] = max(self.peak[site], self.active[site])
        self.begun[site].append(now)
        if site == "down" and now < DOWN_UNTIL:
            return 30.0, Strain(Kind.DOWN, "timed out (connect)")
        recent = self.begun[site][-TOUCHY_PER_MINUTE - 1 :]
        if site == "touchy" and len(recent) > TOUCHY_PER_MINUTE and now - recent[0] < 60:
            return 0.3, Strain(Kind.SLOW, "421 4.7.28 rate limited", 600.0)
        return self.dice.uniform(0.1, 0.6), None


class Simulation:
    """What the manager does, at the time of a heap of events instead of the clock's."""

    def __init__(self, path: Path, seed: int) -> None:
        self.world = World(random.Random(seed))
        self.state = State(path)
        self.state.open(create=True)
        rules = Rules(dead_first_s=300, dead_max_s=3600)
        self.window = Window(EVERYBODY, rules, slots=SLOTS, placing=True)
        self.now = BEGIN
        self.active = 0
        self.largest_window = 0
        self.postponed = 0
        self.added = 0
        self.changes: Counter[tuple[Change, str]] = Counter()
        self._events: list[tuple[float, int, object]] = []
        self._number = 0
        self._after_id, self._after_due = 0, (0.0, 0)
        self._ends: list[Finished] = []

    def add(self, count: int, domains: list[str], *, deferred: bool = False) -> list[str]:
        names = []
        self.added += count
        with self.state.transaction(durable=False):
            for n in range(count):
                self._number += 1
                name = QueueId(f"Q{self._number:07}")
                domain = domains[n % len(domains)]
                rows = [(0, domain, f"x@{domain}", domain)]
                self.state.insert([NewMessage(name, str(ALICE), "", self.now, 1000, False, rows)])
                names.append(name)
            if deferred:
                self.state.db.execute("UPDATE delivery SET fresh = 0, attempts = 3 WHERE queue_id >= ?", (names[0],))
        return names

    def at(self, when: float, event: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def look(self) -> None:
        self._record()
        more = True
        while more:
            want = self.window.want(self.now, lease=1, after_id=self._after_id, after_due=self._after_due)
            with self.state.transaction(durable=False):
                taken = self.state.take(want)
            self._after_id, self._after_due = taken.after_id, taken.after_due
            self.window.taken(taken)
            for item in taken.items:
                self.window.add(item, self.now)
            for destination in self.window.to_place(20):
                self.at(self.now + 0.05, destination)
            more = taken.more or (bool(want.refill) and bool(taken.items) and self.window.hungry)
            self.largest_window = max(self.largest_window, self.window.fresh + self.window.deferred)

    def start(self, after: Start | None = None) -> None:
        while self.active < SLOTS and (found := self.window.next(self.now, after)) is not None:
            after = None
            if isinstance(found, Postpone):
                self.postponed += 1
                assert found.until_s > self.now
                self._ends.append(Finished(found.item, self.now, [], found.until_s, postponed=found.reason))
                continue
            self.active += 1
            took_s, strain = self.world.begin(found.place.site, self.now)
            self.at(self.now + took_s, (found, strain))

    def ended(self, start: Start, strain: Strain | None) -> None:
        site, item = start.place.site, start.item
        self.active -= 1
        self.world.active[site] -= 1
        result = Result.DELIVERED if strain is None else Result.DEFERRED
        for noted in self.window.end(start, strain, accepted=strain is None, now=self.now):
            self.changes[noted.change, noted.name] += 1
            if noted.change is not Change.ALIVE:
                self.world.paused[site] = noted.pace.paused_until
        if strain is None:
            self.world.arrived_at[item.queue_id] = self.now
        outcome = Outcome(Recipient(Address("x", "y.test")), result, "2.0.0", "ok")
        next_s = next_try(OUTBOUND, arrived_s=item.arrived_s, attempts=item.attempts + 1, now=self.now, dice=0.5)
        self._ends.append(Finished(item, self.now, [(0, outcome)], next_s, whole=True))

    def _record(self) -> None:
        with self.state.transaction(durable=False):
            self.state.record(self._ends)
        self._ends.clear()

    def run(self, until: float) -> Iterator[float]:
        """Time passes; gives the time once a simulated minute."""
        minute, looked = self.now, 0.0
        self.look()
        while self.now < until:
            self.start()
            next_poll = looked + 1.0 if self.window.fresh + self.window.deferred or self.active else looked + 30.0
            when = min(self._events[0][0] if self._events else until, max(self.now, next_poll), until)
            self.now = max(self.now, when)
            while self._events and self._events[0][0] <= self.now:
                event = heapq.heappop(self._events)[2]
                if isinstance(event, str):
                    excess = self.window.place(event, self.world.place(event), self.now)
                    with self.state.transaction(durable=False):
                        self.state.void_leases([item.delivery for item in excess])
                    for destination in self.window.to_place(1):
                        self.at(self.now + 0.05, destination)
                else:
                    start, strain = event  # type: ignore[misc]
                    self.ended(start, strain)
                    self.start(start)
            if self.now >= next_poll or (self.window.hungry and len(self._ends) >= 20):
                looked = self.now
                self.look()
            if self.now >= minute + 60:
                minute = self.now
                yield self.now
                looked = 0.0  # whoever added mail has called
        self._record()

    def close(self) -> None:
        self.state.close()


def most_within(times: list[float], span_s: float) -> int:
    most, window = 0, deque[float]()
    for at in times:
        window.append(at)
        while window[0] <= at - span_s:
            window.popleft()
        most = max(most, len(window))
    return most


@pytest.mark.parametrize(
    ("messages", "domains", "fresh_percent"),
    [
        (6_000, 400, 50),
        (6_000, 400, 0),
        pytest.param(100_000, 2000, 50, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
        pytest.param(100_000, 2000, 0, marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_every_limit_holds_and_nobody_starves(
    tmp_path: Path, messages: int, domains: int, fresh_percent: int
) -> None:  # fmt: skip
    """A heap of mail for many domains, of which a provider is down for three hours, one takes 600 an hour, and one
    complains of more than 60 a minute. New mail meanwhile is delivered within seconds, whatever old mail waits, and
    does not wait longer than the slots need for the new mail before it."""
    simulation = Simulation(tmp_path / "state.sqlite", messages)
    shares = {"big": 0.3, "hourly": 0.02, "touchy": 0.05, "down": 0.13, "own": 0.5}
    try:
        for name, share in shares.items():
            count = int(messages * share)
            named = [f"{name}{n}.test" for n in range(max(1, int(domains * share)))]
            fresh = count * fresh_percent // 100
            simulation.add(count - fresh, named, deferred=True)
            if fresh:
                simulation.add(fresh, named)
        new: list[str] = []
        waits: list[float] = []
        for now in simulation.run(BEGIN + 30 * 3600):
            if len(new) < 180:
                for domain in (f"own{len(new) % 5}.test", f"fresh{len(new)}.test"):
                    new += simulation.add(1, [domain])
                waits.append(now)
            if not simulation.state.count():
                break
        world = simulation.world
        assert simulation.state.count() == 0
        assert len(world.arrived_at) == simulation.added
        # no limit was passed
        assert world.peak["big"] == LIMITS["big"].connections
        for site, peak in world.peak.items():
            assert peak <= LIMITS.get(site, EVERYBODY).connections, site
        assert most_within(world.begun["hourly"], 3600) <= 600
        assert simulation.largest_window <= 2 * WINDOW
        # what is down was asked rarely, what complained was left alone (begin() asserts the pauses)
        tries_while_down = [t for t in world.begun["down"] if t < DOWN_UNTIL]
        assert 5 <= len(tries_while_down) <= 30
        assert simulation.changes[Change.DEAD, "down"] <= 10
        assert simulation.changes[Change.ALIVE, "down"] == 1
        assert 1 <= simulation.changes[Change.SLOWED, "touchy"] <= 8
        # nobody starved
        arrived = [world.arrived_at[name] for name in new]
        late = [at - waits[n // 2] for n, at in enumerate(arrived)]
        through = BEGIN + (messages * 0.4 / SLOTS if fresh_percent else 0.0)
        assert all(wait < 5 or at < through for wait, at in zip(late, arrived, strict=True))
        healthy = max(at for site in ("big",) for at in world.begun[site])
        assert healthy - BEGIN < messages * 0.3 / 5 * 0.6 + 60
    finally:
        simulation.close()


@pytest.mark.parametrize("fresh_percent", [0, 50])
def test_who_asked_for_less_gets_nearly_what_he_takes(tmp_path: Path, fresh_percent: int) -> None:
    """A long queue for a place that complains of more than 60 a minute: after a few complaints it is sent a little less
    than that, not pause after pause."""
    simulation = Simulation(tmp_path / "state.sqlite", 5)
    count = 5_000
    try:
        named = [f"touchy{n}.test" for n in range(100)]
        simulation.add(count - count * fresh_percent // 100, named, deferred=True)
        if fresh_percent:
            simulation.add(count * fresh_percent // 100, named)
        for _ in simulation.run(BEGIN + 3 * 3600):
            if not simulation.state.count():
                break
        assert len(simulation.world.arrived_at) == count
        assert 1 <= simulation.changes[Change.SLOWED, "touchy"] <= 3
        # the first hour has the complaints and their pauses
        steady = [at for at in simulation.world.begun["touchy"] if 3600 <= at - BEGIN < 2 * 3600]
        assert len(steady) > 0.75 * TOUCHY_PER_MINUTE * 60
    finally:
        simulation.close()
