"""What goes wrong with reports; both are for the log, and neither ever stands in the way of mail."""

from __future__ import annotations


class ReportError(ValueError):
    """What came is no report that can be used. The message says why."""


class StoreUnavailable(Exception):
    """The reports database can't be used now: locked, full or damaged."""


class NotTaken(Exception):
    """A report could not be handed over. `temporary`: trying again may help."""

    def __init__(self, reason: str, *, temporary: bool) -> None:
        super().__init__(reason)
        self.temporary = temporary
