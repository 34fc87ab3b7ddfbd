"""Mail of removed accounts: kept under `.removed` in the mail root for some days, then deleted.

`pymxctl user remove` moves a mailbox to `<root>/.removed/<domain>/<local-part>-<YYYYMMDD>T<HHMMSS>Z` (with a number
behind it when there is one of that name). The time is read from the name: the directory's own changes whenever somebody
works in it. What has no such name was put there by somebody else and stays.
"""

from __future__ import annotations

import calendar
import re
import shutil
import time
from pathlib import Path

DIRECTORY = ".removed"
_NAME = re.compile(r".+-(\d{8}T\d{6}Z)(?:-\d+)?\Z", re.DOTALL)


def purge(root: Path, *, now: float, keep_s: float) -> list[Path]:
    """Delete what was removed more than `keep_s` before `now` (Unix seconds). Returns what is gone; raises OSError."""
    gone: list[Path] = []
    if not (root / DIRECTORY).is_dir():
        return gone
    for domain in (root / DIRECTORY).iterdir():
        if not domain.is_dir() or domain.is_symlink():
            continue
        for mailbox in domain.iterdir():
            removed_at = _removed_at(mailbox.name)
            if removed_at is None or removed_at + keep_s > now or mailbox.is_symlink():
                continue
            shutil.rmtree(mailbox)
            gone.append(mailbox)
    return gone


def _removed_at(name: str) -> float | None:
    match = _NAME.match(name)
    if not match:
        return None
    try:
        return calendar.timegm(time.strptime(match[1], "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None
