"""Messages and settings for the tests of the queue."""

from __future__ import annotations

from collections.abc import Iterable

from pymx.config.model import Outbound
from pymx.mail.address import Address, parse_address
from pymx.mail.envelope import Envelope, Listener, Origin, Recipient
from pymx.queue.item import Attempt, Copy, Outcome, Report, Result, new_queue_id
from pymx.queue.state import Want
from pymx.spool import Content

ALICE = Address("alice", "example.test")


def envelope(*to: str, sender: Address | None = ALICE, account: str = "alice@example.test") -> Envelope:
    return Envelope(
        sender,
        tuple(Recipient(parse_address(address)) for address in to),
        Origin(Listener.SUBMISSION, session="s1", account=account),
    )


def content(text: str = "hello") -> Content:
    return Content.from_bytes(f"From: alice@example.test\r\nSubject: {text}\r\n\r\n{text}\r\n".encode())


def copy(*to: str, text: str = "hello", local: bool = False, sender: Address | None = ALICE) -> Copy:
    return Copy(new_queue_id(), envelope(*to, sender=sender), content(text), local)


def want(**changes: object) -> Want:
    """Everything that is due."""
    values: dict[str, object] = {
        "now": 1e12, "lease": 1, "after_id": 0, "fresh_limit": 100, "after_due": (0.0, 0), "deferred_limit": 100,
        "per_site": 100, "waiting": {},
    }  # fmt: skip
    return Want(**(values | changes))  # type: ignore[arg-type]


def outcomes(attempt: Attempt, result: Result = Result.DELIVERED, reply: str = "250 2.0.0 ok") -> list[Outcome]:
    status = {"delivered": "2.0.0", "deferred": "4.0.0", "failed": "5.0.0"}[result.value]
    return [Outcome(r, result, status, reply, "mx.remote.test") for r in attempt.envelope.recipients]


class Remote:
    """Stands for delivery: keeps what it was given, answers as told by domain."""

    def __init__(self, results: dict[str, Result] | None = None) -> None:
        self.results = results or {}
        self.attempts: list[Attempt] = []
        self.reports: list[Report] = []
        self.late: list[Report] = []

    async def attempt(self, attempt: Attempt) -> list[Outcome]:
        self.attempts.append(attempt)
        result = self.results.get(attempt.destination, Result.DELIVERED)
        return outcomes(attempt, result, "250 ok" if result is Result.DELIVERED else "450 4.0.0 later")

    async def gave_up(self, report: Report) -> None:
        self.reports.append(report)

    async def delayed(self, report: Report) -> None:
        self.late.append(report)

    @property
    def served(self) -> list[str]:
        return [str(r.address) for a in self.attempts for r in a.envelope.recipients]


OUTBOUND = Outbound()


def addresses(recipients: Iterable[Recipient]) -> list[str]:
    return [str(r.address) for r in recipients]
