"""pymxctl trace ID|MESSAGE-ID|ADDRESS [--since WHEN] [--limit N] [--full]: what became of a message.

Reads the event store and the queue's state, so it works while the server runs and while it doesn't. What is asked for
may be a queue id, a session, a Message-ID or an address; several messages are listed, newest first, one is told whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.times import duration, iso, local, parse_since
from pymx.admin.wording import sentence, word
from pymx.events.event import Event
from pymx.events.keeping import store_path
from pymx.events.store import EventStore, StoreError
from pymx.events.story import Story, messages, refusal, story
from pymx.mail.advice import advice
from pymx.queue import browse
from pymx.queue.state import State, StateDamaged

_LIMIT = 20
_EVENTS_PER_MESSAGE = 30  # of what is looked through for a list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="ID|MESSAGE-ID|ADDRESS", help="queue id, session, Message-ID or address")
    parser.add_argument(
        "--since", type=parse_since, default=0.0, metavar="WHEN", help="such as 2h, 3d, 14:30, 2026-11-24"
    )
    parser.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"messages to list (default {_LIMIT})")
    parser.add_argument("--full", action="store_true", help="tell each of several messages whole")


def run(args: argparse.Namespace, context: Context) -> int:
    with opened(context) as store:
        found = find(store, args.what, since_s=args.since, limit=args.limit)
        if not found:
            raise CtlError(_nothing(store, args.what, args.since))
        waiting = _waiting(context, found)
        losses = _losses(store, found)
    if context.json:
        told = [_as_json(one, waiting) for one in found]
        context.out.details({"messages": told, "events_dropped": sum(int(e.fields.get("count", 0)) for e in losses)})
    elif len(found) > 1 and not args.full:
        _list(found, waiting, context)
    else:
        for number, one in enumerate(found):
            if number:
                print()
            _tell(one, waiting)
    for loss in losses:
        context.out.warn(f"{local(loss.at_s)}: {loss.text('count')} events were dropped, so something may be missing")
    return Exit.OK


@contextmanager
def opened(context: Context) -> Iterator[EventStore]:
    """The event store of the configured server. Raises CtlError."""
    config = context.config
    store = EventStore(store_path(Path(config.data_dir)))
    try:
        store.open_to_read()
        yield store
    except FileNotFoundError:
        off = " ([events] keep_days = 0)" if not config.events.keep_days else "; has the server run?"
        raise CtlError(f"there is no event store at {store.path}{off}") from None
    except StoreError as e:
        raise CtlError(f"{store.path} can't be read: {e}; a running server begins a new one when it is damaged") from e
    finally:
        store.close()


def find(store: EventStore, what: str, *, since_s: float, limit: int) -> list[Story]:
    """The messages that `what` names, newest first."""
    told = story(store, what.upper()) if what.isalnum() else None
    if told is not None:
        return [told]
    events = [e for e in store.of_sessions([what]) if e.at_s >= since_s][::-1]
    if not events:
        wanted = what.strip("<>").lower()
        events = store.containing([wanted], since_s=since_s, limit=limit * _EVENTS_PER_MESSAGE)
        events = [event for event in events if _names(event, wanted)]
    ids, refused = messages(events)
    stories: list[Story] = []
    seen: set[str] = set()
    for queue_id in ids:
        if queue_id in seen or len(stories) >= limit:
            continue
        one = story(store, queue_id)
        if one is not None:
            seen.update(one.queue_ids)
            stories.append(one)
    stories += [refusal(store, event) for event in refused if not _is_told(event, stories)]
    return sorted(stories, key=lambda s: -s.events[0].at_s)[:limit]


def _names(event: Event, wanted: str) -> bool:
    """Is `wanted` an address or the Message-ID of the event, and not a part of one?"""
    text = event.text
    values = [text("mail_from"), text("account"), *text("rcpt_to").split(","), text("message_id")]
    return any(value.strip("<> ").lower() == wanted for value in values)


def _is_told(event: Event, stories: list[Story]) -> bool:
    return any(event in one.events for one in stories)


def _nothing(store: EventStore, what: str, since_s: float) -> str:
    oldest, _, count = store.span()
    if not count:
        return "the event store is empty: no mail has come yet"
    began = max(oldest, since_s)
    return f"nothing about {what!r} since {local(began)} (the store begins at {local(oldest)}, and is a second late)"


def _losses(store: EventStore, found: list[Story]) -> list[Event]:
    begin = min(one.events[0].at_s for one in found)
    end = max(one.events[-1].at_s for one in found)
    lost = store.containing(["events_dropped"], since_s=begin - 60, until_s=end + 3600, limit=5)
    return [event for event in lost if event.name == "events_dropped"][::-1]


def _waiting(context: Context, found: list[Story]) -> dict[tuple[str, str], browse.Line]:
    """What still waits in the queue, by queue id and recipient."""
    path = Path(context.config.data_dir) / "queue" / "state.sqlite"
    ids = [queue_id for one in found for queue_id in one.queue_ids]
    if not ids or not path.exists():
        return {}
    state = State(path)
    try:
        state.open()
        lines = browse.lines(state, browse.Selection(ids))
    except (StateDamaged, OSError) as e:
        context.out.warn(f"the queue's state can't be read, so it is not said what waits: {e}")
        return {}
    finally:
        state.close()
    return {(line.queue_id, recipient): line for line in lines for recipient in line.recipients}


# --- one message


def _tell(one: Story, waiting: dict[tuple[str, str], browse.Line]) -> None:
    title = " and ".join(one.queue_ids[:1]) or "refused"
    for name, value in (
        ("message", f"{title}  {one.value('message_id')}".rstrip()),
        ("from", one.value("mail_from")),
        ("to", (one.first("message_accepted") or one.events[0]).text("rcpt_to")),
        ("result", _result(one, waiting)),
    ):
        print(f"{name:<8} {_printable(value)}")
    print()
    advised: dict[str, str] = {}  # by recipient: the same words again and again help nobody
    for at_s, event in _timed(one):
        copy = f" [{event.queue_id}]" if event.queue_id and event.queue_id != one.queue_ids[0] else ""
        print(f"{local(at_s, milliseconds=True)}  {word(event):<12} {sentence(event)}{copy}")
        for fact in event.text("facts").split("; ") if event.text("facts") else ():
            print(f"{'':<37}  {_printable(fact)}")
        reply = event.text("reply") if event.name == "delivery_attempt" else ""
        what_to_do = advice(reply) if event.text("verdict") != "delivered" else ""
        key = event.text("rcpt_to")
        if what_to_do and advised.get(key) != what_to_do:
            print(f"{'':<37}→ {what_to_do}")
            advised[key] = what_to_do
    now = time.time()
    for (queue_id, recipient), line in waiting.items():
        if queue_id in one.queue_ids:
            print(f"{local(now, milliseconds=True)}  {'waits':<12} {_printable(recipient)}: {_next(line, now)}")


def _timed(one: Story) -> list[tuple[float, Event]]:
    """Events with the time they began: a session's line is written when it ends."""
    timed = []
    for event in one.events:
        took = event.fields.get("duration_ms", 0) if event.name == "smtp_session" else 0
        timed.append((event.at_s - float(took) / 1000, event))
    return sorted(timed, key=lambda pair: pair[0])


def _next(line: browse.Line, now: float) -> str:
    if line.state == "held":
        return f"held; pymxctl queue release {line.queue_id}"
    if line.state == "deferred" and line.next_s > now:
        return f"will be tried again at {local(line.next_s)}, in {duration(line.next_s - now)}"
    return "is being tried, or will be at once"


def _result(one: Story, waiting: dict[tuple[str, str], browse.Line]) -> str:
    """`2 delivered, 1 deferred`; recipients by their last state."""
    states: dict[tuple[str, str], str] = {}
    for event in one.events:
        key = (event.queue_id, event.text("rcpt_to").lower())
        if event.name == "message_delivered":
            states[event.text("account"), key[1]] = "delivered"
        elif event.name == "delivery_attempt":
            states[key] = event.text("verdict")
        elif event.name == "rcpt_refused":
            states[event.session, key[1]] = "refused"
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state] = counts.get(state, 0) + 1
    held = sum(1 for (queue_id, _), line in waiting.items() if queue_id in one.queue_ids and line.state == "held")
    if held:
        counts["held"] = held
    if not counts:
        return "refused" if any(e.name.endswith("_refused") or e.text("reply") for e in one.events) else "accepted"
    return ", ".join(f"{count} {state}" for state, count in counts.items())


# --- several


def _list(found: list[Story], waiting: dict[tuple[str, str], browse.Line], context: Context) -> None:
    rows = []
    for one in found:
        head = one.first("message_accepted") or one.events[0]
        rows.append(
            (
                local(one.events[0].at_s),
                one.queue_ids[0] if one.queue_ids else head.session,
                one.value("mail_from"),
                _some(head.text("rcpt_to")),
                _result(one, waiting),
            )
        )
    context.out.table(["Time", "ID", "From", "To", "Result"], rows)
    print("\none of them whole: pymxctl trace ID; all: --full")


def _some(recipients: str) -> str:
    names = recipients.split(",")
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _as_json(one: Story, waiting: dict[tuple[str, str], browse.Line]) -> dict[str, object]:
    return {
        "queue_ids": list(one.queue_ids),
        "message_id": one.value("message_id"),
        "mail_from": one.value("mail_from"),
        "result": _result(one, waiting),
        "events": [event_as_json(event) for event in one.events],
        "waiting": [
            {"queue_id": queue_id, "rcpt_to": recipient, "state": line.state, "next": iso(line.next_s)}
            for (queue_id, recipient), line in waiting.items()
            if queue_id in one.queue_ids
        ],
    }


def event_as_json(event: Event) -> dict[str, object]:
    found = {"at": iso(event.at_s), "event": event.name, "room": event.room}
    ids = {"queue_id": event.queue_id, "session": event.session}
    what_to_do = {"advice": advice(event.text("reply"))} if event.name == "delivery_attempt" else {}
    return {
        **found,
        **{k: v for k, v in ids.items() if v},
        **event.fields,
        **{k: v for k, v in what_to_do.items() if v},
    }


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
