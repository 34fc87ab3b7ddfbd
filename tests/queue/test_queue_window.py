"""The active window on its own."""

from __future__ import annotations

from dataclasses import replace

from pymx.queue.item import QueueId
from pymx.queue.pace import Rules
from pymx.queue.place import Limits, Place
from pymx.queue.state import Item
from pymx.queue.window import Start, Window

RULES = Rules(dead_first_s=300, dead_max_s=3600)
NOON = 20_000 * 86_400 + 43_200.0


def item(n: int, destination: str = "a.test", *, fresh: bool = True) -> Item:
    return Item(n, QueueId(f"Q{n}"), destination, fresh, 0, (0,), NOON)


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


def test_destinations_of_new_mail_are_looked_up_before_those_of_deferred() -> None:
    """Old deferred mail never keeps new mail waiting, not by slow name servers either."""
    window = Window(Limits(5, 100), RULES, slots=10, placing=True, now=NOON)
    for n in range(50):
        window.add(item(n, f"old{n}.test", fresh=False), NOON)
    window.add(item(60, "new.test"), NOON)
    window.add(item(61, "old7.test"), NOON)
    assert window.to_place(3) == ["new.test", "old7.test", "old0.test"]
    rest = window.to_place(100)
    assert len(rest) == 48
    assert not window.to_place(100)


def test_a_guess_is_asked_again_soon() -> None:
    """While DNS fails each customer of a provider is a place of its own; not for an hour after it works again."""
    window = Window(Limits(5, 100), RULES, slots=10, placing=True, now=NOON)
    guess = Place("a.test", "a.test", Limits(5, 100), is_guess=True)
    for now, place in ((NOON, guess), (NOON + 61, replace(guess, site="big", is_guess=False))):
        window.add(item(1), now)
        assert window.to_place(9) == ["a.test"]
        window.place("a.test", place, now)
        found = window.next(now)
        assert isinstance(found, Start)
        window.end(found, None, accepted=True, now=now)
    window.add(item(1), NOON + 300)
    assert not window.to_place(9)
