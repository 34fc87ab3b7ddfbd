"""Who a message says it is from: every mailbox in From and Sender (RFC 5322 s. 3.4, s. 3.6.2).

Strict on purpose. What this reads decides whose address is checked, so a field that two readers could take for
different mailboxes is refused: routes, text behind an angle address, more than one angle address in an entry. One pass
over the octets, without backtracking and without recursion: time is linear for hostile input too.

Errors: `AuthorError`, whose text the submitter may see.
"""

from __future__ import annotations

import re

from pymx.mail.address import Address, AddressError, parse_address
from pymx.mail.header import Field, find

MAX_MAILBOXES = 100
MAX_FIELD_OCTETS = 65536  # read in the event loop, so it is kept to milliseconds
_SPECIAL = re.compile(r'["(<>,:;\\)]')
_QUOTED_END = re.compile(r'["\\]')
_COMMENT_EDGE = re.compile(r"[()\\]")


class AuthorError(ValueError):
    """From or Sender is missing, doubled, or can't be read without doubt."""


def authors(head: bytes) -> tuple[list[Address], list[Address]]:
    """The mailboxes of the From field and of the Sender field (empty when there is none). Raises AuthorError."""
    froms = [field for _, field in find(head, "from")]
    senders = [field for _, field in find(head, "sender")]
    if len(froms) != 1:
        raise AuthorError("The message has no From field" if not froms else "The message has more than one From field")
    if len(senders) > 1:
        raise AuthorError("The message has more than one Sender field")
    sender = mailboxes(_text(senders[0])) if senders else []
    if len(sender) > 1:
        raise AuthorError("The Sender field names more than one mailbox")
    return mailboxes(_text(froms[0])), sender


def _text(field: Field) -> str:
    if len(field.raw) > MAX_FIELD_OCTETS:
        raise AuthorError("From or Sender is too long")
    return field.value.decode("utf-8", "surrogateescape")


def mailboxes(text: str) -> list[Address]:
    """Every mailbox in an address list, those in groups too (RFC 6854). Raises AuthorError."""
    reader = _Reader(text)
    return reader.read()


class _Reader:
    """Collects one list entry at a time: the text outside comments, and the text inside angle brackets."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._plain: list[str] = []  # text of this entry outside <>, comments left out
        self._angle: str | None = None
        self._in_group = False
        self._found: list[Address] = []

    def read(self) -> list[Address]:
        text = self._text
        while match := _SPECIAL.search(text, self._at):
            self._take(text[self._at : match.start()])
            self._at = match.end()
            self._special(match[0])
        self._take(text[self._at :])
        self._end_entry()
        if self._in_group:
            raise AuthorError("A group of addresses is not closed")
        if not self._found:
            raise AuthorError("From or Sender names no mailbox")
        return self._found

    def _special(self, char: str) -> None:
        if char == '"':
            self._take(self._quoted())
        elif char == "(":
            self._skip_comment()
        elif char == "<":
            self._read_angle()
        elif char == ",":
            self._end_entry()
        elif char == ":" and not self._in_group and self._angle is None:
            self._in_group = True
            self._plain = []  # the group's name
        elif char == ";" and self._in_group:
            self._end_entry()
            self._in_group = False
        else:
            raise AuthorError(f"{char!r} is out of place in From or Sender")

    def _take(self, text: str) -> None:
        if self._angle is not None and text.strip(" \t"):
            raise AuthorError("Text follows an address in angle brackets in From or Sender")
        self._plain.append(text)

    def _quoted(self) -> str:
        """A quoted string with its quotes; the opening one has been read."""
        start = self._at - 1
        while match := _QUOTED_END.search(self._text, self._at):
            self._at = match.end()
            if match[0] == '"':
                return self._text[start : self._at]
            self._at += 1
        raise AuthorError("A quoted string is not closed in From or Sender")

    def _skip_comment(self) -> None:
        depth = 1
        while match := _COMMENT_EDGE.search(self._text, self._at):
            self._at = match.end()
            if match[0] == "\\":
                self._at += 1
            elif match[0] == "(":
                depth += 1
            else:
                depth -= 1
                if not depth:
                    self._plain.append(" ")
                    return
        raise AuthorError("A comment is not closed in From or Sender")

    def _read_angle(self) -> None:
        if self._angle is not None:
            raise AuthorError("Two addresses in one entry of From or Sender")
        start = self._at
        in_literal = False  # colons are at home in an IPv6 address literal, and nowhere else
        while match := _SPECIAL.search(self._text, self._at):
            in_literal = in_literal or "[" in self._text[self._at : match.start()]
            self._at = match.end()
            if match[0] == '"':
                self._quoted()
            elif match[0] == ">":
                self._angle = self._text[start : match.start()]
                return
            elif match[0] == ":" and in_literal:
                continue
            else:
                raise AuthorError(f"{match[0]!r} is out of place in an address in From or Sender")
        raise AuthorError("An angle bracket is not closed in From or Sender")

    def _end_entry(self) -> None:
        plain, angle = "".join(self._plain).strip(" \t"), self._angle
        self._plain, self._angle = [], None
        if angle is None and not plain:
            return  # empty list entries are obsolete, but harmless (RFC 5322 s. 4.4)
        if len(self._found) >= MAX_MAILBOXES:
            raise AuthorError("Too many mailboxes in From or Sender")
        try:
            self._found.append(parse_address((plain if angle is None else angle).strip(" \t")))
        except AddressError as e:
            raise AuthorError(f"From or Sender holds no valid address: {e}") from None
