"""One event as it is kept, and which of the log's are.

Kept is what speaks of a message (it has `queue_id` or `session`) and every warning and error. Left out are connections
that brought no message and the refusals of peers who try logins or commands: nobody traces those, and there may be
hundreds a minute of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

T = TypeVar("T")

_UNTRACED = frozenset({"connection_refused", "login_refused", "command_refused"})
_PLAIN = (str, int, float, bool)

# time in ms, queue_id, session, JSON of the rest: a row of the store, and what goes from process to process
Row = tuple[int, str | None, str | None, str]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str | int | float | bool]).decode
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(list[Row]).decode


@dataclass(frozen=True, slots=True)
class Event:
    """`at_s` is Unix time; `fields` are those of the log line."""

    at_s: float
    level: int
    room: str
    name: str
    queue_id: str
    session: str
    fields: Mapping[str, str | int | float | bool]

    def text(self, field: str) -> str:
        """A field as text, "" if it is not there."""
        value = self.fields.get(field, "")
        return value if isinstance(value, str) else str(value)


def is_kept(level: int, name: str, fields: Mapping[str, object]) -> bool:
    if level >= logging.WARNING:
        return True
    if "queue_id" in fields:
        return True
    if "session" not in fields or name in _UNTRACED:
        return False
    return name != "smtp_session" or bool(fields.get("messages") or fields.get("recipients"))


def to_row(at_s: float, level: int, room: str, name: str, fields: Mapping[str, object]) -> Row:
    """Empty fields are left out, as in the log."""
    rest: dict[str, object] = {"event": name, "room": room, "level": level}
    for key, value in fields.items():
        if value is not None and value != "" and key != "queue_id" and key != "session":
            rest[key] = value if type(value) in _PLAIN else str(value)
    queue_id, session = fields.get("queue_id"), fields.get("session")
    try:
        body = _encode(rest).decode()
    except UnicodeEncodeError:
        # octets that are no text, in a path or in something that a peer sent, are surrogates here
        body = _encode({key: _readable(value) for key, value in rest.items()}).decode()
    return (
        int(at_s * 1000),
        _readable(str(queue_id)) if queue_id else None,
        _readable(str(session)) if session else None,
        body,
    )


def _readable(value: T) -> T | str:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def from_row(row: Row) -> Event:
    """Raises msgspec.DecodeError when it is not what `to_row` made."""
    at_ms, queue_id, session, body = row
    fields = _decode(body)
    level, room, name = fields.pop("level", 0), fields.pop("room", ""), fields.pop("event", "")
    return Event(at_ms / 1000, int(level), str(room), str(name), queue_id or "", session or "", fields)


def as_stored(text: str) -> str:
    """`text` as it stands in a row's JSON, to look for it there."""
    return _encode(text).decode()[1:-1]
