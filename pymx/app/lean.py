"""What keeps the processes of the server small: what is not loaded at all, and what is before they are forked."""

from __future__ import annotations

import contextlib
import ctypes
import importlib

from pymx.config.model import Config
from pymx.resolver.lean import leave_out_https

_M_MMAP_THRESHOLD = -3  # malloc.h; said aloud, it stays what it is


def leave_out() -> None:
    """Before anything else of the server is imported."""
    leave_out_https()


def give_memory_back() -> None:
    """Hand the system what the C library keeps of memory that was freed.

    OpenSSL's and uvloop's buffers of a session lie scattered in its heap. glibc gives back only what is free at the
    end of that, so 30 MiB of 1,000 sessions would stay with the process, and more of the next 1,000.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def keep_buffers_apart() -> None:
    """Have the C library map blocks of 128 KiB and more one by one, for the life of the process and its children.

    uvloop reserves 256 KiB for each connection in TLS and touches a few of them. glibc, which takes larger and larger
    blocks from its heap once some were freed, would lay them over what handshakes and compressors had just used: that
    stays in memory, 20 KiB for each idle session (60 with COMPRESS).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 131_072)


def load_shared(config: Config) -> None:
    """Import what each process imports when it starts, so that all of them have it in the same memory."""
    from pymx.accounts.account import AccountsError
    from pymx.accounts.database import load_driver

    with contextlib.suppress(AccountsError):  # the process that opens the database says what is wrong
        load_driver(config.database)
    for library in ("greenlet", "uvloop") if config.event_loop == "uvloop" else ("greenlet",):
        with contextlib.suppress(ImportError):  # said where it is used
            importlib.import_module(library)
