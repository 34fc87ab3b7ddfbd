"""Rates per address: sliding, per /64, shared between processes, never for trusted peers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.accounts.banrules import Rules
from pymx.accounts.counters import Counters
from pymx.config.model import Limits
from pymx.net.rates import Limit, Rates

HERE = "192.0.2.1"


class Clock:
    now = 600_000.0

    def __call__(self) -> float:
        return self.now


def rates(clock: Clock, count: int = 3, **options) -> Rates:
    return Rates({"connections": Limit(count, 60)}, clock=clock, **options)


def test_one_too_many_is_refused_and_the_next_minute_is_another():
    clock = Clock()
    counted = rates(clock)
    assert [counted.allows("connections", HERE) for _ in range(4)] == [True] * 3 + [False]
    assert counted.is_over("connections", HERE)
    assert counted.allows("connections", "192.0.2.2")
    clock.now += 60
    assert not counted.allows("connections", HERE)  # the period slides
    clock.now += 60
    assert counted.allows("connections", HERE)


@pytest.mark.parametrize(("one", "other"), [("2001:db8::1", "2001:db8::ffff"), ("::ffff:192.0.2.7", "192.0.2.7")])
def test_addresses_that_count_as_one(one: str, other: str):
    counted = rates(Clock(), 1)
    assert counted.allows("connections", one)
    assert not counted.allows("connections", other)
    assert counted.allows("connections", "2001:db8:0:1::1")


@pytest.mark.parametrize("peer_ip", ["127.0.0.1", "2001:db8::7", ""])
def test_who_is_never_counted(peer_ip: str):
    counted = rates(Clock(), 1, trusted=["127.0.0.0/8", "2001:db8::/32"])
    assert all(counted.allows("connections", peer_ip) for _ in range(10))


def test_no_limit_and_unknown_kinds():
    counted = rates(Clock(), 0)
    assert all(counted.allows("connections", HERE) and counted.allows("other", HERE) for _ in range(10))
    assert not counted.is_over("connections", HERE)


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 6))
def test_never_more_than_the_limit_in_a_period(gaps: list[int], count: int):
    clock = Clock()
    counted = rates(clock, count)
    allowed: list[float] = []
    for gap in gaps:
        clock.now += gap
        if counted.allows("connections", HERE):
            allowed.append(clock.now)
        period = int(clock.now // 60)
        assert sum(int(t // 60) == period for t in allowed) <= count


async def test_processes_count_together_and_over_restarts(tmp_path: Path):
    clock = Clock()
    stores = [Counters(tmp_path / "limits.sqlite", Rules.of(Limits()), clock=clock) for _ in range(3)]
    one, two, later = (rates(clock, 4, exchange=store.add_rates) for store in stores)
    try:
        for counted in (one, two):
            assert counted.allows("connections", HERE)
            assert counted.allows("connections", HERE)
        for counted in (one, two, one):
            await counted.share()
        assert not two.allows("connections", HERE)
        assert two.is_over("connections", HERE)
        assert later.allows("connections", HERE)  # it has not heard of the others
        await later.share()
        assert not later.allows("connections", HERE)
    finally:
        for store in stores:
            await store.close()
