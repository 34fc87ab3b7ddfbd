"""The thread hop of the mail path."""

import asyncio
import threading

import pytest

from pymx.ms.threads import Threads


async def test_results_and_errors_come_back_to_their_callers() -> None:
    threads = Threads(3, "t")

    def work(n: int) -> int:
        if n % 7 == 0:
            raise ValueError(n)
        return n * n

    results = await asyncio.gather(*(threads.run(lambda n=n: work(n)) for n in range(500)), return_exceptions=True)
    for n, result in enumerate(results):
        if n % 7 == 0:
            assert isinstance(result, ValueError)
            assert result.args == (n,)
        else:
            assert result == n * n
    await threads.close()


async def test_a_cancelled_call_that_has_not_begun_is_not_made() -> None:
    threads = Threads(1, "t")
    release = threading.Event()
    made: list[str] = []
    first = threads.run(lambda: release.wait(10))
    second = threads.run(lambda: made.append("second"))
    second.cancel()
    third = threads.run(lambda: made.append("third"))
    release.set()
    assert await first is True
    await third
    assert made == ["third"]
    await threads.close()


async def test_a_call_cancelled_while_it_runs_ends_and_disturbs_nobody() -> None:
    threads = Threads(1, "t")
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(10)
        ended.set()

    running = threads.run(work)
    await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    release.set()
    assert await threads.run(ended.is_set) is True
    await threads.close()


async def test_close_makes_the_calls_that_wait() -> None:
    threads = Threads(1, "t")
    made: list[int] = []
    calls = [threads.run(lambda n=n: made.append(n)) for n in range(50)]
    await threads.close()
    assert made == list(range(50))
    assert all(call.done() for call in calls)


async def test_close_without_a_call_is_fine() -> None:
    await Threads(2, "t").close()
