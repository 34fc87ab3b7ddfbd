"""The cache: fresh, stale, bounded."""

from __future__ import annotations

from pymx.accounts.cache import MISS, TtlCache


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def cache(clock: Clock, **settings) -> TtlCache[str]:
    return TtlCache(**({"positive_s": 60, "negative_s": 10, "stale_s": 3600, "max_entries": 3} | settings), clock=clock)


def test_found_and_absent_have_their_own_times():
    clock = Clock()
    c = cache(clock)
    c.put("a", "A")
    c.put("b", None)
    assert c.get("a") == "A"
    assert c.get("b") is None
    assert c.get("c") is MISS
    clock.now += 10
    assert c.get("a") == "A"
    assert c.get("b") is MISS
    clock.now += 50
    assert c.get("a") is MISS


def test_only_what_was_found_is_used_stale_and_not_for_ever():
    clock = Clock()
    c = cache(clock)
    c.put("a", "A")
    c.put("b", None)
    clock.now += 3659
    assert c.stale("a") == "A"
    assert c.stale("b") is None
    clock.now += 1
    assert c.stale("a") is None


def test_guessed_addresses_do_not_push_out_real_ones():
    c = cache(Clock())
    c.put("a", "A")
    for i in range(100):
        c.put(f"guess{i}", None)
    assert c.get("a") == "A"
    assert len(c) == 4


def test_the_oldest_goes_first():
    c = cache(Clock())
    for key in "abcd":
        c.put(key, key)
    assert c.get("a") is MISS
    assert c.get("b") == "b"


def test_found_replaces_absent_and_the_other_way_round():
    c = cache(Clock())
    c.put("a", None)
    c.put("a", "A")
    assert c.get("a") == "A"
    c.put("a", None)
    assert c.get("a") is None
    assert c.stale("a") is None


def test_zero_seconds_remember_nothing():
    c = cache(Clock(), positive_s=0, negative_s=0)
    c.put("a", "A")
    c.put("b", None)
    assert c.get("a") is MISS
    assert c.get("b") is MISS
