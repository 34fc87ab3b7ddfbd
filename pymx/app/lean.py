"""What keeps the processes of the server small: what is not loaded at all, and what is before they are forked."""

from __future__ import annotations

import contextlib
import ctypes
import importlib

from pymx.config.model import Config
from pymx.resolver.lean import leave_out_https


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


def load_shared(config: Config) -> None:
    """Import what each process imports when it starts, so that all of them have it in the same memory."""
    from pymx.accounts.account import AccountsError
    from pymx.accounts.database import load_driver

    with contextlib.suppress(AccountsError):  # the process that opens the database says what is wrong
        load_driver(config.database)
    for library in ("greenlet", "uvloop") if config.event_loop == "uvloop" else ("greenlet",):
        with contextlib.suppress(ImportError):  # said where it is used
            importlib.import_module(library)
