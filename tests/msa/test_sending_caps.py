"""Sending caps: counted over restarts and by all processes, told to the user in words and to the postmaster once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.accounts.account import Account
from pymx.accounts.banrules import Rules
from pymx.accounts.counters import Counters
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.accounts.sending import Sending, SendingCapped
from pymx.config.model import Limits
from pymx.mail.envelope import Envelope
from pymx.msa.capnotice import CapNotice
from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import SmtpError
from pymx.spool import Content

ALICE = "alice@example.test"
HOUR_S = 3600


class Clock:
    now = 1_000_000.0 * HOUR_S

    def __call__(self) -> float:
        return self.now


Open = Callable[..., Sending]


@pytest.fixture
async def open_sending(tmp_path: Path) -> AsyncIterator[Open]:
    async with contextlib.AsyncExitStack() as stack:

        def start(clock: Clock, *, messages: int = 3, new: int = 4) -> Sending:
            limits = Limits(account_messages_per_day=messages, account_new_recipients_per_day=new)
            counters = Counters(tmp_path / FILE_NAME, Rules.of(limits), clock=clock)
            stack.push_async_callback(counters.close)
            return Sending(limits, counters)

        yield start


async def capped(sending: Sending, recipients: list[str], account: str = ALICE) -> SendingCapped:
    with pytest.raises(SendingCapped) as raised:
        await sending.count(account, recipients)
    return raised.value


async def test_so_many_messages_in_24_hours(open_sending: Open):
    clock = Clock()
    sending = open_sending(clock)
    for _ in range(3):
        await sending.check(ALICE)
        await sending.count(ALICE, [])
        clock.now += HOUR_S
    refused = await capped(sending, [])
    assert refused.text == "3 messages sent within 24 hours, which is the limit; try again in 21 hours"
    assert not refused.for_good
    await sending.count("bob@example.test", [])
    clock.now += 20 * HOUR_S
    await capped(sending, [])
    clock.now += HOUR_S
    await sending.count(ALICE, [])


async def test_only_new_recipients_elsewhere_count(open_sending: Open):
    clock = Clock()
    sending = open_sending(clock, messages=0)
    await sending.count(ALICE, ["a@far.test", "b@far.test", "a@far.test"])
    for _ in range(10):
        await sending.count(ALICE, ["a@far.test", "b@far.test"])
    await sending.count(ALICE, ["c@far.test", "d@far.test"])
    refused = await capped(sending, ["a@far.test", "e@far.test"])
    assert "4 new recipients written to within 24 hours, and 4 is the limit" in refused.text
    await sending.count(ALICE, ["a@far.test"])
    clock.now += 25 * HOUR_S
    await sending.count(ALICE, ["e@far.test"])


async def test_one_message_with_more_than_ever_goes_is_refused_for_good(open_sending: Open):
    sending = open_sending(Clock())
    refused = await capped(sending, [f"x{i}@far.test" for i in range(5)])
    assert refused.for_good
    assert refused.text == "5 new recipients in one message; the limit is 4 in 24 hours"


async def test_all_processes_count_together_and_one_tells_the_administrator(open_sending: Open):
    clock = Clock()
    one, two = open_sending(clock), open_sending(clock)
    for sending in (one, two, one):
        await sending.count(ALICE, [])
    told = [(await capped(sending, [])).tell for sending in (one, two, two, one)]
    assert told == [True, False, False, False]
    clock.now += 25 * HOUR_S
    for sending in (one, two, one):
        await sending.count(ALICE, [])
    assert (await capped(two, [])).tell


async def test_counts_outlive_a_restart(open_sending: Open):
    clock = Clock()
    for _ in range(3):
        await open_sending(clock).count(ALICE, ["a@far.test"])
    assert not (await capped(open_sending(clock), [])).for_good


async def test_no_caps(open_sending: Open, tmp_path: Path):
    sending = open_sending(Clock(), messages=0, new=0)
    for i in range(50):
        await sending.count(ALICE, [f"{i}@far.test"])
    assert not (tmp_path / FILE_NAME).exists()


@given(st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 6), max_size=4)), max_size=40), st.integers(1, 5))
def test_never_more_than_the_caps_in_any_24_hours(tmp_path_factory: pytest.TempPathFactory, steps, limit: int):
    clock = Clock()
    path = tmp_path_factory.mktemp("caps") / FILE_NAME
    state = LimitState(path, Rules.of(Limits()))
    vars(state)["_key"] = b"k" * 32
    sending = Sending(
        Limits(account_messages_per_day=limit, account_new_recipients_per_day=limit),
        Counters(path, Rules.of(Limits()), clock=clock),
    )
    written: set[int] = set()
    sent: list[tuple[float, int]] = []
    for hours, to in steps:
        clock.now += hours * HOUR_S
        recipients = [f"{n}@far.test" for n in to]
        if sending._refusal(state, ALICE, recipients) is None:
            state.add_sent(ALICE, recipients, clock.now)
            sent.append((clock.now, len(set(to) - written)))
            written |= set(to)
        lately = [new for when, new in sent if when > clock.now - 24 * HOUR_S]
        assert len(lately) <= limit
        assert sum(lately) <= limit
    state.close()


async def test_the_notice_names_the_account_and_what_to_do():
    submitted: list[tuple[Envelope, Content]] = []

    async def submit(envelope: Envelope, content: Content) -> None:
        submitted.append((envelope, content))

    account = Account(1, ALICE, "example.test", "alice", 0)
    await CapNotice(submit, hostname="mx.example.test")(account, "3 messages sent")
    ((envelope, content),) = submitted
    assert envelope.mail_from is None
    assert [str(r.address) for r in envelope.recipients] == ["postmaster@example.test"]
    text = content.read().decode()
    assert "Auto-Submitted: auto-generated\r\n" in text
    assert "    3 messages sent\r\n" in text
    assert f"pymxctl user passwd {ALICE} --password-stdin" in text


async def test_a_notice_that_nobody_takes_is_logged(caplog: pytest.LogCaptureFixture):
    async def submit(envelope: Envelope, content: Content) -> None:
        raise SmtpError(reply.DIRECTORY_UNAVAILABLE)

    await CapNotice(submit, hostname="mx.example.test")(Account(1, ALICE, "example.test", "alice", 0), "x")
    assert "cap_notice_failed" in [r.getMessage() for r in caplog.records]
