"""The set of live sessions: sweep, drain."""

from __future__ import annotations

import asyncio

from support.wait import wait_until

from pymx.net.sessions import Sessions


class Idle:
    def __init__(self, sessions: Sessions, *, obedient: bool = True) -> None:
        self.swept: list[float] = []
        self._sessions = sessions
        self._obedient = obedient

    def sweep(self, now: float) -> None:
        self.swept.append(now)

    def shutdown(self) -> None:
        if self._obedient:
            self._sessions.discard(self)

    account = ""

    def dismiss(self) -> None:
        self.shutdown()


async def test_every_session_is_swept_with_the_loops_time():
    sessions = Sessions()
    one, two = Idle(sessions), Idle(sessions)
    sessions.add(one)
    sessions.add(two)
    sessions.start()
    await wait_until(lambda: one.swept and two.swept)
    assert abs(one.swept[0] - asyncio.get_running_loop().time()) < 5
    sessions.stop()


async def test_drain_waits_for_sessions_and_their_tasks():
    sessions = Sessions()
    sessions.add(Idle(sessions))
    delivery = asyncio.Event()

    async def work() -> None:
        await delivery.wait()

    sessions.spawn(work())
    draining = asyncio.ensure_future(sessions.drain(10))
    await wait_until(lambda: len(sessions) == 0)
    assert not draining.done()
    delivery.set()
    assert await draining == 0


async def test_drain_ends_after_its_time_and_says_how_many_are_left():
    sessions = Sessions()
    sessions.add(Idle(sessions, obedient=False))
    assert await sessions.drain(0.05) == 1
