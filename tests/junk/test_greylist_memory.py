"""Who was told to come back later, on disk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymx.junk.greylist import Greylist, GreylistUnusable, Times

DAY = 86400.0
TIMES = Times(delay_s=300, window_s=2 * DAY, remember_s=36 * DAY)
WHO = ("192.0.2.0/24", "a@x.test", "alice@example.test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "greylist.sqlite"


@pytest.fixture
def greylist(path: Path) -> Iterator[Greylist]:
    made = Greylist(path, TIMES)
    yield made
    made.close()


def test_the_first_try_waits_and_the_second_passes(greylist: Greylist) -> None:
    """The time that is left is told; coming back too early changes nothing."""
    assert greylist.may_pass(*WHO, 1000.0) == 300
    assert greylist.may_pass(*WHO, 1100.0) == 200
    assert greylist.may_pass(*WHO, 1301.0) == 0


def test_who_comes_back_too_late_begins_anew(greylist: Greylist) -> None:
    greylist.may_pass(*WHO, 1000.0)
    assert greylist.may_pass(*WHO, 1001.0 + TIMES.window_s) == 300


def test_another_network_sender_or_recipient_is_another_triplet(greylist: Greylist) -> None:
    network, sender, recipient = WHO
    greylist.may_pass(*WHO, 1000.0)
    assert greylist.may_pass("198.51.100.0/24", sender, recipient, 2000.0) == 300
    assert greylist.may_pass(network, "b@x.test", recipient, 2000.0) == 300
    assert greylist.may_pass(network, sender, "bob@example.test", 2000.0) == 300


def test_who_has_passed_is_known_for_his_domain(greylist: Greylist) -> None:
    """RFC 6647 s. 5; the time runs from the last message."""
    network, _, _ = WHO
    greylist.may_pass(*WHO, 0.0)
    greylist.may_pass(*WHO, 400.0)
    later = 30 * DAY
    assert greylist.may_pass(network, "b@x.test", "bob@example.test", later) == 0
    assert greylist.may_pass(network, "b@y.test", "bob@example.test", later) == 300
    assert greylist.may_pass(network, "c@x.test", "bob@example.test", later + 35 * DAY) == 0
    assert greylist.may_pass(network, "c@x.test", "bob@example.test", later + 72 * DAY) == 300


def test_a_clock_that_was_wrong_does_not_lock_out(greylist: Greylist) -> None:
    greylist.may_pass(*WHO, 1e9)
    assert greylist.may_pass(*WHO, 1000.0) == 300
    assert greylist.may_pass(*WHO, 1301.0) == 0


def test_it_is_remembered_over_restarts(path: Path) -> None:
    for now, left in ((1000.0, 300), (1301.0, 0), (1302.0, 0)):
        greylist = Greylist(path, TIMES)
        assert greylist.may_pass(*WHO, now) == left
        greylist.close()


def _ask(path: Path, answers: multiprocessing.SimpleQueue[float]) -> None:
    greylist = Greylist(path, TIMES)
    answers.put(greylist.may_pass(*WHO, 1301.0))
    greylist.close()


def test_another_process_knows(path: Path, greylist: Greylist) -> None:
    assert greylist.may_pass(*WHO, 1000.0) == 300
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_ask, args=(path, answers))
    process.start()
    process.join(30)
    assert answers.get() == 0
    answers.close()
    process.close()


def test_it_stays_small(path: Path) -> None:
    greylist = Greylist(path, TIMES, max_entries=500)
    for number in range(2500):
        greylist.may_pass("192.0.2.0/24", f"{number}@x.test", "a", 1000.0 + number)
    db = greylist._open()
    assert db.execute("SELECT count(*) FROM triplet").fetchone()[0] <= 1500
    assert greylist.may_pass("192.0.2.0/24", "2499@x.test", "a", 4000.0) == 0
    greylist.close()


def test_a_damaged_file_is_moved_aside(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    greylist = Greylist(path, TIMES)
    with pytest.raises(GreylistUnusable, match="moved aside"):
        greylist.may_pass(*WHO, 1000.0)
    assert greylist.may_pass(*WHO, 1000.0) == 300
    greylist.close()


def test_a_directory_that_is_not_there_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(GreylistUnusable):
        Greylist(tmp_path / "no" / "greylist.sqlite", TIMES).may_pass(*WHO, 1000.0)


def test_a_file_that_was_replaced_is_left(path: Path, greylist: Greylist) -> None:
    """Another process found it damaged, say: both have to go by the same file afterwards."""
    greylist.may_pass(*WHO, 1000.0)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    other = Greylist(path, TIMES)
    assert other.may_pass(*WHO, 2000.0) == 300
    assert greylist.may_pass(*WHO, 2301.0) == 0
    other.close()
