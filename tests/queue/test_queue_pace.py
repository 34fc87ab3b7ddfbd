"""How fast one place is sent to: connections, pauses, rates, warm-up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.config.model import Outbound
from pymx.queue.pace import FOREVER, Change, Pace, Rate, Rules
from pymx.queue.place import Kind, Limits, Strain

RULES = Rules(dead_first_s=300, dead_max_s=3600)
DOWN = Strain(Kind.DOWN, "connection refused (connect)")
SLOW = Strain(Kind.SLOW, "421 4.7.28 rate limited", 600.0)
NOON = 20_000 * 86_400 + 43_200.0


def pace(connections: int = 20, **limits: int) -> Pace:
    return Pace(Limits(connections, 100, **limits), RULES)


def run_round(pace: Pace, now: float, strain: Strain | None = None, *, accepted: bool = True) -> list[Change | None]:
    """As many attempts as are allowed, all at once."""
    begun = []
    while pace.free_at(now) <= now:
        begun.append(pace.begin(now))
    return [pace.end(now, began, strain, accepted=accepted and strain is None) for began in begun]


def test_connections_double_per_round_of_success_up_to_the_limit() -> None:
    """Slow start."""
    subject = pace()
    assert [len(run_round(subject, NOON + n)) for n in range(6)] == [2, 4, 8, 16, 20, 20]


def test_trouble_halves_connections_once_and_success_adds_one_per_round() -> None:
    """Additive increase, multiplicative decrease."""
    subject = pace()
    for n in range(5):
        run_round(subject, NOON + n)
    begun = [subject.begin(NOON) for _ in range(20)]
    for began in begun[:4]:
        subject.end(NOON, began, DOWN, accepted=False)
    assert int(subject.connections) == 10
    for began in begun[4:]:
        subject.end(NOON, began, None, accepted=False)
    assert [len(run_round(subject, NOON + n)) for n in range(3)] == [10, 10, 11]


def test_refusals_of_single_messages_change_nothing() -> None:
    """A 550 for a recipient says nothing about the server; it does not speed us up either."""
    subject = pace()
    assert [len(run_round(subject, NOON + n, accepted=False)) for n in range(3)] == [2, 2, 2]


def test_a_cohort_of_failures_makes_it_dead_and_one_message_finds_out() -> None:
    """Postfix's qmgr: as many failures in a row as there were connections. The wait doubles up to its maximum."""
    subject = pace()
    now, waits = NOON, []
    for _ in range(6):
        changes: list[Change | None] = []
        tries = 0
        while Change.DEAD not in changes:
            tried = run_round(subject, now, DOWN)
            changes += tried
            tries += len(tried)
        assert tries <= 3
        assert subject.free_at(now) == subject.paused_until
        waits.append(subject.paused_until - now)
        now = subject.paused_until
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    assert run_round(subject, now) == [Change.ALIVE]
    assert subject.deaths == 0


def test_any_answer_ends_a_row_of_failures() -> None:
    """One customer's server that answers is alive, whatever it says."""
    subject = pace()
    for n in range(20):
        began = subject.begin(NOON + n)
        assert subject.end(NOON + n, began, DOWN if n % 2 else None, accepted=False) is None
        assert subject.free_at(NOON + n) <= NOON + n


def test_a_provider_that_says_slower_is_left_alone_longer_each_time() -> None:
    """Twice as long within six hours, four hours at most; then one connection."""
    subject = pace()
    now, waits = NOON, []
    for _ in range(6):
        changes = run_round(subject, now, SLOW)
        assert changes.count(Change.SLOWED) == 1
        waits.append(subject.paused_until - now)
        now = subject.paused_until
        assert subject.free_at(now) <= now
        assert int(subject.connections) == 1
    assert waits == [600, 1200, 2400, 4800, 9600, 14_400]
    assert run_round(subject, now + 7 * 3600, SLOW) == [Change.SLOWED]
    assert subject.paused_until == now + 7 * 3600 + 600


def test_after_it_half_of_what_was_sent_per_minute_and_slowly_more() -> None:
    """A rate that was too much is not taken up again at once."""
    subject = pace()
    start = NOON
    for n in range(60):
        subject.end(start + n, subject.begin(start + n), None, accepted=True)
    subject.end(start + 60, subject.begin(start + 60), SLOW, accepted=False)
    counts, now = [], subject.paused_until
    for _ in range(20):
        sent, end = 0, now + 60
        while now < end:
            at = max(now, subject.free_at(now))
            if at >= end:
                now = end
                break
            now = at
            subject.end(now, subject.begin(now), None, accepted=True)
            sent += 1
            now += 0.01
        counts.append(sent)
        if sent > 200:
            break
    assert counts[0] <= 31
    assert counts[3] <= 45
    assert counts[-1] > 60


def send(subject: Pace, since: float, until: float, per_minute: int) -> tuple[list[float], float]:
    """Whatever it lets through, to somebody who complains of more than so many a minute: when, up to the complaint."""
    sent: list[float] = []
    now = since
    while (now := max(now, subject.free_at(now))) < until:
        sent.append(now)
        too_much = len(sent) > per_minute and now - sent[-per_minute - 1] < 60
        subject.end(now, subject.begin(now), SLOW if too_much else None, accepted=not too_much)
        if too_much:
            break
        now += 0.01
    return sent, now


def test_a_rate_that_was_too_much_twice_is_kept_below_for_long() -> None:
    """Else each time it grew back the same complaint would come, and a pause twice as long."""
    subject = pace()
    _, now = send(subject, NOON, NOON + 3600, 60)
    _, now = send(subject, now, now + 3600, 60)
    paused_until = subject.paused_until
    assert paused_until == now + 1200
    again = pace()
    again.restore(subject.saved(), now)
    for kept in (subject, again):
        sent, end = send(kept, paused_until, paused_until + 8 * 1200, 60)
        assert end >= paused_until + 8 * 1200, "it complained"
        assert len(sent) > 0.75 * 60 * 8 * 20
    # then more is tried
    _, end = send(subject, end, end + 600, 60)
    assert subject.paused_until == end + 2400


def test_a_complaint_right_after_a_pause_is_no_measure_of_the_rate() -> None:
    """Who complains of everything for an hour is not sent one a minute for hours."""
    subject = pace()
    now = NOON
    for _ in range(4):
        subject.end(now, subject.begin(now), SLOW, accepted=False)
        now = subject.paused_until
    sent, _ = send(subject, now, now + 600, 1000)
    assert len(sent) > 300


def test_a_complaint_at_a_rate_that_is_not_used_is_no_measure_of_it() -> None:
    """A message now and then, and a complaint: what comes in a heap an hour later is not sent one a minute."""
    subject = pace()
    _, now = send(subject, NOON, NOON + 3600, 60)
    for _ in range(2):
        now = subject.paused_until + 1800
        subject.end(now, subject.begin(now), SLOW, accepted=False)
    sent, _ = send(subject, subject.paused_until, subject.paused_until + 1200, 60)
    assert len(sent) > 300


@given(
    st.integers(1, 300), st.sampled_from([60.0, 3600.0]),
    st.lists(st.floats(0, 400, allow_nan=False), min_size=1, max_size=400),
)  # fmt: skip
def test_a_rate_holds_within_any_span(n: int, span_s: float, waits: list[float]) -> None:
    """However demand comes."""
    rate, now, sent = Rate(n, span_s), NOON, []
    for wait_s in waits:
        now = max(now, rate.free_at())
        rate.take(now)
        sent.append(now)
        if wait_s > 200:
            now += wait_s - 200
    for i in range(len(sent) - n):
        assert sent[i + n] - sent[i] >= span_s * (1 - 1e-9)


def test_a_rate_is_used_up() -> None:
    """The limit is reached, not only kept."""
    for n in (1, 2, 7, 60, 500):
        rate, now, sent = Rate(n, 60.0), NOON, 0
        while (now := max(now, rate.free_at())) < NOON + 60:
            rate.take(now)
            sent += 1
        assert sent == n


def test_warm_up_counts_by_day_and_survives_a_restart() -> None:
    """[outbound] warm_up_since: a ceiling that grows, over restarts."""
    outbound = Outbound(warm_up_since="2024-10-04", warm_up_first=10, warm_up_growth=50, warm_up_days=30)
    rules = Rules.of(outbound)
    day = 20_000 * 86_400.0
    assert [rules.ceiling(day + n * 86_400) for n in (-1, 0, 1, 2, 29, 30)] == [10, 10, 15, 22, 1278340, 0]
    subject = Pace(Limits(5, 10), rules, warms_up=True)
    for n in range(6):
        subject.end(day + n, subject.begin(day + n), None, accepted=True)
    again = Pace(Limits(5, 10), rules, warms_up=True)
    again.restore(subject.saved(), day + 100)
    for n in range(4):
        assert again.free_at(day + 100 + n) <= day + 100 + n
        again.end(day + 100 + n, again.begin(day + 100 + n), None, accepted=True)
    assert again.free_at(day + 200) == day + 86_400
    assert "warm-up: 10 messages a day" in again.why(day + 200)
    assert again.free_at(day + 86_400) <= day + 86_400


def test_pauses_and_rates_survive_a_restart() -> None:
    """A restart is no way around a provider's wish."""
    subject = pace(per_hour=10)
    for n in range(9):
        now = max(NOON + n, subject.free_at(NOON + n))
        subject.end(now, subject.begin(now), None, accepted=True)
    subject.end(now, subject.begin(now), SLOW, accepted=False)
    again = pace(per_hour=10)
    again.restore(subject.saved(), now)
    assert again.free_at(now) == subject.free_at(now) == now + 600
    assert again.why(now) == SLOW.reason
    assert again.free_at(now + 600) == pytest.approx(max(now + 600, subject.free_at(now + 600)), abs=60)
    assert not again.is_plain(now)


@given(st.dictionaries(st.sampled_from(list(pace().saved())), st.none() | st.integers() | st.text() | st.floats()))
def test_a_saved_state_of_any_content_is_survived(saved: dict[str, object]) -> None:
    """A file from elsewhere stops nothing for more than a day."""
    subject = pace(per_minute=5)
    subject.restore(saved, NOON)
    assert subject.free_at(NOON + 90_000) <= NOON + 90_000 or subject.free_at(NOON + 90_000) == FOREVER


def test_forgiveness_lets_one_try_start() -> None:
    """pymxctl queue retry."""
    subject = pace()
    while subject.free_at(NOON) <= NOON:
        run_round(subject, NOON, DOWN)
    subject.forgive()
    assert len(run_round(subject, NOON)) == 1
    assert run_round(subject, NOON + 1, SLOW)[0] is Change.SLOWED
    subject.forgive()
    assert [len(run_round(subject, NOON + n)) for n in (2, 3)] == [1, 2]
    assert run_round(subject, NOON + 4, SLOW)[0] is Change.SLOWED


def test_a_long_queue_comes_back_within_an_hour_of_a_slow_down() -> None:
    """The rate learned is a guess and grows with success; what waited for it must not be put off for days."""
    subject = pace()
    subject.end(NOON, subject.begin(NOON), SLOW, accepted=False)
    times = [subject.postponed_until(NOON) for _ in range(10_000)]
    assert min(times) == NOON + 600
    assert max(times) <= NOON + 600 + 3700
    assert len(set(times)) > 30  # and not all at once


def test_a_clock_that_is_set_back_keeps_nothing_waiting_until_it_has_come_there_again() -> None:
    """It was a year ahead for a moment: pauses and rates move with it."""
    ahead = NOON + 365 * 86_400
    paused, rated = pace(), pace(per_minute=1)
    for subject in (paused, rated):
        subject.free_at(ahead)
    paused.end(ahead, paused.begin(ahead), SLOW, accepted=False)
    rated.end(ahead, rated.begin(ahead), None, accepted=True)
    assert paused.free_at(ahead) == ahead + 600
    assert paused.free_at(NOON) <= NOON + 600
    assert NOON < rated.free_at(NOON) <= NOON + 61
    assert rated.postponed_until(NOON) <= NOON + 61


def test_a_warm_up_may_grow_without_end() -> None:
    """Settings that are generous for long enough give numbers no float can hold."""
    day = int(NOON // 86_400)
    rules = Rules(300, 3600, warm_up_day=day - 399, warm_up_first=50, warm_up_growth=1000, warm_up_days=400)
    assert rules.ceiling(NOON) >= 1_000_000


@pytest.mark.parametrize("strain", [DOWN, SLOW])
def test_trouble_of_long_ago_is_forgotten(strain: Strain) -> None:
    """A host that nobody writes to any more is not remembered, and written to disk, for ever."""
    subject = pace()
    for n in range(3):
        began = subject.begin(NOON + n)
        subject.end(NOON + n, began, strain, accepted=False)
    assert subject.paused_until > NOON
    assert not subject.is_plain(subject.paused_until + 3600)
    assert subject.is_plain(subject.paused_until + 25 * 3600)
