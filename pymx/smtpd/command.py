"""What a row of the command table is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymx.proto.smtp.reply import Reply

if TYPE_CHECKING:
    from pymx.smtpd.session import Session

Run = Callable[["Session", str], Awaitable[Reply | None]]


@dataclass(frozen=True, slots=True)
class Command:
    """One SMTP command: `run` gives the reply, or None when it has replied itself, or raises SmtpError.

    `refused` is the event under which a refusal is logged, `max_octets` the length of the command line.
    """

    run: Run
    refused: str = "command_refused"
    max_octets: int = 4096
