"""The words of a command (RFC 3501 s. 9), read with one regular expression each.

A command comes from the receiver as one `bytes` in which every literal is replaced by its announcement (`{12}` CRLF),
and a list of the literals themselves. CR and LF occur nowhere else in it, so an announcement can't be confused with
text. `Cursor` walks over it; everything that does not fit raises `Bad`.

Deviation: octets above 127 are taken in quoted strings, as clients do send UTF-8 there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pymx.proto.imap.errors import Bad
from pymx.proto.imap.sequence import SequenceSet

_ATOM = re.compile(rb'[^\x00-\x20(){%*"\\\]\x7f-\xff]+')
_ASTRING = re.compile(rb'[^\x00-\x20(){%*"\\\x7f-\xff]+')
_PATTERN = re.compile(rb'[^\x00-\x20(){"\\\x7f-\xff]+')
# "]" is not in the grammar of a flag, but clients use it in keywords.
_FLAG = re.compile(rb'\\?[^\x00-\x20(){%*"\\\x7f-\xff]+')
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\x00]|\\["\\])*)"')
_ESCAPED = re.compile(rb'\\(["\\])')
_ANNOUNCEMENT = re.compile(rb"~?\{(\d+)\+?\}\r\n")
_NUMBER = re.compile(rb"\d{1,20}(?![0-9])")
_ITEM = re.compile(rb"[A-Za-z0-9.]{1,64}")
_SEQUENCE = re.compile(rb"[0-9*:,]+")

_SPACE = 0x20
_QUOTE = 0x22
_OPEN = 0x28
_CLOSE = 0x29
_BRACE = 0x7B

MAX_32 = 0xFFFF_FFFF
MAX_63 = 0x7FFF_FFFF_FFFF_FFFF


class Cursor:
    """A position in a command's arguments."""

    __slots__ = ("_data", "_literal", "_literals", "_position", "rev2", "utf8")

    def __init__(self, data: bytes, literals: Sequence[object] = (), position: int = 0) -> None:
        self._data = data
        self._literals = literals
        self._literal = 0
        self._position = position
        self.utf8 = False  # names are UTF-8: the client has enabled UTF8=ACCEPT (RFC 9755) or IMAP4rev2
        self.rev2 = False  # the client has enabled IMAP4rev2 (RFC 9051)

    def _match(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        match = pattern.match(self._data, self._position)
        if match is None:
            raise Bad(f"Expected {what}")
        self._position = match.end()
        return match[0]

    def peek(self) -> int:
        """The next octet, or -1 at the end."""
        return self._data[self._position] if self._position < len(self._data) else -1

    def at_end(self) -> bool:
        return self._position >= len(self._data)

    def end(self) -> None:
        """Nothing but spaces may follow."""
        if self._data[self._position :].strip(b" "):
            raise Bad("Unexpected text after the arguments")

    def rest(self) -> bytes:
        """Everything up to the end."""
        text = self._data[self._position :]
        self._position = len(self._data)
        return text

    def space(self) -> None:
        if self.peek() != _SPACE:
            raise Bad("Expected a space" if not self.at_end() else "Missing argument")
        self._position += 1

    def skip(self, text: bytes) -> bool:
        """Step over `text` (caseless) if it comes next."""
        stop = self._position + len(text)
        if self._data[self._position : stop].upper() != text:
            return False
        self._position = stop
        return True

    def skip_before(self, text: bytes, following: bytes) -> bool:
        """Step over `text` if it comes next and `following` after it."""
        there = self._data.startswith(text + following, self._position)
        if there:
            self._position += len(text)
        return there

    def expect(self, text: bytes) -> None:
        if not self.skip(text):
            raise Bad(f"Expected {text.decode()}")

    def atom(self) -> bytes:
        return self._match(_ATOM, "an atom")

    def word(self) -> str:
        """An atom that is a keyword of the protocol, in capitals."""
        return self._match(_ATOM, "a word").decode().upper()

    def item(self) -> str:
        """The name of a FETCH item or of a section text, up to a bracket; in capitals."""
        return self._match(_ITEM, "an item").decode().upper()

    def number(self, limit: int = MAX_32) -> int:
        value = int(self._match(_NUMBER, "a number"))
        if value > limit:
            raise Bad("Number too large")
        return value

    def sequence_set(self) -> SequenceSet:
        if self.skip(b"$"):
            return SequenceSet((), saved=True)
        return SequenceSet.parse(self._match(_SEQUENCE, "a message set"))

    def literal(self) -> object:
        """A literal (or literal8, RFC 3516) as the receiver collected it: bytes, or what the sink of an APPEND made."""
        self._match(_ANNOUNCEMENT, "a literal")
        if self._literal >= len(self._literals):
            raise Bad("Missing literal")
        self._literal += 1
        return self._literals[self._literal - 1]

    def string(self) -> bytes:
        first = self.peek()
        if first == _QUOTE:
            match = _QUOTED.match(self._data, self._position)
            if match is None:
                raise Bad("Broken quoted string")
            self._position = match.end()
            text = match[1]
            return _ESCAPED.sub(rb"\1", text) if b"\\" in text else text
        if first == _BRACE:
            value = self.literal()
            if not isinstance(value, bytes):
                raise Bad("Literal in the wrong place")
            if b"\x00" in value:
                raise Bad("NUL in a string")
            return value
        raise Bad("Expected a string")

    def nstring(self) -> bytes | None:
        if self.skip(b"NIL"):
            return None
        return self.string()

    def astring(self) -> bytes:
        if self.peek() in (_QUOTE, _BRACE):
            return self.string()
        return self._match(_ASTRING, "a string")

    def list_mailbox(self) -> bytes:
        """A mailbox name with wildcards."""
        if self.peek() in (_QUOTE, _BRACE):
            return self.string()
        return self._match(_PATTERN, "a mailbox name")

    def flag(self) -> str:
        return self._match(_FLAG, "a flag").decode()

    def flag_list(self) -> list[str]:
        """`(flag flag …)`, perhaps empty."""
        self.expect(b"(")
        flags: list[str] = []
        while not self.skip(b")"):
            if flags:
                self.space()
            flags.append(self.flag())
        return flags

    def comes(self, pattern: re.Pattern[bytes]) -> bool:
        """Whether this comes next."""
        return pattern.match(self._data, self._position) is not None

    def opens(self) -> bool:
        return self.peek() == _OPEN

    def closes(self) -> bool:
        return self.peek() == _CLOSE
