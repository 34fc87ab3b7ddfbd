"""THREAD (RFC 5256 s. 3): its arguments, and threads as a response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pymx.mail.threads import Forest
from pymx.proto.imap.commands.search import SearchKey, search_keys
from pymx.proto.imap.errors import Bad
from pymx.proto.imap.lexer import Cursor

ALGORITHMS = frozenset({"ORDEREDSUBJECT", "REFERENCES", "REFS"})


@dataclass(frozen=True, slots=True)
class Thread:
    by_uid: bool
    algorithm: str
    key: SearchKey


def _parse(cursor: Cursor, *, by_uid: bool) -> Thread:
    cursor.space()
    algorithm = cursor.word()
    if algorithm not in ALGORITHMS:
        raise Bad(f"Unknown threading algorithm {algorithm}")
    cursor.space()
    charset = cursor.astring()
    cursor.space()
    key, _ = search_keys(cursor, charset)
    return Thread(by_uid, algorithm, key)


def parse_thread(cursor: Cursor) -> Thread:
    return _parse(cursor, by_uid=False)


def parse_uid_thread(cursor: Cursor) -> Thread:
    return _parse(cursor, by_uid=True)


def thread_list(forest: Forest, number: Callable[[int], int]) -> bytes:
    """`(2)(3 6 (4 23)(44 7 96))` (s. 4); `number` is what stands for a UID. No recursion: threads may be deep."""
    out: list[str] = []
    children = forest.children
    for root in forest.roots:
        waiting: list[int | str] = [")", root, "("]
        while waiting:
            next_ = waiting.pop()
            if isinstance(next_, str):
                out.append(next_)
                continue
            below = children.get(next_, ())
            if next_ > 0:
                out.append(f"{number(next_)} " if below else str(number(next_)))
            if len(below) == 1:
                waiting.append(below[0])
                continue
            for child in reversed(below):
                waiting += (")", child, "(")
    return "".join(out).encode()
