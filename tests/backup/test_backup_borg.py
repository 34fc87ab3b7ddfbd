"""A Borg repository: its archives are proved by a server that serves them, and thinned out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import require

PASSPHRASE = "correct horse"


@pytest.fixture
def borg(still, tmp_path: Path) -> Callable[..., str]:
    """Borg's own command on the repository of `still`, which is what is configured."""
    program = require("borg", "borgbackup")
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    still.set(
        f'[backup]\npassphrase_file = "{tmp_path}/passphrase"\ntarget = "borg:{tmp_path}/repository"\n'
        "keep_daily = 2\nkeep_weekly = 0\nkeep_monthly = 0\n"
    )
    environment = {**os.environ, "BORG_PASSPHRASE": PASSPHRASE, "BORG_BASE_DIR": str(still.data / "backup/borg")}

    def run(command: str, *words: str) -> str:
        done = subprocess.run(
            [program, command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_archive_is_served_and_read_as_a_proof(still, borg: Callable[..., str]) -> None:
    """`verify` as it is: restored into a throw-away server, every message read over IMAP."""
    still.fill(12)
    made = still.json("backup", "create")
    seen = still.json("backup", "verify")
    assert (seen["name"], seen["messages"], seen["mailboxes"]) == (made["name"], 12, 3)


def test_archive_that_a_client_would_not_know_again_is_no_proof(still, borg: Callable[..., str]) -> None:
    """All hashes fit; only a server that serves the archive can tell."""
    still.fill(4)
    uidlist = still.account / "dovecot-uidlist"
    first, *lines = uidlist.read_text().splitlines(keepends=True)
    uidlist.write_text(first + "".join(lines) + lines[0].replace("2 :", "77 :", 1))  # one base with two UIDs
    still.ctl("backup", "create")
    still.ctl("backup", "verify", "--files-only")
    done = still.ctl("backup", "verify", check=False)
    assert done.returncode == 1
    assert "there is no message with UID" in done.stdout


def test_prune_thins_out_a_repository(still, borg: Callable[..., str], tmp_path: Path) -> None:
    """By the rules of [backup]; archives of other programs stay, and what is left is whole."""
    still.fill(6)
    archive = "repository::pymx-mx.example.test-"
    for name in ("20260302T030000Z", "20260303T120000Z"):
        made = still.json("backup", "create")["name"]
        borg("rename", archive + made, "pymx-mx.example.test-" + name)
    still.deliver(99)
    made = still.json("backup", "create")["name"]
    borg("create", "repository::somebody-else", "passphrase")
    would = still.json("backup", "prune", "--dry-run")["removed"]
    assert would == ["20260302T030000Z"]
    assert len(still.json("backup", "list")) == 3
    assert still.json("backup", "prune")["removed"] == would
    assert [row["name"] for row in still.json("backup", "list")] == ["20260303T120000Z", made]
    left = borg("list", "--short", "repository").split()
    assert left == ["pymx-mx.example.test-20260303T120000Z", f"pymx-mx.example.test-{made}", "somebody-else"]
    still.ctl("backup", "verify", "--files-only", "--at", "20260303T120000Z")
    still.ctl("restore", f"borg:{tmp_path}/repository", "--to", str(tmp_path / "to"))
    assert len(list((tmp_path / "to/mail").rglob("cur/*"))) == 7
