"""What the log says of attempts, one line for each recipient, and of places whose pace changes."""

from __future__ import annotations

import time

from pymx import log, metrics
from pymx.queue.item import LOCAL, Attempt, Outcome, Result
from pymx.queue.pace import Change
from pymx.queue.place import Strain
from pymx.queue.window import Noted

_log = log.get("queue")


def log_change(noted: Noted, strain: Strain | None) -> None:
    """A place slows down, is dead, or lives again. The pause is told in whole seconds."""
    if noted.change is Change.ALIVE:
        _log.info("destination_alive", key=noted.name)
        return
    pause_s = round(noted.pace.paused_until - time.time())
    reason = strain.reason if strain else ""
    if noted.change is Change.SLOWED:
        metrics.add("providers_slowed")
        _log.warning("provider_slowed", key=noted.name, pause_s=pause_s, reason=reason)
    else:
        metrics.add("destinations_dead")
        _log.warning("destination_dead", key=noted.name, pause_s=pause_s, reason=reason)


def log_attempt(attempt: Attempt, outcome: Outcome, duration_ms: int) -> None:
    envelope = attempt.envelope
    write = _log.info if outcome.result is Result.DELIVERED else _log.warning
    write(
        "delivery_attempt",
        session=envelope.origin.session,
        queue_id=attempt.queue_id,
        mail_from=str(envelope.mail_from) if envelope.mail_from else "<>",
        rcpt_to=str(outcome.recipient.address),
        verdict=outcome.result.value,
        provider=_provider(attempt),
        mx=outcome.mx,
        peer_ip=outcome.address,
        tls=outcome.tls,
        reply=outcome.reply,
        size_octets=attempt.content.size_octets,
        count=attempt.number,
        duration_ms=duration_ms,
    )


def _provider(attempt: Attempt) -> str:
    """Who is behind the destination, if it is one of those that are known by name."""
    if attempt.destination == LOCAL:
        return LOCAL
    place = attempt.place
    return place.site if place is not None and place.site != place.hosts else ""
