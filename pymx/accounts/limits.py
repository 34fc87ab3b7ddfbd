"""Limits on logins: who is banned, who is answered slowly, who goes first. One per process, one truth in `Counters`.

The door to logins asks `admit` before a password is looked at, and says `failed` or `succeeded` after it; both see what
all processes committed. The greeting asks `turned_away`, which looks at a copy that is at most a second old and names
only addresses that nobody may log in from.

Never limited: `[limits] trusted`, and peers without an address (Unix sockets). When the counters can't be had, nobody
is limited.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pymx import log, metrics
from pymx.accounts.banrules import Rules, account_key
from pymx.accounts.counters import Counters, LimitsUnavailable
from pymx.accounts.limitstate import Ban, LimitState
from pymx.config.model import Limits
from pymx.mail.peer import Networks, counted_network, site_network

_LOOK_EVERY_S = 1.0
_NOTE_AGAIN_S = 3600.0  # a good login is written down at most this often
_MAX_NOTED = 10_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What a peer may do at the door. `ban`: why it may not; `known`: it logged in to this account lately."""

    network: str  # "" = not limited
    ban: Ban | None = None
    known: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not served: what the peer hears, and what only the log hears."""

    text: str
    reason: str


BANNED = "Too many wrong passwords from your address, try again later"
TOO_FAST = "Too many connections from your address, slow down"


class LoginLimits:
    """`start` in the running loop, `close` at the end; the counters are the caller's.

    `connects` counts a connection of an address and says whether it may have one more.
    """

    def __init__(
        self, settings: Limits, counters: Counters, *, connects: Callable[[str], bool] = lambda peer_ip: True
    ) -> None:
        self._connects = connects
        self._counters = counters
        self.reload(settings)
        self._slowed = 0
        self._hurry = asyncio.Event()
        self._noted: dict[tuple[str, str], float] = {}
        self._shut: dict[str, Ban] = {}
        self._wide: list[tuple[Networks, Ban]] = []
        self._known: set[str] = set()
        self._seen = (-1, -1)
        self._task: asyncio.Task[None] | None = None
        self._log = log.get("accounts")

    def reload(self, settings: Limits) -> None:
        """Go by these settings from now on."""
        self._rules = Rules.of(settings)
        self._trusted = Networks(settings.trusted)
        self._max_slowed = settings.max_slowed
        self._counters.reload(self._rules)

    async def start(self) -> None:
        """Read what there is, and keep looking."""
        await self._look()
        self._task = asyncio.get_running_loop().create_task(self._keep_looking())

    async def close(self) -> None:
        self.hurry()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def hurry(self) -> None:
        """The server ends: answers that are held back are given now."""
        self._hurry.set()

    def network(self, peer_ip: str) -> str:
        """What the peer is counted by; "" when it is not."""
        if not peer_ip or peer_ip in self._trusted:
            return ""
        return counted_network(peer_ip)

    # At the greeting

    def refuses(self, peer_ip: str) -> Refusal | None:
        """Count a connection to a port for logins, and say why it is not served, if it is not.

        How often may connect where somebody logged in from lately is his users' business: an office has many.
        """
        ban = self.turned_away(peer_ip)
        if ban is not None:
            return Refusal(BANNED, f"{ban.network} is banned: {ban.reason}")
        if not self._connects(peer_ip) and not self.is_known(peer_ip):
            return Refusal(TOO_FAST, "[limits] connections_per_minute")
        return None

    def turned_away(self, peer_ip: str) -> Ban | None:
        """The ban that keeps everybody at this address from logging in."""
        if not self._shut and not self._wide:
            return None
        network = self.network(peer_ip)
        if not network:
            return None
        now = self._counters.clock()
        ban = self._shut.get(network) or self._shut.get(site_network(network))
        if ban is None:
            ban = next((ban for networks, ban in self._wide if peer_ip in networks), None)
        return ban if ban is not None and now < ban.until_s else None

    def is_known(self, peer_ip: str) -> bool:
        """Did somebody log in from there lately?"""
        return counted_network(peer_ip) in self._known

    # At the login

    async def admit(self, peer_ip: str, login: str) -> Standing:
        """Where a peer stands that wants to log in."""
        return await self.admit_again(Standing(self.network(peer_ip)), login)

    async def admit_again(self, standing: Standing, login: str) -> Standing:
        """Where a peer stands by now that had to wait."""
        network = standing.network
        if not network:
            return standing
        account, now = account_key(login), self._counters.clock()

        def look(state: LimitState) -> Standing:
            return Standing(network, state.ban_of(network, account, now), state.knows(network, account, now))

        try:
            return await self._counters.read(look)
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)
            return Standing("")

    async def failed(
        self, standing: Standing, login: str, password: str, *, peer_ip: str, is_guess: bool = True
    ) -> float:
        """Note a wrong password; how many seconds its answer is to be held back.

        `is_guess` is False for one that can't be judged: it counts for no ban, but nobody shall see a difference.
        """
        if not standing.network:
            return 0.0
        network, account, now = standing.network, account_key(login), self._counters.clock()
        try:
            failed = await self._counters.write(
                lambda state: state.failed(network, account, password, now, is_guess=is_guess)
            )
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)
            return 0.0
        if failed.ban is not None:
            self._record(failed.ban, failed.distinct, peer_ip)
        if failed.site_ban is not None:
            self._record(failed.site_ban, failed.distinct_in_site, peer_ip)
        return self._rules.wait_s(failed.times, failed.account_guesses)

    async def succeeded(self, standing: Standing, login: str) -> None:
        """Note a good login, so that this address keeps its way to this account."""
        if not standing.network:
            return
        key, now = (standing.network, account_key(login)), self._counters.clock()
        if standing.known and now - self._noted.get(key, 0.0) < _NOTE_AGAIN_S:
            return
        if len(self._noted) >= _MAX_NOTED:
            self._noted.clear()
        self._noted[key] = now
        try:
            await self._counters.write(lambda state: state.succeeded(*key, now))
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)

    async def hold_back(self, wait_s: float) -> None:
        """Wait before an answer, unless too many wait already: then it is given at once."""
        if wait_s <= 0 or self._slowed >= self._max_slowed or self._hurry.is_set():
            return
        self._slowed += 1
        metrics.add("logins_slowed")
        try:
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()
        except TimeoutError:
            pass
        finally:
            self._slowed -= 1

    def _record(self, ban: Ban, distinct: int, peer_ip: str) -> None:
        metrics.add("addresses_banned")
        self._log.warning(
            "address_banned",
            network=ban.network,
            exempt=len(ban.accounts),
            peer_ip=peer_ip,
            count=distinct,
            duration_s=round(ban.until_s - ban.since_s),
            reason=ban.reason,
        )

    # The copy

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        now = self._counters.clock()

        def look(state: LimitState) -> tuple[tuple[int, int], list[Ban], set[str]] | None:
            version = state.version
            return None if version == self._seen else (version, state.bans(now), state.known_networks(now))

        try:
            found = await self._counters.read(look)
        except LimitsUnavailable as e:
            self._counters.complain(e.reason)
            return
        if found is None:
            return
        self._seen, bans, self._known = found
        shut = [ban for ban in bans if not ban.accounts]
        self._shut = {ban.network: ban for ban in shut}
        self._wide = [(Networks([ban.network]), ban) for ban in shut if ban.manual and "/" in ban.network]
