"""Where the nightly backup may write: a drop-in of its unit for each directory but the usual one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.programs import require

from pymx.admin import backup_place, ctl
from pymx.admin.backup_directory import DirectoryTarget
from pymx.admin.context import CtlError
from pymx.admin.install.units import unit_text


@pytest.mark.parametrize(
    ("target", "directory"),
    [
        ("", None),
        ("/mnt/disk/pymx", "/mnt/disk/pymx"),
        ("borg:/mnt/disk/pymx", "/mnt/disk/pymx"),
        ("borg:file:///mnt/disk/pymx", "/mnt/disk/pymx"),
        ("borg:ssh://backup@host/./pymx", None),
        ("borg:backup@host:pymx", None),
    ],
)
def test_directories_of_this_machine_are_known(target: str, directory: str | None) -> None:
    assert backup_place.directory_of(target) == (Path(directory) if directory else None)


@pytest.mark.parametrize("target", ["/mnt/disk/pymx", 'borg:/mnt/a disk/50% "pymx"'])
def test_setup_opens_the_target_to_the_unit(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run once more, it writes the drop-in, which systemd knows every word of; a new target is a new drop-in."""
    analyze = require("systemd-analyze", "systemd")
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    words = [
        "setup",
        "mx.example.com",
        "--domain",
        "example.com",
        "--root",
        str(root),
        "--yes",
        "--certificate",
        "later",
    ]
    units = root / "etc/systemd/system"
    assert ctl.main(words) == 0
    assert not (units / backup_place.DROP_IN).exists()
    with (root / "etc/pymx/pymx.toml").open("a") as config:
        config.write(f"[backup]\ntarget = '{target}'\n")
    assert ctl.main(words) == 0
    text = (units / backup_place.DROP_IN).read_text()
    assert "ReadWritePaths=" in text
    (tmp_path / "pymx-backup.service").write_text(
        re.sub(r"/opt/pymx/bin/\w+", "/bin/true", unit_text("pymx-backup.service", Path("/opt/pymx/bin")))
    )
    (tmp_path / backup_place.DROP_IN).parent.mkdir()
    (tmp_path / backup_place.DROP_IN).write_text(text)
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / "pymx-backup.service")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert "pymx-backup" not in done.stderr, done.stderr
    capsys.readouterr()
    config_path = root / "etc/pymx/pymx.toml"
    config_path.write_text(config_path.read_text().replace(target, "/srv/other"))
    assert ctl.main([*words, "--json"]) == 0
    assert backup_place.DROP_IN in capsys.readouterr().out
    assert '"-/srv/other"' in (units / backup_place.DROP_IN).read_text()
    config_path.write_text(config_path.read_text().replace("/srv/other", "borg:ssh://backup@host/./pymx"))
    assert ctl.main([*words, "--json"]) == 0
    assert (units / backup_place.DROP_IN).read_text() == backup_place.NO_DROP_IN


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_target_that_is_hidden_from_us_is_refused_in_words(tmp_path: Path) -> None:
    """Below a directory of root's, which the server's user may not look into."""
    (tmp_path / "root").mkdir(mode=0o700)
    try:
        os.seteuid(65534)
        backup_place.refuse_read_only(tmp_path / "root/disk/pymx")  # not for that reason
        with pytest.raises(CtlError, match="Permission denied"):
            DirectoryTarget(tmp_path / "root/disk/pymx").prepare()
    finally:
        os.seteuid(0)
