"""Logins: checks off the loop, shared, remembered under the stored hash, refused alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from pymx.accounts import passwords
from pymx.accounts.account import AuthenticationFailed, AuthenticationUnavailable
from pymx.accounts.authenticate import Authenticator
from pymx.accounts.directory import Directory
from pymx.accounts.registry import Registry
from pymx.config.model import Accounts

OpenDirectory = Callable[..., Awaitable[Directory]]
ALICE = "alice@example.test"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """SQLite alone: what depends on the database is in test_directory."""
    return f"sqlite:///{tmp_path}/pymx.sqlite"


@pytest.fixture
async def directory(open_directory: OpenDirectory, registry: Registry) -> Directory:
    registry.set_password(ALICE, passwords.make("geheim", 8))  # 15 ms: slow enough to overlap
    return await open_directory()


class Bench:
    """An authenticator and what its checks cost."""

    def __init__(self, directory: Directory, clock: Clock, **settings) -> None:
        self.directory = directory
        self.clock = clock
        self.authenticator = Authenticator(directory, Accounts(**({"bcrypt_cost": 4} | settings)), clock=clock)

    async def login(self, password: str, login: str = ALICE) -> str:
        return (await self.authenticator.login(login, password, peer_ip="192.0.2.1")).email

    async def refused(self, password: str, login: str = ALICE) -> str:
        with pytest.raises(AuthenticationFailed) as raised:
            await self.login(password, login)
        return raised.value.reason

    async def cpu_s(self, password: str, login: str = ALICE, times: int = 1) -> float:
        """Processor time of all threads for `times` logins at once."""
        start = time.process_time()
        await asyncio.gather(*(self.login(password, login) for _ in range(times)), return_exceptions=True)
        return time.process_time() - start


@pytest.fixture
async def bench(directory: Directory) -> AsyncIterator[Bench]:
    bench = Bench(directory, Clock())
    yield bench
    bench.authenticator.close()


async def test_the_right_password_logs_in_in_any_case_of_the_login(bench: Bench):
    assert await bench.login("geheim") == ALICE
    assert await bench.login("geheim", " Alice@EXAMPLE.test") == ALICE


@pytest.mark.parametrize("login", ["", "alice", "nobody@example.test", "alice@elsewhere.test", "x" * 10_000, "a\0@b"])
async def test_a_login_that_is_no_user_is_refused(bench: Bench, login: str):
    assert await bench.refused("geheim", login) == "no such user"


@pytest.mark.parametrize("password", ["", "Geheim", "geheim ", "geheim\0", "x" * 100_000, "\udcff"])
async def test_a_wrong_password_is_refused(bench: Bench, password: str):
    assert await bench.refused(password) == "wrong password"


async def test_an_alias_is_no_login(bench: Bench, registry: Registry):
    registry.add_alias("info@example.test", [ALICE])
    assert await bench.refused("geheim", "info@example.test") == "no such user"


async def test_five_connections_at_once_cost_one_check(bench: Bench):
    one = await bench.cpu_s("wrong")
    five = await bench.cpu_s("wrong as well", times=5)
    assert five < 2.5 * one


async def test_a_verified_password_is_remembered_for_its_time(bench: Bench):
    first = await bench.cpu_s("geheim")
    again = await bench.cpu_s("geheim", times=5)
    assert again < first / 2
    bench.clock.now += 601
    assert await bench.cpu_s("geheim") > again


async def test_what_is_remembered_is_no_password_and_no_hash(bench: Bench):
    await bench.login("geheim")
    kept = repr(vars(bench.authenticator)["_remembered"])
    assert "geheim" not in kept
    assert "$2y$" not in kept


async def test_a_changed_password_stops_working_at_once(bench: Bench, registry: Registry):
    await bench.login("geheim")
    registry.set_password(ALICE, passwords.make("neu", 4))
    bench.directory.invalidate()
    assert await bench.refused("geheim") == "wrong password"
    assert await bench.login("neu") == ALICE


async def test_a_removed_user_is_out_at_once(bench: Bench, registry: Registry):
    await bench.login("geheim")
    registry.remove_user(ALICE)
    bench.directory.invalidate()
    assert await bench.refused("geheim") == "no such user"


async def test_a_user_removed_during_the_check_does_not_get_in(bench: Bench, registry: Registry):
    """The change happens while the hash is computed in its thread."""
    registry.set_password(ALICE, passwords.make("geheim", 11))
    bench.directory.invalidate()
    login = asyncio.ensure_future(bench.login("geheim"))
    while not vars(bench.authenticator)["_running"]:
        await asyncio.sleep(0)
    registry.remove_user(ALICE)
    bench.directory.invalidate()
    with pytest.raises(AuthenticationFailed):
        await login


async def test_a_password_changed_during_the_check_does_not_let_the_old_one_in(bench: Bench, registry: Registry):
    registry.set_password(ALICE, passwords.make("geheim", 11))
    bench.directory.invalidate()
    login = asyncio.ensure_future(bench.login("geheim"))
    while not vars(bench.authenticator)["_running"]:
        await asyncio.sleep(0)
    registry.set_password(ALICE, passwords.make("neu", 4))
    bench.directory.invalidate()
    with pytest.raises(AuthenticationFailed):
        await login
    assert await bench.login("neu") == ALICE


async def test_an_unknown_user_takes_as_long_as_a_wrong_password(bench: Bench):
    """Else the time tells who is here. The dummy has the cost of the hashes that are in use."""
    await bench.refused("wrong")
    known = min([await bench.cpu_s(f"wrong{i}") for i in range(5)])
    unknown = min([await bench.cpu_s(f"wrong{i}", "nobody@example.test") for i in range(5)])
    assert 0.5 < unknown / known < 2


async def test_an_unsupported_scheme_is_logged_and_refused(
    bench: Bench, registry: Registry, caplog: pytest.LogCaptureFixture
):
    registry.set_password(ALICE, "{PLAIN}geheim")
    bench.directory.invalidate()
    assert "{PLAIN}" in await bench.refused("geheim")
    record = next(r for r in caplog.records if r.getMessage() == "password_scheme_unsupported")
    assert record.fields["account"] == ALICE  # type: ignore[attr-defined]
    assert "geheim" not in str(record.fields)  # type: ignore[attr-defined]


async def test_a_failed_login_is_logged_with_its_reason_and_never_the_password(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="pymx")
    await bench.refused("falsch-geheim")
    fields = next(r for r in caplog.records if r.getMessage() == "login_failed").fields  # type: ignore[attr-defined]
    assert fields == {"account": ALICE, "peer_ip": "192.0.2.1", "reason": "wrong password"}


async def test_too_many_waiting_checks_are_turned_away_for_the_moment(directory: Directory):
    bench = Bench(directory, Clock(), password_threads=1, password_queue=2)
    await bench.refused("wrong")  # now the account is in the directory's cache, and all come to the pool at once
    results = await asyncio.gather(*(bench.login(f"wrong{i}") for i in range(10)), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds.count(AuthenticationFailed) == 3
    assert kinds.count(AuthenticationUnavailable) == 7
    assert await bench.login("geheim") == ALICE
    bench.authenticator.close()


async def test_a_client_that_hangs_up_does_not_take_the_check_from_the_others(bench: Bench):
    first = asyncio.ensure_future(bench.login("geheim"))
    while not vars(bench.authenticator)["_running"]:
        await asyncio.sleep(0)
    second = asyncio.ensure_future(bench.login("geheim"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == ALICE
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_the_loop_goes_on_while_passwords_are_checked(bench: Bench, registry: Registry):
    registry.set_password(ALICE, passwords.make("geheim", 10))
    bench.directory.invalidate()
    login = asyncio.ensure_future(bench.login("geheim"))
    turns = 0
    while not login.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100
    assert await login == ALICE


async def test_fields_do_not_run_into_each_other(bench: Bench):
    digest = bench.authenticator._digest
    assert digest("ab", "c", "d") != digest("a", "bc", "d")
    assert digest("a", "b", "") != digest("a", "", "b")
