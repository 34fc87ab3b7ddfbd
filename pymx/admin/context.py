"""What every pymxctl command is given: the configuration, the output, the daemon's control socket.

A command raises `CtlError` with a text that says what to do and the exit status that fits.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pymx.admin import control_client
from pymx.admin.control_client import ControlError
from pymx.admin.output import Output

if TYPE_CHECKING:
    from pymx.config.model import Config


class Exit(enum.IntEnum):
    OK = 0
    FAILED = 1  # or not found
    USAGE = 2
    UNAVAILABLE = 3  # database or daemon can't be reached


class CtlError(Exception):
    """The command failed."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ControlClient:
    """The running daemon, if it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(self, action: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = 30.0) -> object:
        """Raises ControlError; ControlUnavailable when the daemon isn't running."""
        return control_client.call(self.path, action, arguments, timeout_s=timeout_s)


class Context:
    """`json`: the --json flag. `out` prints; `control` talks to the daemon."""

    def __init__(self, config: Config, config_path: Path, *, json: bool) -> None:
        self.config = config
        self.config_path = config_path
        self.json = json
        self.out = Output(as_json=json)
        self.control = ControlClient(Path(config.control.socket))

    def accounts_changed(self) -> None:
        """Tell the daemon to forget what it remembers. It may well not be running."""
        try:
            self.control.call("invalidate", timeout_s=5.0)
        except control_client.NotRunning:
            pass  # it starts with nothing remembered
        except ControlError as e:
            self.out.warn(f"pymx may remember the old state for {self.config.database.cache_s} s: {e}")

    def become_user(self) -> None:
        """As root, become the server's user for good, so that every file made belongs to it."""
        if os.geteuid() != 0 or self.config.user == "none":
            return
        from pymx.net.privileges import PrivilegeError, drop_privileges

        try:
            drop_privileges(self.config.user)
        except PrivilegeError as e:
            raise CtlError(str(e)) from None
