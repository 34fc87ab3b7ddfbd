"""What keeps the processes of the server small: what is not loaded at all, and what is before they are forked."""

from __future__ import annotations

import contextlib
import importlib

from pymx.config.model import Config
from pymx.resolver.lean import leave_out_https


def leave_out() -> None:
    """Before anything else of the server is imported."""
    leave_out_https()


def load_shared(config: Config) -> None:
    """Import what each process imports when it starts, so that all of them have it in the same memory."""
    from pymx.accounts.account import AccountsError
    from pymx.accounts.database import load_driver

    with contextlib.suppress(AccountsError):  # the process that opens the database says what is wrong
        load_driver(config.database)
    for library in ("greenlet", "uvloop") if config.event_loop == "uvloop" else ("greenlet",):
        with contextlib.suppress(ImportError):  # said where it is used
            importlib.import_module(library)
