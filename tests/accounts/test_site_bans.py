"""Who guesses from the 65,536 networks (/64) of one IPv6 /48: all that he has is banned, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pymx.accounts.banrules import Rules
from pymx.accounts.counters import Counters
from pymx.accounts.limits import LoginLimits
from pymx.accounts.limitstate import FILE_NAME, Failed, LimitState
from pymx.config.model import Limits
from pymx.mail.peer import counted_network, site_network

ALICE, BOB = "alice@example.test", "bob@example.test"
SITE = "2001:db8:5::/48"
RULES = Rules(ban_after=4, site_ban_after=10, window_s=1000, first_s=100, max_s=700, good_s=5000, slow_max_s=10)


def net(number: int) -> str:
    """A /64 of the site."""
    return counted_network(f"2001:db8:5:{number:x}::1")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[LimitState]:
    opened = LimitState(tmp_path / FILE_NAME, RULES)
    vars(opened)["_key"] = b"k" * 32  # under a random one two passwords look alike now and then (16 bits)
    yield opened
    opened.close()


def guess(state: LimitState, number: int, now: float = 1.0, *, account: str = ALICE, network: str = "") -> Failed:
    with state.transaction():
        return state.failed(network or net(number), account, f"password{number}", now)


@pytest.mark.parametrize(
    ("network", "site"),
    [
        ("2001:db8:5:6::/64", "2001:db8:5::/48"),
        ("2001:db8::/64", "2001:db8::/48"),
        ("::/64", "::/48"),
        ("192.0.2.1", ""),
        ("", ""),
    ],
)
def test_the_site_of_a_network(network: str, site: str) -> None:
    """IPv4 has none."""
    assert site_network(network) == site


def test_one_password_from_each_network_is_a_ban_of_them_all(state: LimitState) -> None:
    """No /64 has come near its own limit. Networks elsewhere are left alone; a ban ends, and the next is longer."""
    for number in range(9):
        failed = guess(state, number)
        assert (failed.ban, failed.site_ban) == (None, None)
    failed = guess(state, 9)
    assert failed.ban is None
    assert failed.site_ban is not None
    assert (failed.site_ban.network, failed.distinct_in_site, failed.account_guesses) == (SITE, 10, 10)
    assert state.ban_of(net(0xFFFF), BOB, 2.0) == failed.site_ban
    assert state.ban_on(net(0xFFFF), 2.0) == failed.site_ban
    assert state.ban_of(counted_network("2001:db8:6::1"), BOB, 2.0) is None
    assert state.ban_of(net(1), BOB, 101.0) is None
    again = [guess(state, number, 200.0) for number in range(20, 30)][-1]
    assert again.site_ban is not None
    assert again.site_ban.until_s - again.site_ban.since_s == 200


def test_the_same_passwords_from_everywhere_are_few(state: LimitState) -> None:
    """A telephone with an old one, that has another /64 each time."""
    for number in range(50):
        failed = guess(state, 1, network=net(number))
        assert (failed.ban, failed.site_ban) == (None, None)
    assert failed.distinct_in_site == 1


def test_an_owner_keeps_his_way_in_from_the_whole_site(state: LimitState) -> None:
    """Whoever logged in from one of its networks lately is known in all of them; his own mistakes don't count."""
    with state.transaction():
        state.succeeded(net(1), ALICE, 0.0)
    for number in range(30):
        assert guess(state, number).site_ban is None
    for number in range(10):
        failed = guess(state, number, account=BOB)
    assert failed.site_ban is not None
    assert failed.site_ban.accounts == (ALICE,)
    assert state.ban_of(net(1), ALICE, 2.0) is None
    assert state.ban_of(net(7000), ALICE, 2.0) is None
    assert state.ban_of(net(1), BOB, 2.0) == failed.site_ban


def test_lifting_it_forgets_what_led_to_it(state: LimitState) -> None:
    for number in range(10):
        guess(state, number)
    with state.transaction():
        assert state.lift(SITE)
    assert state.ban_of(net(3), BOB, 2.0) is None
    assert guess(state, 11).distinct_in_site == 1


def test_explanations_name_each_guess_once(state: LimitState) -> None:
    """The second count is not shown beside the first."""
    with state.transaction():
        state.succeeded(net(1), ALICE, 0.0)
    guess(state, 2)
    assert [(g.network, g.distinct) for g in state.guesses(account=ALICE, now=2.0)] == [(net(2), 1)]
    assert [network for network, _, _ in state.logins(account=ALICE, now=2.0)] == [net(1)]


def test_a_ban_by_hand_holds_for_the_owner_too(state: LimitState) -> None:
    with state.transaction():
        state.succeeded(net(1), ALICE, 0.0)
        state.ban(SITE, 100.0, "by hand", 1.0)
    assert state.ban_of(net(1), ALICE, 2.0) is not None
    assert state.ban_of(net(2), ALICE, 2.0) is not None


def test_it_can_be_turned_off(state: LimitState) -> None:
    """[limits] ban_after_ipv6_48 = 0."""
    state.rules = Rules.of(Limits(ban_after=0, ban_after_ipv6_48=0))
    assert {guess(state, number).site_ban for number in range(200)} == {None}


async def test_the_greeting_turns_the_whole_site_away_but_for_trusted_hosts(tmp_path: Path) -> None:
    """Nobody may log in from there, so nobody is asked for a password; [limits] trusted is never counted."""
    settings = Limits(ban_after_ipv6_48=5, slow_max_s=0, trusted=["2001:db8:5:aa::/64"])
    counters = Counters(tmp_path / FILE_NAME, Rules.of(settings))
    limits = LoginLimits(settings, counters)
    try:
        for number in range(5):
            for peer_ip in (f"2001:db8:5:{number:x}::1", "2001:db8:5:aa::1"):
                standing = await limits.admit(peer_ip, ALICE)
                assert standing.ban is None
                await limits.failed(standing, ALICE, f"guess{number}", peer_ip=peer_ip)
        await limits.start()
        assert limits.turned_away("2001:db8:5:ff::1") is not None
        assert limits.turned_away("2001:db8:6:ff::1") is None
        assert limits.turned_away("192.0.2.1") is None
        assert limits.turned_away("2001:db8:5:aa::1") is None
        assert (await limits.admit("2001:db8:5:aa::1", ALICE)).ban is None
        banned = await limits.admit("2001:db8:5:ff::1", ALICE)
        assert banned.ban is not None
        assert banned.ban.network == SITE
    finally:
        await limits.close()
        await counters.close()
