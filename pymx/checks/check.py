"""The interface of a check, and the facts it judges.

A check runs at the stage at which it knows enough. Those of CONNECT, HELO and MAIL are started when the first recipient
has been accepted (a peer that only tries addresses causes no questions) and run while the message arrives; nobody waits
for them before its end. One at RCPT is waited for, and may refuse the recipient. Those of DATA run side by side when
the message is there, save one that needs what others found: it waits for them.

A check never raises: what it can't find out is a verdict too, `unavailable`. The pipeline gives that one when the time
is over, and when a check fails in an unexpected way.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pymx.checks.verdict import Verdict
from pymx.mail.address import Address
from pymx.mail.envelope import Origin, Recipient
from pymx.mailauth.arc.verify import ArcResult
from pymx.mailauth.dkim.verify import BodyHashes, DkimResult
from pymx.mailauth.dmarc.evaluate import DmarcResult
from pymx.mailauth.iprev import IprevResult
from pymx.mailauth.spf.check import SpfResult
from pymx.spool import Content


class Stage(enum.Enum):
    """The moments of an SMTP session at which something new is known."""

    CONNECT = "connect"
    HELO = "helo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"


@dataclass(slots=True)
class Facts:
    """What is known of a message; later stages know more. The last group is what checks leave for each other."""

    origin: Origin
    queue_id: str
    mail_from: Address | None
    recipients: list[Recipient] = field(default_factory=list)
    content: Content | None = None  # None before DATA

    iprev: IprevResult | None = None
    spf: SpfResult | None = None
    dkim: Sequence[DkimResult] | None = None
    arc: ArcResult | None = None
    dmarc: DmarcResult | None = None
    voucher: str = ""  # the trusted sealer on whose word a failing DMARC is overlooked
    scores: dict[str, float] = field(default_factory=dict)  # of the hints, by check
    bodies: BodyHashes | None = None  # see checks.body
    body_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Check(Protocol):
    """One check. `needs` names the checks whose verdicts it waits for; `timeout_s` is less than all checks' limit."""

    @property
    def name(self) -> str: ...

    @property
    def stages(self) -> tuple[Stage, ...]: ...

    @property
    def needs(self) -> tuple[str, ...]: ...

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        """Judge."""

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        """What holds when it can't be found out."""

    async def close(self) -> None:
        """Give back what is held: connections."""
