"""What the queue takes in, hands out for an attempt, and gets back."""

from __future__ import annotations

import enum
import random
import time
from dataclasses import dataclass
from typing import NewType

from pymx.mail.envelope import Envelope, Recipient
from pymx.queue.place import Place, Strain
from pymx.spool import Content

QueueId = NewType("QueueId", str)

_DIGITS = "0123456789ABCDEFGHJKLMNPQRSTVWXYZ"  # no I, O, U: people read these aloud
LOCAL = "local"  # destination of copies for mailboxes here


def new_queue_id() -> QueueId:
    """A name that sorts by time (milliseconds) and ends in 30 random bits; fit for a file name and a log line."""
    number = (int(time.time() * 1000) << 30) | random.getrandbits(30)  # no secret; a taken one is refused
    digits = []
    while number:
        number, digit = divmod(number, 33)
        digits.append(_DIGITS[digit])
    return QueueId("".join(reversed(digits)))


@dataclass(frozen=True, slots=True)
class Copy:
    """A message for some recipients, as it is accepted. `local`: they have mailboxes here."""

    queue_id: QueueId
    envelope: Envelope
    content: Content
    local: bool


class Result(enum.Enum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt meant for one recipient.

    `reply` is what the remote said, or our own words when no remote said anything (then `mx` is ""). `status` is an
    enhanced status code (RFC 3463). `dsn_passed_on`: the remote took over to report success (RFC 3461 s. 5.2.2).
    `strain` is what it says about the place that was tried, for those that wait for the same.
    """

    recipient: Recipient
    result: Result
    status: str
    reply: str
    mx: str = ""
    address: str = ""
    tls: str = ""
    dsn_passed_on: bool = False
    strain: Strain | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to deliver a message to recipients that share a destination.

    `envelope.recipients` are those still waiting. `number` is 1 for the first try. Times are Unix seconds.
    """

    queue_id: QueueId
    destination: str
    envelope: Envelope
    content: Content
    local: bool
    number: int
    arrived_s: float
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Outcomes that somebody has to be told of."""

    queue_id: QueueId
    envelope: Envelope
    content: Content
    local: bool
    arrived_s: float
    outcomes: tuple[Outcome, ...]
    expires_s: float
