"""What an account needs whose files are older than what clients were told: after a restore.

UIDs and UIDVALIDITY values that were given after the backup are in no file any more, and must not be given again. So
the next UID of each mailbox leaps ahead, and the account's next UIDVALIDITY is not below the time. The messages that
are there keep their UIDs. Nobody may use the account meanwhile.
"""

from __future__ import annotations

import os
import time

from pymx.ms import uidlist, uidvalidity
from pymx.ms.disk import Disk
from pymx.ms.dovecotplace import Place
from pymx.ms.layout import Layout

LEAP = 100_000


def leap(place: Place, layout: Layout) -> None:
    """Raises OSError."""
    disk = Disk()
    for levels in list(layout.mailboxes(place.root)):
        control = place.control_of(layout.path(place.root, levels), levels)
        path = os.path.join(control, uidlist.NAME)
        try:
            with open(path, "rb") as file:
                listed = uidlist.parse(file.read())
        except (FileNotFoundError, uidlist.Damaged):
            continue  # the store gives new UIDs, and says so
        listed.header.next_uid = min(listed.next_uid + LEAP, uidlist.MAX_UID)
        _write(disk, path, listed.to_bytes())
        disk.sync_directory(control)
    _leap_uidvalidity(disk, place.account_files)


def _leap_uidvalidity(disk: Disk, directory: bytes) -> None:
    path = os.path.join(directory, uidvalidity.NAME)
    value = int(time.time())
    if not os.path.exists(path) or uidvalidity.last(directory) >= value:
        return
    for name in os.listdir(directory):
        if name.startswith(uidvalidity.NAME + b"."):
            os.unlink(os.path.join(directory, name))
    disk.close(disk.create(path + b".%08x" % value, 0o444))
    _write(disk, path, b"%08x" % value)


def _write(disk: Disk, path: bytes, data: bytes) -> None:
    mode = os.stat(path).st_mode & 0o777
    fd = disk.create(path + b".tmp", mode, exclusive=False)
    try:
        disk.write(fd, data)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    os.replace(path + b".tmp", path)
