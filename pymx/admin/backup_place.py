"""Where a backup may be written: the sandbox of pymx-backup.service opens /var/backups/pymx, the mail and the state.

Any other directory is read-only in there (ProtectSystem=strict) until a drop-in of the unit opens it. `pymxctl setup`
writes that drop-in for `[backup] target`; a backup that meets a read-only directory says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from pymx.admin.context import CtlError

DEFAULT = Path("/var/backups/pymx")
DROP_IN = "pymx-backup.service.d/target.conf"
NO_DROP_IN = "# [backup] target needs nothing here\n"


def directory_of(target: str) -> Path | None:
    """The directory on this machine that a `[backup] target` writes to; None for none, and for another host."""
    text = target.removeprefix("borg:").removeprefix("file://")
    return Path(text) if text.startswith("/") else None


def drop_in(directory: Path) -> str:
    """The unit's drop-in that opens `directory`, once its disk is mounted. "-": the backup says if it is missing."""
    path = str(directory).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'[Unit]\nRequiresMountsFor="{path}"\n\n[Service]\nReadWritePaths="-{path}"\n'


def refuse_read_only(directory: Path) -> None:
    """Raises CtlError that says what opens it. A directory that is not there is judged by where it would be."""
    place = next(p for p in (directory, *directory.parents) if os.path.exists(p))  # not Path.exists: it may be hidden
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise CtlError(
            f"{directory} is read-only here. If its disk is not: pymx-backup.service may not write there until a "
            f"drop-in opens it; make the directory (install -d -m 700 -o vmail -g vmail {directory}), and run pymxctl "
            f"setup once more, which writes /etc/systemd/system/{DROP_IN}, or write it yourself: "
            f"[Service] ReadWritePaths={directory}"
        )
