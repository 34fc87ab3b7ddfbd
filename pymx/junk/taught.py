"""A mark that changes whenever a filter is taught, by whichever process: a file of eight random octets.

It lets a process remember that an account's filter has nothing to say, and be right but for the last `_FRESH_S`: a busy
process does not read the file for each message. The call is short, but it lets go of the GIL, and to get that back from
the threads that write the mail takes longer than all else that is done here. Without the file (a full disk) nothing is
remembered.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from pathlib import Path

NAME = "junk.taught"
_OCTETS = 8
_FRESH_S = 0.1


class Taught:
    """The file at `path`, made if need be; open until `close`."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._mark = b""
        self._read = -math.inf
        # nobody who can't be told that there is something new may remember that there was nothing
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not self.mark():
                self.change()

    def mark(self) -> bytes:
        """The mark as it was at most `_FRESH_S` ago; b"" when there is none."""
        now = time.monotonic()
        if now - self._read >= _FRESH_S:
            self._read = now
            try:
                self._mark = os.pread(self._fd, _OCTETS, 0)
            except OSError:
                self._mark = b""
        return self._mark

    def change(self) -> None:
        """Somebody was taught."""
        with contextlib.suppress(OSError):  # a failing disk: nobody remembers anything for long
            os.pwrite(self._fd, secrets.token_bytes(_OCTETS), 0)
        self._read = -math.inf

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
