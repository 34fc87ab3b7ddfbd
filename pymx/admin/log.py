"""pymxctl log [--follow] [--since WHEN] [--warnings] [QUERY …]: what happens to mail, a readable line an event.

Shows what the event store has: messages, refusals, and everything from level warning on. Each word of QUERY must stand
in the event; `field=value` must be that field's value. The whole log, with logins and IMAP sessions, is the journal's:
`journalctl -u pymx`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence

from pymx.admin.context import Context, Exit
from pymx.admin.times import local, parse_since
from pymx.admin.trace import event_as_json, opened
from pymx.admin.wording import sentence, word
from pymx.events.event import Event
from pymx.events.store import EventStore

_LIMIT = 50
_LIMIT_SINCE = 10_000
_POLL_S = 0.5
_LATE_S = 5.0  # by how much events of one process may come in after later ones of another
_JOURNAL = "the whole log, with logins and IMAP sessions: journalctl -u pymx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", nargs="*", help="words to be found in the event, or field=value")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "--since", type=parse_since, metavar="WHEN", help=f"such as 2h, 14:30, 2026-11-24 (default: the last {_LIMIT})"
    )
    parser.add_argument("--warnings", action="store_true", help="only warnings and errors")
    parser.epilog = _JOURNAL


def run(args: argparse.Namespace, context: Context) -> int:
    level = logging.WARNING if args.warnings else 0
    with opened(context) as store:
        until_s = time.time() - 2 * _LATE_S if args.follow else 1e11
        events = recent(store, args.query, since_s=args.since, until_s=until_s, level=level)
        if context.json and not args.follow:
            context.out.details({"events": [event_as_json(event) for event in events]})
            return Exit.OK
        for event in events:
            _print(event, context)
        if args.follow:
            _follow(store, args.query, level, until_s, context)
        elif not events:
            context.out.warn(f"nothing found; {_JOURNAL}")
    return Exit.OK


def recent(
    store: EventStore, query: Sequence[str], *, since_s: float | None = None, until_s: float = 1e11, level: int = 0
) -> list[Event]:
    """What fits, oldest first: all since then, or the last ones."""
    words = [part.partition("=")[2] or part for part in query]
    limit = _LIMIT if since_s is None else _LIMIT_SINCE
    found: list[Event] = []
    while len(found) < limit:
        page = store.containing(words, since_s=since_s or 0.0, until_s=until_s, level=level, limit=_LIMIT_SINCE)
        found += [event for event in page if fits(event, query, level)]
        if len(page) < _LIMIT_SINCE:
            break
        until_s = page[-1].at_s
    return found[:limit][::-1]


def fits(event: Event, query: Sequence[str], level: int = 0) -> bool:
    """Does the event have every word, and every field=value?"""
    if event.level < level:
        return False
    said = f"{event.queue_id} {event.session} {event.name} {word(event)} {event.room}".lower()
    values = {"queue_id": event.queue_id, "session": event.session, "event": event.name, "room": event.room}
    for part in query:
        key, is_field, value = part.partition("=")
        if is_field and (key in event.fields or key in values):
            if (values.get(key) or event.text(key)).lower() != value.lower():
                return False
        elif part.lower() not in said and not any(part.lower() in str(v).lower() for v in event.fields.values()):
            return False
    return True


def _follow(store: EventStore, query: Sequence[str], level: int, since_s: float, context: Context) -> None:
    seen: set[int] = set()
    while True:
        now = time.time()
        for number, event in store.since(since_s):
            if number not in seen:
                seen.add(number)
                if fits(event, query, level):
                    _print(event, context)
        sys.stdout.flush()
        since_s = now - 2 * _LATE_S
        time.sleep(_POLL_S)


def _print(event: Event, context: Context) -> None:
    if context.json:
        print(json.dumps(event_as_json(event), ensure_ascii=False))
        return
    mark = {logging.WARNING: "!", logging.ERROR: "!!"}.get(event.level, "")
    print(f"{local(event.at_s)} {mark:<2} {event.queue_id or '-':<15}  {word(event):<12} {sentence(event)}")
