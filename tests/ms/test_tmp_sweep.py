"""Deliveries that never ended: their files in `tmp/` are removed after 36 hours, in every mailbox; nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

from pymx.ms.sweep import sweep

NOW = 1_800_000_000.0
HOUR_S = 3600


def put(path: Path, age_h: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (NOW - age_h * HOUR_S,) * 2)
    return path


def test_only_old_files_in_tmp_of_mailboxes_are_removed(tmp_path: Path) -> None:
    account = tmp_path / "example.test" / "alice"
    kept = []
    for box in (account, account / ".Work", account / "Lists" / "Python"):  # both layouts
        kept += [put(box / "cur" / "m", 900), put(box / "new" / "m", 900), put(box / "tmp" / "young", 35)]
    kept.append(put(account / "sieve" / "tmp" / "not-a-mailbox", 900))
    doomed = [put(box / "tmp" / "old", 37) for box in (account, account / ".Work", account / "Lists" / "Python")]
    os.symlink(kept[0], account / "tmp" / "link")
    assert sweep(tmp_path, now=NOW) == 3
    assert not any(path.exists() for path in doomed)
    assert all(path.exists() for path in kept)
    assert (account / "tmp" / "link").is_symlink()


def test_a_missing_root_is_fine(tmp_path: Path) -> None:
    assert sweep(tmp_path / "nothing", now=NOW) == 0
