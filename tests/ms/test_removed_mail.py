"""Mail of removed accounts is kept for a time, then deleted; nothing else is."""

import calendar
import os
from pathlib import Path

from pymx.ms.removed import purge

DAY_S = 86400.0
NOW = float(calendar.timegm((2026, 11, 24, 12, 0, 0)))


def test_only_what_was_removed_long_ago_is_deleted(tmp_path: Path) -> None:
    directory = tmp_path / ".removed" / "example.test"
    for name in (
        "old-20261001T000000Z",
        "old-20261001T000000Z-2",
        "recent-20261110T000000Z",
        "nobody-knows",
        "odd-20269999T000000Z",
    ):
        (directory / name / "cur").mkdir(parents=True)
        (directory / name / "cur" / "m").write_text("x")
    os.symlink("/", directory / "link-20261001T000000Z")
    (tmp_path / "example.test" / "alice" / "cur").mkdir(parents=True)
    gone = purge(tmp_path, now=NOW, keep_s=30 * DAY_S)
    assert sorted(p.name for p in gone) == ["old-20261001T000000Z", "old-20261001T000000Z-2"]
    assert sorted(p.name for p in directory.iterdir()) == [
        "link-20261001T000000Z",
        "nobody-knows",
        "odd-20269999T000000Z",
        "recent-20261110T000000Z",
    ]
    assert (tmp_path / "example.test" / "alice" / "cur").is_dir()


def test_a_root_without_removed_mail_is_fine(tmp_path: Path) -> None:
    assert purge(tmp_path, now=NOW, keep_s=0) == []
