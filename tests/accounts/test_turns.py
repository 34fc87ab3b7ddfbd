"""Whose password is checked next."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wait import wait_until

from pymx.accounts.turns import Crowded, Turns


class Row:
    """Takers that hold their turn until they are told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self.at_work: list[str] = []
        self.refused: list[str] = []
        self._go_on: dict[str, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, name: str, source: str, *, first: bool = False) -> None:
        self._go_on[name] = asyncio.Event()
        self.tasks.append(asyncio.ensure_future(self._take(name, source, first)))
        for _ in range(3):
            await asyncio.sleep(0)

    async def _take(self, name: str, source: str, first: bool) -> None:
        try:
            await self.turns.take(source, first=first)
        except Crowded:
            self.refused.append(name)
            return
        self.order.append(name)
        self.at_work.append(source)
        await self._go_on[name].wait()
        self.at_work.remove(source)
        self.turns.give(source)

    async def end(self, name: str) -> None:
        self._go_on[name].set()
        for _ in range(5):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        for event in self._go_on.values():
            event.set()
        await asyncio.gather(*self.tasks)


async def test_one_address_has_one_check_at_a_time():
    row = Row(Turns(4, 10))
    for name in ("a1", "a2", "a3"):
        await row.come(name, "a")
    await row.come("b1", "b")
    assert row.order == ["a1", "b1"]
    await row.end("a1")
    assert row.order == ["a1", "b1", "a2"]
    await row.end_all()


async def test_nobody_in_particular_may_have_several():
    row = Row(Turns(2, 10))
    for name in ("x", "y", "z"):
        await row.come(name, "")
    assert row.order == ["x", "y"]
    await row.end_all()


async def test_addresses_with_a_good_login_go_first():
    row = Row(Turns(1, 10))
    await row.come("running", "a")
    await row.come("stranger", "b")
    await row.come("owner", "c", first=True)
    await row.end("running")
    assert row.order == ["running", "owner"]
    await row.end("owner")
    assert row.order[-1] == "stranger"
    await row.end_all()


async def test_a_full_queue_turns_strangers_away_and_makes_room_for_others():
    row = Row(Turns(1, 2))
    await row.come("running", "a")
    await row.come("b", "b")
    await row.come("c", "c")
    await row.come("d", "d")
    assert row.refused == ["d"]
    await row.come("owner", "e", first=True)
    assert row.refused == ["d", "c"]
    await row.come("owner2", "f", first=True)
    await row.come("owner3", "g", first=True)
    assert row.refused == ["d", "c", "b", "owner3"]
    await row.end_all()


async def test_one_address_does_not_fill_the_queue_for_others():
    """One guesser with a hundred connections, and the others still log in."""
    row = Row(Turns(1, 3))
    for name in ("running", "a1", "a2", "a3"):
        await row.come(name, "a")
    await row.come("b", "b")
    assert row.refused == ["a3"]
    await row.come("c", "")
    assert row.refused == ["a3", "a2"]
    await row.come("a4", "a")
    assert row.refused == ["a3", "a2", "a4"]
    await row.end("running")
    await row.end("a1")
    assert row.order == ["running", "a1", "b"]
    await row.end_all()


async def test_who_stops_waiting_leaves_the_row():
    row = Row(Turns(1, 10))
    await row.come("running", "a")
    await row.come("gone", "b")
    await row.come("next", "c")
    gone = row.tasks.pop(1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await row.end("running")
    assert row.order == ["running", "next"]
    await row.end_all()


async def test_a_turn_given_to_somebody_who_just_left_goes_on():
    turns = Turns(1, 10)
    await turns.take("a", first=False)
    gone = asyncio.ensure_future(turns.take("b", first=False))
    await asyncio.sleep(0)
    after = asyncio.ensure_future(turns.take("c", first=False))
    await asyncio.sleep(0)
    turns.give("a")  # b's turn now, and it does not know yet
    gone.cancel()
    await wait_until(after.done)
    with pytest.raises(asyncio.CancelledError):
        await gone


@given(
    comers=st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans(), st.booleans()), max_size=30),
    slots=st.integers(1, 3),
)
def test_everybody_is_served_or_refused_and_never_two_of_one_address(comers, slots: int):
    async def play() -> None:
        turns = Turns(slots, 5)
        row = Row(turns)
        ending = []
        for i, (source, first, end_one) in enumerate(comers):
            await row.come(str(i), source, first=first)
            named = [s for s in row.at_work if s]
            assert len(named) == len(set(named))
            assert len(row.at_work) <= slots
            if end_one and row.order:
                ending.append(row.order[0])
                await row.end(row.order[0])
        await asyncio.wait_for(row.end_all(), 20)
        assert len(row.order) + len(row.refused) == len(comers)

    asyncio.run(play())
