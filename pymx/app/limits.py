"""The limits of a process with sessions: counters on disk, rates, bans, sending caps, and who keeps sessions honest."""

from __future__ import annotations

import asyncio
import contextlib

from pymx.accounts.authenticate import Authenticator
from pymx.accounts.banrules import Rules
from pymx.accounts.counters import Counters
from pymx.accounts.limits import LoginLimits
from pymx.accounts.limitstate import FILE_NAME
from pymx.accounts.sending import Sending
from pymx.app.rooms import INVALIDATE, Rooms
from pymx.config.model import Limits
from pymx.mail.peer import Networks
from pymx.mta import rates as inbound_rates
from pymx.net.rates import Rates
from pymx.net.sessions import Sessions

_RECHECK_EVERY_S = 60.0
_LOCAL = ("127.0.0.1", "::1")  # programs here bring everybody's mail: a webmail, a filter that hands messages back


class ProcessLimits:
    """Made once per process; `start` before the listeners open."""

    def __init__(self, rooms: Rooms) -> None:
        settings = rooms.config.limits
        self._rooms = rooms
        self._counters = Counters(rooms.site.data_dir / FILE_NAME, Rules.of(settings))
        self.rates = Rates(inbound_rates.limits(settings), _uncounted(settings), exchange=self._counters.add_rates)
        self.logins = LoginLimits(
            settings,
            self._counters,
            connects=lambda peer_ip: self.rates.allows(inbound_rates.CONNECTIONS, peer_ip),
        )
        self.sending = Sending(settings, self._counters)

    def reload(self, settings: Limits) -> None:
        """Go by other settings from now on."""
        self.logins.reload(settings)
        self.sending.reload(settings)
        self.rates.limits = inbound_rates.limits(settings)
        self.rates.trusted = Networks(_uncounted(settings))

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.push_async_callback(self._counters.close)
        self.rates.start()
        stack.push_async_callback(self.rates.close)
        await self.logins.start()
        stack.push_async_callback(self.logins.close)


def _uncounted(settings: Limits) -> list[str]:
    return [*settings.trusted, *_LOCAL]


class Watch:
    """Ends the sessions of accounts that were removed or have another password.

    Looks when another process or pymxctl says that accounts changed, and once a minute all the same: a notice can get
    lost, and who changes a password in the database gives none.
    """

    def __init__(self, rooms: Rooms, authenticator: Authenticator, sessions: Sessions) -> None:
        self._rooms = rooms
        self._authenticator = authenticator
        self._sessions = sessions
        self._changed = asyncio.Event()

    def start(self, stack: contextlib.AsyncExitStack) -> None:
        self._rooms.notices.on(INVALIDATE, lambda _argument: self._changed.set())
        task = asyncio.get_running_loop().create_task(self._run())
        stack.push_async_callback(_end, task)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECHECK_EVERY_S):
                    await self._changed.wait()
            self._changed.clear()
            await self._authenticator.recheck(self._sessions.accounts())


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
