"""The active window on its own."""

from __future__ import annotations

from pymx.queue.item import QueueId
from pymx.queue.pace import Rules
from pymx.queue.place import Limits
from pymx.queue.state import Item
from pymx.queue.window import Start, Window

RULES = Rules(dead_first_s=300, dead_max_s=3600)
NOON = 20_000 * 86_400 + 43_200.0


def item(n: int) -> Item:
    return Item(n, QueueId(f"Q{n}"), "a.test", True, 0, (0,), NOON)


def test_what_waits_for_a_rate_goes_on_after_the_clock_was_set_back() -> None:
    """By an hour: it must not wait that hour."""
    window = Window(Limits(5, 100, per_minute=2), RULES, slots=10, placing=False, now=NOON)
    ahead = NOON + 3600
    for n in range(3):
        window.add(item(n), ahead)
    started = []
    while isinstance(found := window.next(ahead), Start):
        started.append(found)
        window.end(found, None, accepted=True, now=ahead)
    assert 1 <= len(started) < 3
    assert window.next(ahead) is None
    moments = [NOON + second for second in range(65)]
    assert any(isinstance(window.next(now), Start) for now in moments)
