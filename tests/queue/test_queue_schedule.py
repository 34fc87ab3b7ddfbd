"""When a message is tried again, told of, given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.config.model import Outbound
from pymx.queue.schedule import has_expired, next_try, notice_is_due, retry_wait_s

OUTBOUND = Outbound(retry_first_s=300, retry_max_s=14_400, lifetime_s=432_000, delay_notice_s=14_400)


@pytest.mark.parametrize(
    ("attempts", "wait_s"), [(1, 300), (2, 600), (3, 1200), (4, 2400), (5, 4800), (6, 9600), (7, 14_400), (40, 14_400)]
)
def test_the_wait_doubles_up_to_its_maximum(attempts: int, wait_s: float) -> None:
    """RFC 5321 s. 4.5.4.1: at least 30 minutes after the first tries; growing gaps."""
    assert retry_wait_s(OUTBOUND, attempts, 0.5) == wait_s


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_a_fifth(attempts: int, dice: float) -> None:
    """Messages that failed together do not come back together, and none waits for ever."""
    middle = retry_wait_s(OUTBOUND, attempts, 0.5)
    assert 0.8 * middle <= retry_wait_s(OUTBOUND, attempts, dice) <= 1.2 * middle


@given(st.integers(1, 100), st.floats(0, 432_000, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_no_try_is_planned_past_the_end_of_the_lifetime(attempts: int, age_s: float, dice: float) -> None:
    """The last try falls on the end of the lifetime, so the sender is told then and not hours later."""
    at = next_try(OUTBOUND, arrived_s=1000.0, attempts=attempts, now=1000.0 + age_s, dice=dice)
    assert 1000.0 + age_s < at <= 1000.0 + 432_000


def test_a_message_expires_at_the_end_of_its_lifetime() -> None:
    """[outbound] lifetime_s."""
    assert not has_expired(OUTBOUND, 1000.0, 432_999.9)
    assert has_expired(OUTBOUND, 1000.0, 433_000.0)


def test_the_delay_notice_is_due_once() -> None:
    """[outbound] delay_notice_s; 0 is never."""
    assert not notice_is_due(OUTBOUND, 0.0, 14_399.0, told=False)
    assert notice_is_due(OUTBOUND, 0.0, 14_400.0, told=False)
    assert not notice_is_due(OUTBOUND, 0.0, 20_000.0, told=True)
    assert not notice_is_due(Outbound(delay_notice_s=0), 0.0, 1e9, told=False)
