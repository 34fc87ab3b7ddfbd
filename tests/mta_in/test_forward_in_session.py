"""A session that waits for what the next server says: every order of events between it and the runner."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from support.wait import wait_until

from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Envelope, Origin, Recipient
from pymx.mta.insession import InSession
from pymx.queue.item import Attempt, Outcome, QueueId, Report, Result
from pymx.spool import Content

ID = QueueId("Q1")
MESSAGE = Content.from_bytes(b"Subject: hi\r\n\r\nhi\r\n")


@dataclass
class Processes:
    """A session's process and a runner's; `lost` says which notices do not arrive."""

    seconds: float = 20
    answer_s: float = 20
    lost: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = InSession(self.seconds, self.tell, answer_s=self.answer_s)
        self.runner = InSession(self.seconds, self.tell, answer_s=self.answer_s)
        self.result = Result.DELIVERED
        self.attempt = self.runner.watched(self.deliver)
        self.session.heard("waits Q0")  # sessions hear each other too

    async def deliver(self, one: Attempt) -> list[Outcome]:
        return outcomes(one, self.result)

    def tell(self, notice: str) -> None:
        self.said.append(notice)
        if notice.split()[1] not in self.lost:
            for process in (self.session, self.runner):
                process.heard(notice.partition(" ")[2])


def attempt(*, to: int = 1, age_s: float = 0.0) -> Attempt:
    envelope = Envelope(Address("x", "remote.test"), (Recipient(parse_address("y@far.test")),) * to, Origin())
    return Attempt(ID, "far.test", envelope, MESSAGE, False, 1, time.time() - age_s)


def outcomes(one: Attempt, result: Result) -> list[Outcome]:
    status, reply = ("5.7.1", "550 5.7.1 no") if result is Result.FAILED else ("4.0.0", "451 later")
    return [Outcome(r, result, status, reply, "mx.far.test") for r in one.envelope.recipients]


async def tried(processes: Processes, result: Result, one: Attempt | None = None) -> bool:
    """The runner's attempt; whether a session has told the sender."""
    one = one or attempt()

    processes.result = result
    found = await processes.attempt(one)
    assert found == outcomes(one, result)
    report = Report(ID, one.envelope, MESSAGE, False, one.arrived_s, tuple(found), 0.0)
    told = processes.runner.was_taken(report)
    assert not processes.runner.was_taken(report)  # said once
    return told


async def test_a_refusal_is_taken_by_the_session_that_waits() -> None:
    processes = Processes()
    with processes.session.expect(ID) as waiting:
        status, told = await asyncio.gather(waiting.status(), tried(processes, Result.FAILED))
    assert (status, told) == ("5.7.1", True)


async def test_a_refusal_before_the_session_has_begun_to_wait_is_taken_as_well() -> None:
    """The runner may be quicker than the commit's return."""
    processes = Processes()
    with processes.session.expect(ID) as waiting:
        assert await tried(processes, Result.FAILED)
        assert await waiting.status() == "5.7.1"


@pytest.mark.parametrize("result", [Result.DELIVERED, Result.DEFERRED])
async def test_anything_else_ends_the_wait_at_once(result: Result) -> None:
    processes = Processes()
    with processes.session.expect(ID) as waiting:
        status, told = await asyncio.gather(waiting.status(), tried(processes, result))
    assert (status, told) == ("", False)


async def test_a_session_that_waits_no_more_takes_nothing() -> None:
    """Whoever was told 250 hears of a failure by the runner."""
    processes = Processes(seconds=0.01)
    with processes.session.expect(ID) as waiting:
        assert await waiting.status() == ""
        processes.session.heard(f"failed {ID} 5.7.1")
    processes.session.heard(f"failed {ID} 5.7.1")
    assert processes.said == [f"forward waits {ID}"]


async def test_a_lost_question_is_a_250_and_a_notification() -> None:
    processes = Processes(seconds=0.1, answer_s=0.1, lost={"failed"})
    with processes.session.expect(ID) as waiting:
        status, told = await asyncio.gather(waiting.status(), tried(processes, Result.FAILED))
    assert (status, told) == ("", False)


async def test_a_lost_answer_is_told_twice_never_not_at_all() -> None:
    processes = Processes(answer_s=0.1, lost={"taken"})
    with processes.session.expect(ID) as waiting:
        status, told = await asyncio.gather(waiting.status(), tried(processes, Result.FAILED))
    assert (status, told) == ("5.7.1", False)


async def test_nobody_is_asked_when_nobody_has_said_that_he_waits() -> None:
    """The runner does not lose time over messages that were answered at once."""
    processes = Processes()
    assert not await tried(processes, Result.FAILED)
    assert processes.said == []


async def test_a_lost_word_of_waiting_is_a_250_and_a_notification() -> None:
    processes = Processes(seconds=0.1, lost={"waits"})
    with processes.session.expect(ID) as waiting:
        status, told = await asyncio.gather(waiting.status(), tried(processes, Result.FAILED))
    assert (status, told) == ("", False)


@pytest.mark.parametrize("one", [attempt(age_s=600), attempt(to=2)])
async def test_nobody_is_asked_about_an_old_message_or_several_recipients(one: Attempt) -> None:
    processes = Processes(seconds=0.1)
    with processes.session.expect(ID) as waiting:
        assert not await tried(processes, Result.FAILED, one)
        assert await waiting.status() == ""
    assert f"forward failed {ID} 5.7.1" not in processes.said


async def test_only_the_first_attempt_is_waited_for() -> None:
    processes = Processes()
    with processes.session.expect(ID):
        assert not await tried(processes, Result.DEFERRED)
        assert not await tried(processes, Result.FAILED)


async def test_a_refusal_is_taken_once_whoever_asks() -> None:
    """Two runners, for a moment, after a restart: the sender hears it, and one of them says it again."""
    processes = Processes()
    with processes.session.expect(ID) as waiting:
        processes.session.heard(f"failed {ID} 5.7.1")
        processes.session.heard(f"failed {ID} 5.1.1")
        assert await waiting.status() == "5.7.1"
    assert processes.said == [f"forward waits {ID}", f"forward taken {ID}"]
    processes.session.heard("nonsense")
    processes.session.heard("")
    await wait_until(lambda: waiting.refusal.done())
