"""Bans: what earns one, for how long, and whom it never keeps out. The real store under a clock of our own."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pymx.accounts.banrules import FORGIVEN_S, Rules, account_key, tag
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.config.model import Limits
from pymx.mail.peer import named_network

RULES = Rules(ban_after=4, site_ban_after=0, window_s=1000, first_s=100, max_s=700, good_s=5000, slow_max_s=10)
HERE, THERE = "192.0.2.1", "2001:db8::/64"
ALICE, BOB = "alice@example.test", "bob@example.test"


def opened_state(path: Path) -> LimitState:
    """With a key of ours: under a random one two passwords look alike now and then (16 bits)."""
    state = LimitState(path, RULES)
    vars(state)["_key"] = b"k" * 32
    return state


@pytest.fixture
def state(tmp_path: Path):
    opened = opened_state(tmp_path / FILE_NAME)
    yield opened
    opened.close()


def guess(state: LimitState, passwords, now: float, *, network: str = HERE, account: str = ALICE):
    """The outcome of the last of these."""
    with state.transaction():
        return [state.failed(network, account, password, now) for password in passwords][-1]


def test_so_many_different_passwords_are_a_ban(state: LimitState):
    assert guess(state, "abc", 0.0).ban is None
    failed = guess(state, "d", 1.0)
    assert failed.ban is not None
    assert (failed.ban.since_s, failed.ban.until_s) == (1.0, 101.0)
    assert failed.ban.reason == "4 different wrong passwords for alice@example.test"
    assert state.ban_of(HERE, BOB, 2.0) == failed.ban
    assert state.ban_of(HERE, BOB, 101.0) is None
    assert state.ban_of(THERE, ALICE, 2.0) is None


def test_the_same_password_again_and_again_is_slow_and_no_ban(state: LimitState):
    """A phone with an old password."""
    for i in range(200):
        failed = guess(state, ["old"], float(i))
        assert failed.ban is None
    assert (failed.times, failed.distinct) == (200, 1)
    assert RULES.wait_s(failed.times, failed.account_guesses) == RULES.slow_max_s


def test_one_password_at_many_accounts_is_as_many_guesses(state: LimitState):
    """Spraying."""
    for i in range(3):
        assert guess(state, ["summer"], 0.0, account=f"user{i}@example.test").ban is None
    assert guess(state, ["summer"], 0.0, account="user3@example.test").ban is not None


def test_old_guesses_do_not_count(state: LimitState):
    guess(state, "abc", 0.0)
    assert guess(state, "d", RULES.window_s + 1).ban is None


def test_each_ban_is_twice_as_long_up_to_the_longest(state: LimitState):
    now, lengths = 0.0, []
    for _ in range(6):
        ban = guess(state, "abcd", now).ban
        assert ban is not None
        lengths.append(ban.until_s - ban.since_s)
        now = ban.until_s + 1
    assert lengths == [100, 200, 400, 700, 700, 700]
    ban = guess(state, "abcd", now + FORGIVEN_S + RULES.max_s).ban
    assert ban is not None
    assert ban.until_s - ban.since_s == 100  # it was quiet for so long that it begins anew


def test_a_good_login_keeps_the_way_to_that_account_open(state: LimitState):
    """And to no other one."""
    with state.transaction():
        state.succeeded(HERE, ALICE, 0.0)
    assert guess(state, "abcdefgh", 1.0).ban is None  # the owner, trying all the passwords he has
    ban = guess(state, "abcd", 2.0, account=BOB).ban
    assert ban is not None
    assert ban.accounts == (ALICE,)
    assert state.ban_of(HERE, ALICE, 3.0) is None
    assert state.ban_of(HERE, BOB, 3.0) == ban
    assert state.ban_of(HERE, ALICE, 6000.0) is None


def test_the_way_closes_when_the_good_login_is_long_ago(state: LimitState):
    with state.transaction():
        state.succeeded(HERE, ALICE, 0.0)
    guess(state, "abcd", 4990.0, account=BOB)
    assert state.ban_of(HERE, ALICE, 4999.0) is None
    assert state.ban_of(HERE, ALICE, 5001.0) is not None


def test_a_ban_is_lifted_with_all_that_led_to_it(state: LimitState):
    guess(state, "abcd", 0.0)
    with state.transaction():
        assert state.lift(HERE)
        assert not state.lift(HERE)
    assert state.ban_of(HERE, ALICE, 1.0) is None
    ban = guess(state, "abcd", 2.0).ban
    assert ban is not None
    assert ban.until_s - ban.since_s == 100


def test_the_administrator_bans_networks_for_every_account(state: LimitState):
    with state.transaction():
        state.succeeded(HERE, ALICE, 0.0)
        state.ban("192.0.2.0/24", 50.0, "enough", 0.0)
    assert state.ban_of(HERE, ALICE, 1.0) is not None
    assert state.ban_of("192.0.3.1", ALICE, 1.0) is None
    assert state.ban_of(THERE, ALICE, 1.0) is None
    assert state.ban_of(HERE, ALICE, 51.0) is None


def test_no_ban_at_all_when_it_is_off(tmp_path: Path):
    state = LimitState(tmp_path / FILE_NAME, replace(RULES, ban_after=0))
    assert guess(state, (str(i) for i in range(500)), 0.0).ban is None
    state.close()


def test_somebody_guessing_from_many_addresses_is_slow(state: LimitState):
    for i in range(50):
        failed = guess(state, [f"p{i}"], 0.0, network=f"198.51.100.{i}")
        assert failed.ban is None
    assert RULES.wait_s(1, 49) == 0.5
    assert RULES.wait_s(failed.times, failed.account_guesses) == RULES.slow_max_s


@pytest.mark.parametrize(("times", "wait_s"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 8), (6, 10), (10_000, 10)])
def test_answers_get_slower(times: int, wait_s: float):
    assert RULES.wait_s(times, 0) == wait_s


def test_of_a_password_16_bits_are_kept(state: LimitState, tmp_path: Path):
    """Under a key of this installation."""
    guess(state, ["correct horse battery staple"], 0.0)
    state.close()
    assert b"horse" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    key = b"k" * 32
    assert {tag(key, ALICE, str(i)) >> 16 for i in range(100)} == {0}
    assert tag(key, ALICE, "a") != tag(b"l" * 32, ALICE, "a")
    assert tag(key, "a", "bc") != tag(key, "ab", "c")
    LimitState(tmp_path / FILE_NAME, RULES).close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_what_is_over_is_forgotten(state: LimitState):
    guess(state, "abcd", 0.0)
    guess(state, "x", 10.0, network=THERE)
    with state.transaction():
        state.succeeded(THERE, ALICE, 0.0)
        state.tidy(2 * FORGIVEN_S)
    assert state.former_ban(HERE) is None
    assert state.guesses(network=THERE, now=11.0) == []
    assert state.logins(network=THERE, now=11.0) == []


def test_a_damaged_file_is_moved_aside(tmp_path: Path):
    path = tmp_path / FILE_NAME
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    state = LimitState(path, RULES)
    assert state.moved == tmp_path / (FILE_NAME + ".damaged")
    assert guess(state, "abcd", 0.0).ban is not None
    state.close()


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("192.0.2.9/24", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::7", "2001:db8::/64"),
        ("[2001:db8::7]", "2001:db8::/64"),
        ("2001:db8::7/96", "2001:db8::/64"),
        ("2001:db8::/48", "2001:db8::/48"),
    ],
)
def test_how_an_administrator_may_write_an_address(text: str, network: str):
    assert named_network(text) == network


@pytest.mark.parametrize("text", ["", "example.com", "192.0.2.1/33", "192.0.2"])
def test_what_is_no_address(text: str):
    with pytest.raises(ValueError):
        named_network(text)


def test_a_login_of_any_length_and_kind_has_a_key():
    assert account_key(" Alice@EXAMPLE.test ") == ALICE
    assert len(account_key("ä" * 10_000).encode()) <= 254
    account_key("\udcff\0")


def test_rules_come_from_the_settings():
    rules = Rules.of(Limits(good_login_days=2))
    assert rules.good_s == 2 * 86_400
    assert rules.ban_after == Limits().ban_after


@dataclass
class _Model:
    """The rules again, in the plainest way."""

    until: float = 0.0
    level: int = 0


class Bans(RuleBasedStateMachine):
    """Whatever happens in whatever order: the store bans exactly whom the rules say."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / FILE_NAME
        self.state = opened_state(self.path)
        self.now = 1_000_000.0
        self.guesses: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
        self.logins: dict[tuple[str, str], float] = {}
        self.bans: dict[str, _Model] = defaultdict(_Model)

    networks = st.sampled_from([HERE, THERE])
    accounts = st.sampled_from([ALICE, BOB])

    def knows(self, network: str, account: str) -> bool:
        return self.logins.get((network, account), -1e9) > self.now - RULES.good_s

    def banned(self, network: str, account: str) -> bool:
        return self.bans[network].until > self.now and not self.knows(network, account)

    @rule(network=networks, account=accounts, password=st.sampled_from("abcdefg"))
    def wrong(self, network: str, account: str, password: str) -> None:
        if self.banned(network, account):
            return  # nobody looks at it
        ban = guess(self.state, [password], self.now, network=network, account=account).ban
        self.guesses[network][account, password] = self.now
        counted = [
            key
            for key, last in self.guesses[network].items()
            if last > self.now - RULES.window_s and not self.knows(network, key[0])
        ]
        model = self.bans[network]
        if len(counted) < RULES.ban_after or model.until > self.now:
            assert ban is None
            return
        assert ban is not None
        level = 0 if model.until + FORGIVEN_S < self.now else model.level
        length = min(RULES.max_s, RULES.first_s * 2**level)
        assert ban.until_s - ban.since_s == pytest.approx(length)
        assert length <= RULES.max_s
        self.bans[network] = _Model(self.now + length, level + 1)
        self.guesses[network].clear()

    @rule(network=networks, account=accounts)
    def right(self, network: str, account: str) -> None:
        if self.banned(network, account):
            return
        with self.state.transaction():
            self.state.succeeded(network, account, self.now)
        self.logins[network, account] = self.now

    @rule(seconds=st.sampled_from([1.0, 60.0, 500.0, 1500.0, 6000.0, FORGIVEN_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tidy(self) -> None:
        with self.state.transaction():
            self.state.tidy(self.now)

    @rule()
    def restart(self) -> None:
        self.state.close()
        self.state = opened_state(self.path)

    @rule(network=networks)
    def lift(self, network: str) -> None:
        with self.state.transaction():
            self.state.lift(network)
        self.bans[network] = _Model()
        self.guesses[network].clear()

    @invariant()
    def the_store_agrees(self) -> None:
        for network in (HERE, THERE):
            for account in (ALICE, BOB):
                ban = self.state.ban_of(network, account, self.now)
                assert (ban is not None) == self.banned(network, account)
                assert not (ban is not None and self.knows(network, account))

    def teardown(self) -> None:
        self.state.close()
        self.directory.cleanup()


TestBans = Bans.TestCase
TestBans.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)
