"""The events of one message put together: from the session that brought it to its last delivery, with its copies.

What belongs together: everything under one queue id; the session that brought it; copies under ids of their own (they
say `copy_of`); notifications about it (`notification_sent` has their Message-ID). A session may bring many messages: of
its refusals only those with the same sender count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pymx.events.event import Event
from pymx.events.store import EventStore

_NOTICE_S = 3600.0  # how long after it is reported sent a notification is looked for
_MAX_COPIES = 50
REFUSED = frozenset({"mail_refused", "rcpt_refused", "message_refused"})


@dataclass(frozen=True, slots=True)
class Story:
    """`queue_ids`: the message's own first, then its copies and notifications. `events` by time."""

    queue_ids: tuple[str, ...]
    events: tuple[Event, ...]

    def first(self, name: str) -> Event | None:
        return next((event for event in self.events if event.name == name), None)

    def value(self, field: str) -> str:
        """A field of the message, from the first event that has it."""
        return next((text for event in self.events if (text := event.text(field))), "")


def story(store: EventStore, queue_id: str) -> Story | None:
    """Everything about the message of that id; None when there is nothing."""
    ids = [queue_id]
    events: dict[tuple[str, ...], Event] = {}
    sessions: dict[str, None] = {}
    looked = 0
    while looked < len(ids) < _MAX_COPIES:
        new, looked = ids[looked:], len(ids)
        for event in store.of_messages(new):
            events[_key(event)] = event
            if event.session and event.queue_id == queue_id:
                sessions[event.session] = None
            for other in (event.text("copy_of"), *_notice(store, event)):
                if other and other not in ids:
                    ids.append(other)
        for event in store.of_sessions(sessions):
            if event.text("copy_of") in ids and event.queue_id not in ids:
                ids.append(event.queue_id)
    if not events:
        return None
    sender = next((text for event in events.values() if (text := event.text("mail_from"))), "")
    for event in store.of_sessions(sessions):
        if event.queue_id in ids or (not event.queue_id and _is_about(event, sender)):
            events[_key(event)] = event
    return Story(tuple(ids), tuple(sorted(events.values(), key=lambda e: e.at_s)))


def refusal(store: EventStore, event: Event) -> Story:
    """A message that was refused before it had a queue id."""
    sender = event.text("mail_from")
    same = [e for e in store.of_sessions([event.session]) if not e.queue_id and _is_about(e, sender)]
    return Story((), tuple(same or [event]))


def messages(events: Iterable[Event]) -> tuple[list[str], list[Event]]:
    """The queue ids that events speak of, in their order, and the refusals among them that have none."""
    ids: dict[str, None] = {}
    refused: dict[tuple[str, str], Event] = {}
    for event in events:
        if event.queue_id:
            ids[event.text("copy_of") or event.queue_id] = None
        elif event.name in REFUSED:
            refused.setdefault((event.session, event.text("mail_from")), event)
    return list(ids), list(refused.values())


def _notice(store: EventStore, event: Event) -> Sequence[str]:
    """The queue id of the notification that the event reports as sent."""
    message_id = event.text("message_id")
    if event.name != "notification_sent" or not message_id:
        return ()
    found = store.containing(
        ["message_accepted", message_id], since_s=event.at_s - _NOTICE_S, until_s=event.at_s + _NOTICE_S, limit=5
    )
    return [other.queue_id for other in found if other.text("message_id") == message_id]


def _is_about(event: Event, sender: str) -> bool:
    return event.name == "smtp_session" or not sender or event.text("mail_from") in ("", sender)


def _key(event: Event) -> tuple[str, ...]:
    return (str(event.at_s), event.name, event.queue_id, event.text("rcpt_to"), event.text("account"))
