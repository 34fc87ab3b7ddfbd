"""What the store refuses, and why.

    StoreError
      NoSuchMailbox    the name has no directory (or it went away while open)
      MailboxExists    CREATE or RENAME onto a name that is there
      InvalidName      the name can't be a folder here
      OverQuota        the account's limit would be passed; temporary
      StorageFull      ENOSPC or EDQUOT; temporary, nothing half-written is visible
      ReadOnly         a change through a mailbox opened with EXAMINE
      LimitReached     a limit of the format (keywords, name length)
      Stopped          a search or sort that nobody waits for any more
      Unavailable      anything else the disk or the index said; temporary, reason in the log

`args[0]` is what the peer may hear; `reason` is for the log only.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pymx.ms.index import IndexTrouble


class StoreError(Exception):
    """A request that the store could not carry out."""

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text


class NoSuchMailbox(StoreError):
    """There is no mailbox of that name."""


class MailboxExists(StoreError):
    """There is one already."""


class InvalidName(StoreError):
    """Not a possible mailbox name."""


class OverQuota(StoreError):
    """The account's limit would be passed."""


class StorageFull(StoreError):
    """No space left on the device."""


class ReadOnly(StoreError):
    """The mailbox was opened read-only."""


class LimitReached(StoreError):
    """A limit of the format."""


class Stopped(StoreError):
    """A search or sort was stopped before it was done."""


class Unavailable(StoreError):
    """The disk or the index failed; try again later."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the file system and SQLite raise into store errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("No space left", reason=str(error)) from error
        raise Unavailable("Mail storage is not available", reason=str(error)) from error
    except IndexTrouble as error:
        if "full" in str(error):
            raise StorageFull("No space left", reason=str(error)) from error
        raise Unavailable("Mail storage is not available", reason=f"index: {error}") from error
