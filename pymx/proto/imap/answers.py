"""Reading what a server answers (RFC 3501 s. 7 and 9): the values in a response as nested lists.

A list is a `list`, NIL is None, everything else `bytes`; atoms are `Atom`, a kind of bytes, so that the number 12 and
the string "12" can be told apart by those who care. Literals stand where they are in the octets.
"""

from __future__ import annotations

import re

_ATOM = re.compile(rb'[^\x00-\x20(){"]+')
_QUOTED = re.compile(rb'"((?:[^"\\\r\n]|\\.)*)"')
_LITERAL = re.compile(rb"~?\{(\d+)\}\r\n")
_ESCAPED = re.compile(rb"\\(.)")
_MAX_NESTING = 1000

Value = bytes | None | list["Value"]


class Atom(bytes):
    """A word that was not quoted."""


class Unreadable(Exception):
    """Not what a server may answer."""


def parse(data: bytes) -> list[Value]:
    """The values that stand side by side in `data`. Raises Unreadable."""
    out: list[Value] = []
    stack = [out]
    at, end = 0, len(data)
    while at < end:
        octet = data[at]
        if octet == 0x20:
            at += 1
        elif octet == 0x28:
            if len(stack) > _MAX_NESTING:
                raise Unreadable("nested too deep")
            inner: list[Value] = []
            stack[-1].append(inner)
            stack.append(inner)
            at += 1
        elif octet == 0x29:
            if len(stack) == 1:
                raise Unreadable(f"a parenthesis too many at {at}")
            stack.pop()
            at += 1
        else:
            value, at = _word(data, at)
            stack[-1].append(value)
    if len(stack) > 1:
        raise Unreadable("a parenthesis is not closed")
    return out


def _word(data: bytes, at: int) -> tuple[bytes | None, int]:
    if found := _QUOTED.match(data, at):
        return _ESCAPED.sub(rb"\1", found[1]), found.end()
    if found := _LITERAL.match(data, at):
        end = found.end() + int(found[1])
        if end > len(data):
            raise Unreadable("a literal is cut off")
        return data[found.end() : end], end
    if found := _ATOM.match(data, at):
        return (None if found[0].upper() == b"NIL" else Atom(found[0])), found.end()
    raise Unreadable(f"no word at {at}: {data[at : at + 20]!r}")


def fetched(data: bytes) -> dict[bytes, Value]:
    """The items of one FETCH response, `data` being its parenthesised list; names in upper case."""
    values = parse(data)
    items = values[0] if values else None
    if not isinstance(items, list) or len(items) % 2:
        raise Unreadable("not a list of items and values")
    out: dict[bytes, Value] = {}
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, bytes):
            raise Unreadable("an item without a name")
        out[name.upper()] = value
    return out
