"""pymxctl bans on the file alone, the server stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pymx.accounts.banrules import Rules
from pymx.accounts.limitstate import FILE_NAME, LimitState
from pymx.admin.ctl import main
from pymx.config.model import Limits

HERE = "192.0.2.1"
ALICE = "alice@example.test"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pymx.toml"
    path.write_text(
        f'hostname = "mx.example.test"\ndata_dir = "{tmp_path}/data"\nuser = "none"\n'
        '[limits]\nban_after = 3\ntrusted = ["203.0.113.0/24"]\n'
    )
    return path


@pytest.fixture
def state(config: Path, tmp_path: Path):
    opened = LimitState(tmp_path / "data" / FILE_NAME, Rules.of(Limits(ban_after=3)))
    vars(opened)["_key"] = b"k" * 32
    yield opened
    opened.close()


class Ctl:
    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = config
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str]:
        status = main(["--config", str(self._config), "bans", *words])
        captured = self._capsys.readouterr()
        return status, captured.out + captured.err

    def json(self, *words: str):
        status, out = self(*words, "--json")
        return status, json.loads(out)


@pytest.fixture
def ctl(config: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(config, capsys)


def guess(state: LimitState, passwords: str, now: float, network: str = HERE) -> None:
    with state.transaction():
        for password in passwords:
            state.failed(network, ALICE, password, now)


def test_nobody_is_banned(ctl: Ctl):
    assert ctl("list") == (0, "nobody is banned\n")
    assert ctl.json("list") == (0, [])


def test_what_leads_to_a_ban_is_explained(ctl: Ctl, state: LimitState):
    guess(state, "aab", time.time())
    status, out = ctl("explain", HERE)
    assert status == 0
    assert "2 of 3 different wrong passwords within 6 hours; with the last one it is banned for 10 minutes." in out
    assert "The next wrong password is answered after 4 s." in out
    assert f"{ALICE}: 2 different wrong passwords, 3 tries" in out
    guess(state, "c", time.time())
    status, told = ctl.json("explain", HERE)
    assert (told["banned"], told["bans_so_far"], told["next_ban_s"]) == (True, 1, 1200)
    assert told["ban"]["reason"] == f"3 different wrong passwords for {ALICE}"
    assert ctl("remove", HERE) == (0, f"{HERE} may log in again\n")
    assert "0 of 3" in ctl("explain", HERE)[1]
    status, out = ctl("remove", HERE)
    assert (status, out) == (1, f"pymxctl: {HERE} is not banned\n")


def test_good_logins_are_told(ctl: Ctl, state: LimitState):
    with state.transaction():
        state.succeeded(HERE, ALICE, time.time())
    assert "so it is never kept out from there" in ctl("explain", HERE)[1]
    assert f"  {HERE}: a good login at" in ctl("explain", ALICE)[1]
    assert ctl.json("explain", ALICE)[1]["good_logins"][0]["network"] == HERE


def test_trusted_addresses_can_not_be_banned(ctl: Ctl):
    status, out = ctl("add", "203.0.113.9")
    assert status == 1
    assert "never banned" in out
    assert "in [limits] trusted: never banned, never slowed" in ctl("explain", "203.0.113.9")[1]


def test_a_network_is_banned_and_lifted_by_hand(ctl: Ctl):
    assert ctl("add", "2001:db8::7", "--for", "2h", "--reason", "rude")[0] == 0
    ((ban),) = ctl.json("list")[1]
    assert (ban["network"], ban["manual"], ban["reason"]) == ("2001:db8::/64", True, "rude")
    assert "rude" in ctl("explain", "2001:db8::ffff")[1]
    assert ctl("add", "192.0.2.0/24")[0] == 0
    status, out = ctl("remove", HERE)
    assert status == 1
    assert "pymxctl bans remove 192.0.2.0/24" in out
    assert ctl("remove", "192.0.2.0/24")[0] == 0
    assert ctl("remove", "2001:db8::/64")[0] == 0
    assert ctl("list")[1] == "nobody is banned\n"


def test_a_damaged_file_is_said(ctl: Ctl, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE_NAME).write_bytes(b"garbage" * 1000)
    status, out = ctl("list")
    assert status == 0
    assert "was damaged" in out


def test_a_file_of_a_later_version_is_left_alone(ctl: Ctl, state: LimitState, tmp_path: Path):
    state._db.execute("PRAGMA user_version = 99")
    status, out = ctl("list")
    assert status == 3
    assert "another version" in out
