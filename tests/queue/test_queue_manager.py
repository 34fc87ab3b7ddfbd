"""What the runner does with what waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from queue_samples import Remote, copy, outcomes, want
from support.wait import wait_until

from pymx.config.model import Outbound
from pymx.queue import browse
from pymx.queue.browse import Selection
from pymx.queue.item import Attempt, Copy, Outcome, Report, Result
from pymx.queue.manager import Manager
from pymx.queue.queue import Queue, QueueFull
from pymx.queue.state import State

EVERYTHING = Selection(everything=True)


@asynccontextmanager
async def opened(directory: Path, outbound: Outbound | None = None, **options: Path) -> AsyncIterator[Queue]:
    queue = Queue(directory, outbound or Outbound(), **options)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close()


@asynccontextmanager
async def running(queue: Queue, remote: Remote, **more: object) -> AsyncIterator[Manager]:
    manager = Manager(queue, remote.attempt, remote.gave_up, remote.delayed, **more)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        yield manager
        manager.stop()


@pytest.fixture
def state(tmp_path: Path) -> Callable[[], State]:
    """Looks at the queue from outside, as pymxctl does."""
    opened_states: list[State] = []

    def look() -> State:
        found = State(tmp_path / "queue" / "state.sqlite")
        found.open()
        opened_states.append(found)
        return found

    yield look
    for found in opened_states:
        found.close()


def files_in(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "queue" / "messages").iterdir())


async def test_an_accepted_message_is_tried_and_its_file_goes(tmp_path: Path) -> None:
    """The whole way, without waiting for a poll."""
    remote = Remote()
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        message = copy("bob@remote.test", text="x")
        await queue.enqueue([message])
        await wait_until(lambda: not files_in(tmp_path))
        assert remote.served == ["bob@remote.test"]
        assert remote.attempts[0].content.read() == message.content.read()
        assert (remote.attempts[0].queue_id, remote.attempts[0].number) == (message.queue_id, 1)


async def test_recipients_of_a_destination_share_an_attempt(tmp_path: Path) -> None:
    """RFC 5321 s. 4.5.4.1: one copy for several recipients at one server."""
    remote = Remote()
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        await queue.enqueue([copy("a@one.test", "b@two.test", "c@one.test")])
        await wait_until(lambda: not files_in(tmp_path))
    by_destination = {a.destination: [str(r.address) for r in a.envelope.recipients] for a in remote.attempts}
    assert by_destination == {"one.test": ["a@one.test", "c@one.test"], "two.test": ["b@two.test"]}


async def test_copies_for_mailboxes_here_go_to_the_local_attempt(tmp_path: Path) -> None:
    """Local delivery that could not be done in the session is tried from the queue."""
    remote, mailbox = Remote(), Remote()
    async with opened(tmp_path / "queue") as queue, running(queue, remote, local_attempt=mailbox.attempt):
        await queue.enqueue([copy("bob@here.test", local=True), copy("eve@remote.test")])
        await wait_until(lambda: not files_in(tmp_path))
    assert (mailbox.served, remote.served) == (["bob@here.test"], ["eve@remote.test"])


async def test_a_deferred_message_waits_for_its_time_and_remembers_why(
    tmp_path: Path, state: Callable[[], State]
) -> None:
    """[outbound] retry_first, and what the remote said."""
    remote = Remote({"slow.test": Result.DEFERRED})
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        message = copy("bob@slow.test", "eve@fast.test")
        await queue.enqueue([message])
        await wait_until(lambda: [x.state for x in browse.lines(state(), EVERYTHING)] == ["deferred"])
        (line,) = browse.lines(state(), EVERYTHING)
        assert (line.recipients, line.attempts, line.reason) == (("bob@slow.test",), 1, "450 4.0.0 later")
        assert 0.8 * 300 - 5 < line.next_s - time.time() < 1.2 * 300
        assert {(a.address, a.result) for a in browse.history(state(), message.queue_id)} >= {
            ("bob@slow.test", "deferred")
        }
        assert files_in(tmp_path) == [message.queue_id]


async def test_deferred_mail_is_tried_again_when_it_is_due(tmp_path: Path) -> None:
    """Until it arrives."""
    outbound = Outbound(retry_first_s=1, retry_max_s=1)
    remote = Remote({"slow.test": Result.DEFERRED})
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        await queue.enqueue([copy("bob@slow.test")])
        await wait_until(lambda: len(remote.attempts) >= 2)
        remote.results.clear()
        await wait_until(lambda: not files_in(tmp_path))
    assert [a.number for a in remote.attempts] == list(range(1, len(remote.attempts) + 1))


async def test_a_failed_recipient_is_reported_before_it_is_forgotten(tmp_path: Path) -> None:
    """RFC 5321 s. 6.1: the sender is told. If that fails, the recipient stays in the queue."""

    class Deaf(Remote):
        deaf = True

        async def gave_up(self, report: Report) -> None:
            if self.deaf:
                raise OSError("disk full")
            await super().gave_up(report)

    remote = Deaf({"bad.test": Result.FAILED})
    outbound = Outbound(retry_first_s=1, retry_max_s=1)
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        await queue.enqueue([copy("bob@bad.test")])
        await wait_until(lambda: len(remote.attempts) >= 2)
        remote.deaf = False
        await wait_until(lambda: not files_in(tmp_path))
    assert [o.reply for o in remote.reports[0].outcomes] == ["450 4.0.0 later"]


async def test_a_message_that_waited_too_long_fails(tmp_path: Path) -> None:
    """[outbound] lifetime_s: 5.4.7, with the last thing the remote said."""
    remote = Remote({"slow.test": Result.DEFERRED})
    outbound = Outbound(retry_first_s=1, retry_max_s=1, lifetime_s=1, delay_notice_s=0)
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        await queue.enqueue([copy("bob@slow.test")])
        await wait_until(lambda: not files_in(tmp_path))
    (report,) = remote.reports
    assert [(o.result, o.status, o.reply) for o in report.outcomes] == [(Result.FAILED, "5.4.7", "450 4.0.0 later")]


async def test_the_sender_is_told_of_a_delay_once(tmp_path: Path) -> None:
    """[outbound] delay_notice_s, also over a restart."""
    remote = Remote({"slow.test": Result.DEFERRED})
    outbound = Outbound(retry_first_s=1, retry_max_s=1, delay_notice_s=1)
    async with opened(tmp_path / "queue", outbound) as queue:
        await queue.enqueue([copy("bob@slow.test")])
        async with running(queue, remote):
            await wait_until(lambda: remote.late)
        seen = len(remote.attempts)
        async with running(queue, remote):
            await wait_until(lambda: len(remote.attempts) > seen)
    assert len(remote.late) == 1


async def test_an_exception_in_one_attempt_defers_that_message_only(tmp_path: Path, state: Callable[[], State]) -> None:
    """A bug in delivery is a temporary failure."""

    class Broken(Remote):
        async def attempt(self, attempt: Attempt) -> list[Outcome]:
            if attempt.destination == "bug.test":
                raise ZeroDivisionError
            if attempt.destination == "short.test":
                return []
            return await super().attempt(attempt)

    remote = Broken()
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        await queue.enqueue([copy("a@bug.test"), copy("b@short.test"), copy("c@fine.test")])
        await wait_until(lambda: {x.state for x in browse.lines(state(), EVERYTHING)} == {"deferred"})
        assert sorted(x.destination for x in browse.lines(state(), EVERYTHING)) == ["bug.test", "short.test"]
    assert remote.served == ["c@fine.test"]


async def test_no_more_than_allowed_run_at_once(tmp_path: Path) -> None:
    """[outbound] max_deliveries and max_per_destination."""
    gate, now, peak, peak_one = asyncio.Event(), [0], [0], [0]
    one = [0]

    class Slow(Remote):
        async def attempt(self, attempt: Attempt) -> list[Outcome]:
            now[0] += 1
            one[0] += attempt.destination == "one.test"
            peak[0], peak_one[0] = max(peak[0], now[0]), max(peak_one[0], one[0])
            await gate.wait()
            now[0] -= 1
            one[0] -= attempt.destination == "one.test"
            return await super().attempt(attempt)

    remote = Slow()
    outbound = Outbound(max_deliveries=7, max_per_destination=3)
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        gate.set()
        await queue.enqueue([copy(f"a{n}@one.test") for n in range(5)])  # success allows more than the first two
        await wait_until(lambda: not files_in(tmp_path))
        gate.clear()
        await queue.enqueue([copy(f"a{n}@one.test") for n in range(10)])
        await wait_until(lambda: now[0] == 3)
        await queue.enqueue([copy(f"a@d{n}.test") for n in range(10)])
        await wait_until(lambda: now[0] == 7)
        gate.set()
        await wait_until(lambda: not files_in(tmp_path))
    assert (peak[0], peak_one[0]) == (7, 3)
    assert len(remote.attempts) == 25


async def test_a_heap_of_mail_for_a_stuck_destination_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Fairness: a window per destination, and new mail beside old."""
    gate = asyncio.Event()

    class Stuck(Remote):
        async def attempt(self, attempt: Attempt) -> list[Outcome]:
            if attempt.destination == "stuck.test":
                await gate.wait()
            return await super().attempt(attempt)

    remote = Stuck()
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        for _ in range(6):
            await queue.enqueue([copy("a@stuck.test") for _ in range(100)])
        await queue.enqueue([copy("b@free.test")])
        await wait_until(lambda: remote.served == ["b@free.test"])
        gate.set()
        await wait_until(lambda: not files_in(tmp_path), timeout_s=30)
    assert len(remote.attempts) == 601


async def test_old_deferred_mail_does_not_keep_new_mail_waiting(tmp_path: Path) -> None:
    """A heap that falls due at once has a window of its own."""
    remote = Remote({"old.test": Result.DEFERRED})
    outbound = Outbound(retry_first_s=1, retry_max_s=1, max_deliveries=2)
    async with opened(tmp_path / "queue", outbound) as queue, running(queue, remote):
        for n in range(5):
            await queue.enqueue([copy(f"a@old{n}{m}.test") for m in range(60)])
        remote.results.update({f"old{n}{m}.test": Result.DEFERRED for n in range(5) for m in range(60)})
        started = time.monotonic()
        await queue.enqueue([copy("b@new.test")])
        await wait_until(lambda: "b@new.test" in remote.served)
        assert time.monotonic() - started < 5
        remote.results.clear()
        await wait_until(lambda: not files_in(tmp_path), timeout_s=30)


async def test_a_new_runner_takes_over_what_the_old_one_had_leased(tmp_path: Path) -> None:
    """Leases are void when their runner is dead."""
    remote = Remote()
    async with opened(tmp_path / "queue") as queue:
        await queue.enqueue([copy("a@b.test")])
        taken = await queue.take(want())
        assert len(taken.items) == 1
        assert (await queue.take(want())).items == []
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        await wait_until(lambda: not files_in(tmp_path))
    assert remote.served == ["a@b.test"]


async def test_a_second_runner_waits_for_the_first(tmp_path: Path) -> None:
    """Two would send everything twice."""
    first, second = Remote(), Remote()
    async with opened(tmp_path / "queue") as one, opened(tmp_path / "queue") as two:
        async with running(one, first):
            await one.enqueue([copy("a@b.test")])
            await wait_until(lambda: first.served == ["a@b.test"])
            waiting = asyncio.ensure_future(Manager(two, second.attempt, second.gave_up, second.delayed).run())
            await one.enqueue([copy("c@d.test")])
            await wait_until(lambda: len(first.served) == 2)
            assert second.served == []
        await two.enqueue([copy("e@f.test")])
        await wait_until(lambda: second.served == ["e@f.test"])
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_another_process_wakes_the_runner_over_its_socket(tmp_path: Path) -> None:
    """A datagram, so nobody waits for the poll; without it the poll finds the message."""
    remote = Remote()
    (tmp_path / "run").mkdir()
    for options in ({"runtime_dir": tmp_path / "run"}, {}):
        remote.attempts.clear()
        async with (
            opened(tmp_path / "queue", **options) as runner,
            running(runner, remote),
            opened(tmp_path / "queue", **options) as worker,
        ):
            await worker.enqueue([copy("a@b.test")])
            await wait_until(lambda: remote.served == ["a@b.test"])


async def test_held_mail_is_not_tried_until_it_is_released(tmp_path: Path, state: Callable[[], State]) -> None:
    """pymxctl queue hold, release, retry."""
    remote = Remote({"slow.test": Result.DEFERRED})
    async with opened(tmp_path / "queue") as queue, running(queue, remote) as manager:
        message = copy("a@slow.test")
        await queue.enqueue([message])
        await wait_until(lambda: browse.lines(state(), EVERYTHING)[0].state == "deferred")
        assert browse.hold(state(), Selection([message.queue_id])) == 1
        browse.retry(state(), EVERYTHING, time.time(), release=False)
        manager.changed()
        other = copy("b@fast.test")
        await queue.enqueue([other])
        await wait_until(lambda: remote.served[-1] == "b@fast.test")
        assert remote.served == ["a@slow.test", "b@fast.test"]
        remote.results.clear()
        assert browse.retry(state(), Selection(domain="slow.test"), time.time(), release=True) == 1
        manager.changed()
        await wait_until(lambda: not files_in(tmp_path))


async def test_a_retry_is_noticed_without_being_told(tmp_path: Path, state: Callable[[], State]) -> None:
    """The runner looks for changes every second."""
    remote = Remote({"slow.test": Result.DEFERRED})
    async with opened(tmp_path / "queue") as queue, running(queue, remote):
        await queue.enqueue([copy("a@slow.test")])
        await wait_until(lambda: browse.lines(state(), EVERYTHING)[0].state == "deferred")
        browse.retry(state(), Selection(sender="alice@example.test"), time.time(), release=False)
        await wait_until(lambda: len(remote.attempts) == 2)


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    """[outbound] max_queue_messages: 452 to the client."""
    async with opened(tmp_path / "queue", Outbound(max_queue_messages=2)) as queue:
        await queue.enqueue([copy("a@b.test")])
        with pytest.raises(QueueFull):
            await queue.enqueue([copy("a@b.test"), copy("c@d.test")])
        await queue.enqueue([copy("a@b.test")])


async def test_copies_are_accepted_all_or_none(tmp_path: Path, state: Callable[[], State]) -> None:
    """One commit; here the second copy's name is taken already."""
    async with opened(tmp_path / "queue") as queue:
        first = copy("a@b.test")
        await queue.enqueue([first])
        again = Copy(first.queue_id, first.envelope, first.content, False)
        with pytest.raises(OSError):
            await queue.enqueue([copy("c@d.test"), again])
        assert [x.queue_id for x in browse.lines(state(), EVERYTHING)] == [first.queue_id]
        assert files_in(tmp_path) == [first.queue_id]


async def test_messages_that_wait_anyway_share_a_commit(tmp_path: Path) -> None:
    """No timer: the first goes alone, the others meanwhile gather."""
    from pymx import metrics

    async with opened(tmp_path / "queue") as queue:
        before = metrics.snapshot().counters.get("queue_commits", 0)
        async with asyncio.TaskGroup() as group:
            for n in range(60):
                group.create_task(queue.enqueue([copy(f"a{n}@b.test")]))
        assert metrics.snapshot().counters["queue_commits"] - before < 30
    assert len(files_in(tmp_path)) == 60


async def test_success_is_reported_where_it_was_asked_for(tmp_path: Path) -> None:
    """RFC 3461 s. 4.1, unless the next server took that over."""
    told: list[Report] = []

    async def delivered(report: Report) -> None:
        told.append(report)

    remote = Remote()
    message = copy("a@b.test")
    recipient = message.envelope.recipients[0]
    wanting = message.envelope.with_recipients((type(recipient)(recipient.address, frozenset({"SUCCESS"})),))
    async with opened(tmp_path / "queue") as queue, running(queue, remote, delivered=delivered):
        await queue.enqueue([Copy(message.queue_id, wanting, message.content, False), copy("c@d.test")])
        await wait_until(lambda: not files_in(tmp_path))
    assert [[str(o.recipient.address) for o in report.outcomes] for report in told] == [["a@b.test"]]


async def test_stopping_lets_running_attempts_end(tmp_path: Path) -> None:
    """SIGTERM drains; what was not begun stays, without a lease."""
    gate, begun = asyncio.Event(), asyncio.Event()

    class Slow(Remote):
        async def attempt(self, attempt: Attempt) -> list[Outcome]:
            begun.set()
            await gate.wait()
            return outcomes(attempt)

    remote = Slow()
    async with opened(tmp_path / "queue", Outbound(max_deliveries=1)) as queue:
        await queue.enqueue([copy("a@b.test"), copy("c@d.test")])
        manager = Manager(queue, remote.attempt, remote.gave_up, remote.delayed)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await begun.wait()
            manager.stop()
            gate.set()
        assert len(files_in(tmp_path)) == 1
        assert len((await queue.take(want())).items) == 1
