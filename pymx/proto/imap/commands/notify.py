"""NOTIFY (RFC 5465 s. 3, 8): of which events in which mailboxes a client wants to be told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pymx.proto.imap.commands.fetch import BodyItem, FetchItem, fetch_items
from pymx.proto.imap.errors import Bad, No
from pymx.proto.imap.lexer import Cursor
from pymx.proto.imap.mailbox import mailbox

MESSAGE_NEW, MESSAGE_EXPUNGE, FLAG_CHANGE = "MESSAGENEW", "MESSAGEEXPUNGE", "FLAGCHANGE"
MAILBOX_NAME, SUBSCRIPTION_CHANGE = "MAILBOXNAME", "SUBSCRIPTIONCHANGE"
MAILBOX_METADATA, SERVER_METADATA = "MAILBOXMETADATACHANGE", "SERVERMETADATACHANGE"
_ABOUT_MESSAGES = frozenset({MESSAGE_NEW, MESSAGE_EXPUNGE, FLAG_CHANGE})
_KNOWN = _ABOUT_MESSAGES | {MAILBOX_NAME, SUBSCRIPTION_CHANGE, MAILBOX_METADATA, SERVER_METADATA}
_BAD_EVENT = (
    "BADEVENT (MessageNew MessageExpunge FlagChange MailboxName SubscriptionChange"
    " MailboxMetadataChange ServerMetadataChange)"
)
SELECTED, SELECTED_DELAYED = "SELECTED", "SELECTED-DELAYED"
_SCOPES = frozenset({SELECTED, SELECTED_DELAYED, "INBOXES", "PERSONAL", "SUBSCRIBED", "SUBTREE", "MAILBOXES"})
MAX_GROUPS = 100
MAX_MAILBOXES = 1000


@dataclass(frozen=True, slots=True)
class EventGroup:
    """`mailboxes` for SUBTREE and MAILBOXES; no `events`: NONE; `items` to fetch of new messages (SELECTED)."""

    scope: str
    mailboxes: tuple[str, ...]
    events: frozenset[str]
    items: tuple[FetchItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Notify:
    """`groups` empty: NOTIFY NONE; `status`: tell at once how all the mailboxes are."""

    groups: tuple[EventGroup, ...]
    status: bool = False


def parse_notify(cursor: Cursor) -> Notify:
    cursor.space()
    if cursor.skip(b"NONE"):
        cursor.end()
        return Notify(())
    cursor.expect(b"SET")
    cursor.space()
    status = cursor.skip(b"STATUS")
    if status:
        cursor.space()
    groups = [_group(cursor)]
    while not cursor.at_end():
        cursor.space()
        if len(groups) >= MAX_GROUPS:
            raise Bad("Too many event groups")
        groups.append(_group(cursor))
    if sum(group.scope in (SELECTED, SELECTED_DELAYED) for group in groups) > 1:
        raise Bad("Only one event group is for the selected mailbox")  # s. 6.1
    return Notify(tuple(groups), status)


def _group(cursor: Cursor) -> EventGroup:
    cursor.expect(b"(")
    scope = cursor.word()
    if scope not in _SCOPES:
        raise Bad(f"Unknown mailboxes {scope}")
    cursor.space()
    names: tuple[str, ...] = ()
    if scope in ("SUBTREE", "MAILBOXES"):
        names = _mailboxes(cursor)
        cursor.space()
    events, items = _events(cursor)
    cursor.expect(b")")
    _check(scope, events, items)
    return EventGroup(scope, names, events, items)


def _mailboxes(cursor: Cursor) -> tuple[str, ...]:
    if not cursor.opens():
        return (mailbox(cursor),)
    cursor.expect(b"(")
    names: list[str] = []
    while not names or not cursor.skip(b")"):
        if names:
            cursor.space()
        if len(names) >= MAX_MAILBOXES:
            raise Bad("Too many mailboxes")
        names.append(mailbox(cursor))
    return tuple(names)


def _events(cursor: Cursor) -> tuple[frozenset[str], tuple[FetchItem, ...]]:
    """NONE, or events with or without the parentheses around them (the examples of the RFC have them without)."""
    if cursor.skip(b"NONE"):
        return frozenset(), ()
    enclosed = cursor.skip(b"(")
    found: set[str] = set()
    items: tuple[FetchItem, ...] = ()
    while True:
        event = cursor.word()
        if event not in _KNOWN:
            raise No(f"Event {event} is not known here", code=_BAD_EVENT)  # s. 5
        found.add(event)
        if event == MESSAGE_NEW and cursor.skip_before(b" ", b"("):
            items = tuple(_peeked(item) for item in fetch_items(cursor))
        if cursor.closes():
            break
        cursor.space()
    if enclosed:
        cursor.expect(b")")
    return frozenset(found), items


def _peeked(item: FetchItem) -> FetchItem:
    """An item that leaves the message unseen: nobody has read what was only told of."""
    return replace(item, peek=True) if isinstance(item, BodyItem) else item


def _check(scope: str, events: frozenset[str], items: tuple[FetchItem, ...]) -> None:
    """What may stand together (s. 8)."""
    selected = scope in (SELECTED, SELECTED_DELAYED)
    if selected and not events <= _ABOUT_MESSAGES:
        raise Bad("Only events of messages are told of the selected mailbox")
    if items and not selected:
        raise Bad("Items are fetched in the selected mailbox only")
    if (MESSAGE_NEW in events) != (MESSAGE_EXPUNGE in events):
        raise Bad("MessageNew and MessageExpunge go together")
    if FLAG_CHANGE in events and MESSAGE_NEW not in events:
        raise Bad("FlagChange needs MessageNew and MessageExpunge")
