"""The login door with its limits: slow answers, bans, who is spared, what several processes see."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from support.wait import wait_until

from pymx.accounts import passwords
from pymx.accounts.account import AuthenticationBanned, AuthenticationFailed
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.banrules import Rules
from pymx.accounts.counters import Counters, LimitsUnavailable
from pymx.accounts.directory import Directory
from pymx.accounts.limits import LoginLimits
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts, Limits

OpenDirectory = Callable[..., Awaitable[Directory]]
ALICE, BOB = "alice@example.test", "bob@example.test"
HERE = "192.0.2.1"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pymx.sqlite"


class Door:
    """A process' worth of them."""

    def __init__(self, directory: Directory, path: Path, clock: Clock, **settings) -> None:
        limits = Limits(**({"ban_after": 4, "slow_max_s": 0} | settings))
        self.clock = clock
        self.ended: list[str] = []
        self.counters = Counters(path, Rules.of(limits), clock=clock)
        self.limits = LoginLimits(limits, self.counters)
        self.authenticator = Authenticator(
            directory, Accounts(bcrypt_cost=4), limits=self.limits, ended=self.ended.append
        )

    async def start(self) -> None:
        await self.limits.start()

    async def close(self) -> None:
        self.authenticator.close()
        await self.limits.close()
        await self.counters.close()

    async def login(self, password: str, login: str = ALICE, peer_ip: str = HERE) -> str:
        try:
            return (await self.authenticator.login(login, password, peer_ip=peer_ip)).email
        except AuthenticationBanned:
            return "banned"
        except AuthenticationFailed:
            return "wrong"

    async def guess(self, count: int, login: str = BOB, peer_ip: str = HERE) -> list[str]:
        return [await self.login(f"guess{i}", login, peer_ip) for i in range(count)]


OpenDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def open_door(open_directory: OpenDirectory, registry: Registry, tmp_path: Path) -> AsyncIterator[OpenDoor]:
    for email in (ALICE, BOB):
        registry.set_password(email, passwords.make("geheim", 4))
    directory = await open_directory()
    doors: list[Door] = []
    clock = Clock()

    async def start(**settings) -> Door:
        door = Door(directory, tmp_path / FILE_NAME, clock, **settings)
        doors.append(door)
        await door.start()
        return door

    yield start
    for door in doors:
        await door.close()


async def test_a_guesser_is_banned_and_gets_in_again_afterwards(open_door: OpenDoor):
    door = await open_door()
    assert await door.guess(5) == ["wrong"] * 4 + ["banned"]
    assert await door.login("geheim") == "banned"  # not even looked at
    assert await door.login("geheim", peer_ip="192.0.2.2") == ALICE
    door.clock.now += 601
    assert await door.login("geheim") == ALICE


async def test_unknown_users_are_guesses_too(open_door: OpenDoor):
    door = await open_door()
    assert await door.guess(5, "nobody@example.test") == ["wrong"] * 4 + ["banned"]


async def test_the_owner_keeps_his_way_in(open_door: OpenDoor):
    """A good login within days, then guesses at others from the same address: an office, a family."""
    door = await open_door()
    assert await door.login("geheim") == ALICE
    assert await door.guess(5) == ["wrong"] * 4 + ["banned"]
    assert await door.login("geheim") == ALICE
    assert await door.login("mistyped") == "wrong"
    assert await door.login("geheim", BOB) == "banned"


async def test_an_ipv6_network_is_one_address(open_door: OpenDoor):
    door = await open_door()
    results = [await door.login(f"x{i}", BOB, f"2001:db8::{i}") for i in range(5)]
    assert results[-1] == "banned"
    assert await door.login("geheim", ALICE, "2001:db8:0:1::1") == ALICE
    assert (await door.guess(5, peer_ip="::ffff:192.0.2.9"))[-1] == "banned"
    assert await door.login("geheim", peer_ip="192.0.2.9") == "banned"


@pytest.mark.parametrize("peer_ip", ["203.0.113.5", "2001:db8:77::1", ""])
async def test_trusted_peers_are_never_banned_or_slowed(open_door: OpenDoor, peer_ip: str):
    door = await open_door(trusted=["203.0.113.0/24", "2001:db8:77::/48"], slow_max_s=3600)
    async with asyncio.timeout(20):
        assert await door.guess(12, peer_ip=peer_ip) == ["wrong"] * 12
    assert door.limits.turned_away(peer_ip) is None


async def test_two_processes_count_together_and_both_refuse(open_door: OpenDoor):
    one, two = await open_door(), await open_door()
    assert [await door.login(f"x{i}", BOB) for i, door in enumerate((one, two, one, two))] == ["wrong"] * 4
    assert await one.login("geheim") == "banned"
    assert await two.login("geheim") == "banned"
    for door in (one, two):
        await wait_until(lambda door=door: door.limits.refuses(HERE) is not None, timeout_s=20)
    refusal = one.limits.refuses(HERE)
    assert refusal is not None
    assert refusal.text == "Too many wrong passwords from your address, try again later"


async def test_the_greeting_is_given_where_somebody_may_log_in(open_door: OpenDoor):
    door = await open_door()
    assert await door.login("geheim") == ALICE
    assert (await door.guess(5))[-1] == "banned"
    assert (await door.guess(5, peer_ip="192.0.2.2"))[-1] == "banned"
    await wait_until(lambda: door.limits.turned_away("192.0.2.2") is not None, timeout_s=20)
    assert door.limits.turned_away(HERE) is None
    assert door.limits.is_known(HERE)


async def test_a_ban_outlives_a_restart(open_door: OpenDoor):
    door = await open_door()
    await door.guess(4)
    again = await open_door()
    assert again.limits.turned_away(HERE) is not None
    assert await again.login("geheim") == "banned"


async def test_an_unsupported_hash_is_nobodys_guess(open_door: OpenDoor, registry: Registry):
    """Else a mistake of the administrator bans his users."""
    door = await open_door()
    registry.set_password(BOB, "{PLAIN}geheim")
    door.authenticator._directory.invalidate()
    assert await door.guess(8) == ["wrong"] * 8
    assert await door.login("geheim") == ALICE


async def test_a_wrong_password_is_answered_late_and_a_good_one_at_once(open_door: OpenDoor):
    door = await open_door(slow_max_s=3600)
    first = asyncio.ensure_future(door.login("wrong"))
    async with asyncio.timeout(20):
        assert await first == "wrong"  # after half a second
        slow = asyncio.ensure_future(door.login("wrong"))
        await wait_until(lambda: door.limits._slowed == 1)
        assert await door.login("geheim") == ALICE
    assert not slow.done()
    door.limits.hurry()  # the server ends
    async with asyncio.timeout(20):
        assert await slow == "wrong"


async def test_slowed_answers_are_capped(open_door: OpenDoor):
    """Past the cap answers are given at once: they must not hold the server's memory."""
    door = await open_door(slow_max_s=3600, max_slowed=3, ban_after=0)
    for _ in range(12):  # so that each answer would take hours
        await door.counters.write(lambda state: state.failed(HERE, BOB, "x", door.clock.now))
    answers = [asyncio.ensure_future(door.login(f"x{i}", BOB)) for i in range(3)]
    await wait_until(lambda: door.limits._slowed == 3)
    async with asyncio.timeout(20):
        assert await door.login("y", BOB) == "wrong"
    assert not any(answer.done() for answer in answers)
    door.limits.hurry()
    await asyncio.gather(*answers)


async def test_unknown_user_and_wrong_password_wait_alike(open_door: OpenDoor, registry: Registry):
    """The wait depends on the address alone; a user whose stored password nobody can have is no exception."""
    registry.set_password(ALICE, "{DISABLED}")
    door = await open_door(slow_max_s=3600, ban_after=0)

    async def time_s(login: str, peer_ip: str) -> float:
        began = time.monotonic()
        await door.login("wrong", login, peer_ip)
        await door.login("bad", login, peer_ip)
        return time.monotonic() - began

    known, unknown, disabled = await asyncio.gather(
        time_s(BOB, "192.0.2.3"), time_s("nobody@example.test", "192.0.2.4"), time_s(ALICE, "192.0.2.5")
    )
    assert known == pytest.approx(unknown, abs=0.25)
    assert disabled == pytest.approx(unknown, abs=0.25)
    assert min(known, unknown, disabled) >= 1.48


async def test_one_address_has_one_check_running_and_the_owner_goes_first(open_door: OpenDoor, registry: Registry):
    """Else one guesser keeps all threads busy."""
    door = await open_door(ban_after=0)
    await door.login("geheim", peer_ip="192.0.2.9")
    registry.set_password(BOB, passwords.make("geheim", 11))
    registry.set_password(ALICE, passwords.make("neu", 11))
    door.authenticator._directory.invalidate()
    turns = door.authenticator._turns
    guesses = [asyncio.ensure_future(door.login(f"x{i}", BOB)) for i in range(3)]
    await wait_until(lambda: len(turns._rest) == 2)
    assert turns._busy == {HERE}
    stranger = asyncio.ensure_future(door.login("y", BOB, "192.0.2.7"))
    await wait_until(lambda: turns._busy == {HERE, "192.0.2.7"})
    late = asyncio.ensure_future(door.login("z", BOB, "192.0.2.8"))
    owner = asyncio.ensure_future(door.login("neu", ALICE, "192.0.2.9"))
    assert await owner == ALICE
    assert not late.done()
    assert set(await asyncio.gather(*guesses, stranger, late)) == {"wrong"}


async def test_many_connections_at_once_are_no_way_around_the_ban(open_door: OpenDoor, registry: Registry):
    """They are all let in before the first is known to be wrong; who waits for his turn is asked again."""
    registry.set_password(BOB, passwords.make("geheim", 10))
    door = await open_door()
    answers = await asyncio.gather(*(door.login(f"guess{i}", BOB) for i in range(30)))
    # the one after the last may have its turn while that one is still being written down
    assert 4 <= answers.count("wrong") <= 10
    assert answers.count("wrong") + answers.count("banned") == 30
    assert await door.login("geheim", peer_ip="192.0.2.2") == ALICE


async def test_a_ban_stops_nobody_who_waits_for_the_same_check(open_door: OpenDoor, registry: Registry):
    """The banned address happens to send what somebody elsewhere logs in with at that moment."""
    registry.set_password(BOB, passwords.make("geheim", 10))
    door = await open_door()
    guesses = [door.login(f"guess{i}", BOB) for i in range(10)]
    both = [door.login("geheim"), door.login("geheim", peer_ip="192.0.2.2")]
    assert (await asyncio.gather(*guesses, *both))[-2:] == ["banned", ALICE]


async def test_without_the_counters_nobody_is_kept_out(
    open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The disk is full, say: logins go on without limits, and the log says so once."""
    door = await open_door()
    await door.guess(1)
    other = sqlite3.connect(tmp_path / FILE_NAME)
    other.execute("DROP TABLE guess")
    other.commit()
    other.close()
    assert await door.guess(8) == ["wrong"] * 8
    assert await door.login("geheim") == ALICE
    assert [r.getMessage() for r in caplog.records].count("limits_unavailable") == 1
    with pytest.raises(LimitsUnavailable):
        await door.counters.read(lambda state: state.guesses(network=HERE, now=0.0))


async def test_a_file_damaged_while_in_use_is_begun_anew(
    open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    door = await open_door()
    await door.guess(3)
    door.counters._state.close()  # type: ignore[union-attr]
    vars(door.counters)["_state"] = None
    for file in tmp_path.glob(FILE_NAME + "*"):
        file.write_bytes(b"\0garbage" * 4096)
    assert (await door.guess(5))[-1] == "banned"
    assert "limits_damaged" in [r.getMessage() for r in caplog.records]


async def test_a_page_damaged_while_in_use_is_noticed(
    open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The file can be opened again and is damaged all the same: bans must not be off for good."""
    first, second = await open_door(), await open_door()
    await first.guess(3)
    damage_pages(tmp_path / FILE_NAME)
    assert (await first.guess(5))[-1] == "banned"
    assert await second.login("geheim") == "banned"  # goes by the new file too
    assert [r.getMessage() for r in caplog.records].count("limits_damaged") == 1


def damage_pages(path: Path) -> None:
    """The page of the table of guesses: the file can still be opened."""
    db = sqlite3.connect(path)
    size = db.execute("PRAGMA page_size").fetchone()[0]
    page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'guess'").fetchone()[0]
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # the same inode: the server has it open
    with path.open("r+b") as file:
        file.seek(size * (page - 1))
        file.write(b"\xff" * size)
    db.execute("PRAGMA user_version = 1")  # has others look at the pages again
    db.close()


async def test_a_removed_file_is_missed_by_all_processes(open_door: OpenDoor, tmp_path: Path):
    """An administrator's way to lift all bans; what pymxctl then writes must be seen."""
    first, second = await open_door(), await open_door()
    await first.guess(4)
    for file in tmp_path.glob(FILE_NAME + "*"):
        file.unlink()
    assert await first.login("geheim") == ALICE
    await second.guess(4, peer_ip="192.0.2.9")
    assert await first.login("geheim", peer_ip="192.0.2.9") == "banned"


async def test_a_clock_that_was_ahead_makes_no_ban_longer(open_door: OpenDoor):
    """A ban is never longer than set, nor does an account stay capped by what it sent in the future."""
    door = await open_door(ban_first_s=600)
    right = door.clock.now
    door.clock.now += 30 * 86_400
    await door.guess(4)
    await door.counters.write(lambda state: state.add_sent(ALICE, ["x@elsewhere.test"], door.clock.now, messages=5))
    door.clock.now = right
    assert await door.login("geheim") == "banned"
    door.clock.now += 601
    assert await door.login("geheim") == ALICE
    door.clock.now += 25 * 3600
    assert (await door.counters.read(lambda state: state.sent(ALICE, door.clock.now))).messages == 0


async def test_while_another_program_holds_the_file_logins_wait_once(
    open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    door = await open_door()
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await door.login("geheim") == ALICE
    started = time.monotonic()
    assert await door.guess(4) == ["wrong"] * 4
    assert time.monotonic() - started < 4  # and not 5 s for each
    other.execute("ROLLBACK")
    other.close()
    assert (await door.guess(5))[-1] == "banned"
    assert [r.getMessage() for r in caplog.records].count("limits_unavailable") == 1


async def test_closed_counters_keep_nobody_out(open_door: OpenDoor):
    """A session may outlast them when the server stops."""
    door = await open_door()
    await door.counters.close()
    assert await door.login("geheim") == ALICE


async def test_sessions_of_a_changed_or_removed_account_are_named(open_door: OpenDoor, registry: Registry):
    door = await open_door()
    directory = door.authenticator._directory
    await door.login("geheim")
    await door.login("geheim", BOB)
    await door.authenticator.recheck([ALICE, BOB])
    assert door.ended == []
    registry.set_password(ALICE, passwords.make("neu", 4))
    registry.remove_user(BOB)
    directory.invalidate()
    await door.authenticator.recheck([ALICE, BOB])
    assert door.ended == [ALICE, BOB]
    await door.authenticator.recheck([ALICE, BOB])
    assert door.ended == [ALICE, BOB]


async def test_a_login_with_a_new_password_ends_those_with_the_old_one(open_door: OpenDoor, registry: Registry):
    """Also when nobody told this process of the change."""
    door = await open_door()
    await door.login("geheim")
    registry.set_password(ALICE, passwords.make("neu", 4))
    door.authenticator._directory.invalidate()
    assert door.ended == []
    assert await door.login("neu") == ALICE
    assert door.ended == [ALICE]


_WRITER = textwrap.dedent("""
    import itertools, sys
    from pathlib import Path
    from pymx.accounts.banrules import Rules
    from pymx.accounts.limitstate import LimitState
    from pymx.config.model import Limits

    state = LimitState(Path(sys.argv[1]), Rules.of(Limits(ban_after=4)))
    for n in itertools.count():
        network = f"{sys.argv[2]}.{n // 250 % 250}.{n % 250}"
        with state.transaction():
            for i in range(4):
                state.failed(network, "bob@example.test", f"x{i}", 1000.0)
        print(network, flush=True)
""")


def test_what_was_told_outlives_kill_9(tmp_path: Path):
    """Two processes ban as fast as they can and are killed: every ban that was reported is there, the file is sound."""
    path = tmp_path / FILE_NAME
    for _ in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, str(path), f"10.{i}"], stdout=subprocess.PIPE, text=True)
            for i in (1, 2)
        ]
        told = []
        for writer in writers:
            assert writer.stdout is not None
            told += [writer.stdout.readline().strip() for _ in range(20)]
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            assert writer.stdout is not None
            rest = writer.stdout.read().splitlines()
            told += rest[:-1] if rest else []  # the last line may be half of one
            writer.stdout.close()
            writer.wait()
        state = LimitState(path, Rules.of(Limits(ban_after=4)))
        assert state.moved is None
        assert [network for network in told if state.ban_of(network, "x", 1001.0) is None] == []
        state.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
