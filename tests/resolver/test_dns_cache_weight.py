"""Large DNS answers: whoever sends mail chooses what is asked, and may not fill the memory with the answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.dns_server import DnsServer

from pymx.config.model import Dns
from pymx.resolver.cache import TtlCache
from pymx.resolver.resolver import Resolver


async def test_an_answer_of_60_kilobytes_comes_whole_and_is_weighed(dns_server: DnsServer) -> None:
    """Over TCP, since it fits no datagram."""
    for n in range(230):
        dns_server.add("huge.test", "TXT", f'"{n:03}{"x" * 250}"')
    resolver = Resolver(Dns(nameservers=[dns_server.spec]))
    found = await resolver.txt("huge.test")
    assert len(found) == 230
    assert sum(map(len, found)) == 230 * 253
    assert resolver._cache.weight > 58_000


def test_heavy_answers_push_out_the_oldest() -> None:
    cache: TtlCache[int] = TtlCache(1000, 100)
    for n in range(10):
        cache.put(n, n, 60.0, 30)
    assert [n for n in range(10) if cache.get(n, 0.0) is not None] == [7, 8, 9]
    cache.put("whale", 1, 60.0, 5000)
    assert cache.get("whale", 0.0) == 1  # whoever waits for it finds it
    assert len(cache) == 1
    cache.put("next", 1, 60.0, 1)
    assert cache.get("whale", 0.0) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 60), st.floats(0, 10))
        | st.tuples(st.integers(0, 8), st.floats(0, 20)),
        max_size=60,
    )
)
def test_the_weight_is_that_of_what_is_kept(steps) -> None:
    """And never more than allowed, but for a single answer."""
    cache: TtlCache[int] = TtlCache(5, 100)
    for step in steps:
        if len(step) == 3:
            cache.put(step[0], 1, step[2], step[1])
        else:
            cache.get(step[0], step[1])
        weights = [weight for _, _, weight in cache._entries.values()]
        assert cache.weight == sum(weights)
        assert cache.weight <= 100 or len(weights) == 1
        assert len(weights) <= 5
