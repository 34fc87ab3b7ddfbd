"""A lock that was taken over as stale is its new owner's: who lost it leaves it alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock


def test_a_lock_of_somebody_else_is_not_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The new lock file would get the old one's inode as soon as that is free, so a name and a number don't tell."""
    target, path = os.fsencode(tmp_path / "target"), tmp_path / "target.lock"
    lock = DotLock(Disk(), target)
    lock.acquire()
    path.unlink()  # as Dovecot does with one that it thinks is stale
    path.write_text("1:mx.test")
    lock.release()
    assert path.read_text() == "1:mx.test"
    assert [r.getMessage() for r in caplog.records] == ["lock_lost"]


def test_a_lock_of_ours_that_replaced_a_lost_one_stays(tmp_path: Path) -> None:
    """Also between threads, which all write the same into it."""
    target, path = os.fsencode(tmp_path / "target"), tmp_path / "target.lock"
    lost, held = DotLock(Disk(), target), DotLock(Disk(), target)
    lost.acquire()
    path.unlink()
    held.acquire()
    lost.release()
    assert path.exists()
    held.release()
    assert not path.exists()


def test_a_lock_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """Its directory was renamed away, or it was taken over and is released again; the next one can be had."""
    target = os.fsencode(tmp_path / "target")
    lock = DotLock(Disk(), target)
    lock.acquire()
    (tmp_path / "target.lock").unlink()
    lock.release()
    (tmp_path / "a").mkdir()
    inside = DotLock(Disk(), os.fsencode(tmp_path / "a" / "target"))
    inside.acquire()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    inside.release()
    assert (tmp_path / "b" / "target.lock").exists()
    with lock:
        assert (tmp_path / "target.lock").exists()


def test_a_held_lock_leaves_no_file_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with DotLock(Disk(), os.fsencode(tmp_path / "target")):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
