"""The set of live sessions: sweep, drain."""

from __future__ import annotations

import asyncio

from support.wait import wait_until

from pymx.net.sessions import MANY, Sessions


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


async def test_that_many_have_ended_is_said_once_and_not_of_a_few():
    """Then there is memory to give back; a session that comes and goes is no reason."""
    sessions, said = Sessions(), []
    sessions.thinned = lambda: said.append(len(sessions))
    live = [Idle(sessions) for _ in range(3 * MANY)]
    for session in live:
        sessions.add(session)
    sessions.start()
    await wait_until(lambda: live[-1].swept)
    for session in live[: MANY - 1]:
        sessions.discard(session)
    seen = len(live[-1].swept)
    await wait_until(lambda: len(live[-1].swept) > seen + 2)
    assert said == []
    for session in live[MANY - 1 : 2 * MANY]:
        sessions.discard(session)
    await wait_until(lambda: said)
    seen = len(live[-1].swept)
    await wait_until(lambda: len(live[-1].swept) > seen + 2)
    assert said == [MANY]
    sessions.stop()
