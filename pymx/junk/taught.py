"""A mark that changes whenever a filter is taught, by whichever process: a file of eight random octets.

It lets a process remember that an account's filter has nothing to say, and be right. Reading it is one call for a page
in memory, a hundredth of what asking the filter costs. Without the file (a full disk) nothing is remembered.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

NAME = "junk.taught"
_OCTETS = 8


class Taught:
    """The file at `path`, made if need be; open until `close`."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        # nobody who can't be told that there is something new may remember that there was nothing
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not self.mark():
                os.pwrite(self._fd, secrets.token_bytes(_OCTETS), 0)

    def mark(self) -> bytes:
        """The mark as it is now; b"" when there is none."""
        try:
            return os.pread(self._fd, _OCTETS, 0)
        except OSError:
            return b""

    def change(self) -> None:
        """Somebody was taught."""
        with contextlib.suppress(OSError):  # a failing disk: nobody remembers anything for long
            os.pwrite(self._fd, secrets.token_bytes(_OCTETS), 0)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
