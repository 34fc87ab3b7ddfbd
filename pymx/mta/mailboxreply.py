"""What is said of mailboxes here that could not take a message: to the peer, and to the queue about its copies."""

from __future__ import annotations

from collections.abc import Iterable

from pymx.mail.envelope import Recipient
from pymx.mda.deliver import Failure, Outcome
from pymx.proto.smtp import reply as replies
from pymx.proto.smtp.reply import Reply, SmtpError
from pymx.queue import item
from pymx.queue.item import Result

_REPLIES = {
    Failure.OVER_QUOTA: replies.OVER_QUOTA,
    Failure.STORAGE_FULL: replies.STORAGE_FULL,
    Failure.UNAVAILABLE: replies.TEMPORARY_FAILURE,
    Failure.IMPOSSIBLE: Reply(550, "5.2.1", "Mailbox cannot receive messages"),
}


def refusal(failed: Iterable[Outcome]) -> SmtpError:
    """What the peer hears when no mailbox took its message: temporary beats permanent, since what can still succeed is
    worth a retry."""
    worst = min(failed, key=lambda o: o.failure is not None and o.failure.is_permanent)
    assert worst.failure is not None
    return SmtpError(_REPLIES[worst.failure], f"{worst.recipient.account.email}: {worst.reason}")


def queued_outcome(recipient: Recipient, failure: Failure | None, reason: str) -> item.Outcome:
    """What becomes of a copy in the queue; without a failure the mailbox has it."""
    if failure is None:
        return item.Outcome(recipient, Result.DELIVERED, "2.0.0", "Delivered")
    reply = _REPLIES[failure]
    result = Result.FAILED if failure.is_permanent else Result.DEFERRED
    return item.Outcome(recipient, result, reply.enhanced, f"{reply.text} ({reason})")
