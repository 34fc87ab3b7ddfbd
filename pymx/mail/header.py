"""Header blocks, byte-exact, and the one builder of header fields (RFC 5322 s. 2.2).

A block is the octets from the first field to the last field's CRLF, without the empty line. Reading never fails:
a line that is no field is kept as part of the field above it (or as a nameless field at the top), since a message
is stored as it came. Writing is strict: `build_field` refuses CR, LF and NUL in values, so nothing that a peer said
can open a new field.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_FIELD_NAME = re.compile(rb"[!-9;-~]+[ \t]*:")
_NAME_OK = re.compile(r"[!-9;-~]+\Z")
_FORBIDDEN = re.compile("[\r\n\0]")
# A field and its continuation lines; line ends may be CRLF or (on disk) LF.
_FIELD = re.compile(rb"[^\n]*\n(?:[ \t][^\n]*\n)*|[^\n]+\Z")


class HeaderError(ValueError):
    """A field can't be written: bad name, or CR, LF or NUL in its value."""


@dataclass(frozen=True, slots=True)
class Field:
    """`raw` is the whole field with its line ends; `name` is lower case, "" when the line is no field."""

    name: str
    raw: bytes

    @property
    def value(self) -> bytes:
        """The unfolded value: line ends removed, surrounding white space stripped (RFC 5322 s. 2.2.3)."""
        _, _, body = self.raw.partition(b":")
        return body.replace(b"\r\n", b"").replace(b"\n", b"").strip(b" \t")


def iter_fields(block: bytes) -> Iterator[Field]:
    """The fields of a header block in order."""
    for match in _FIELD.finditer(block):
        raw = match[0]
        name = _FIELD_NAME.match(raw)
        yield Field(name[0][:-1].rstrip(b" \t").decode("ascii").lower() if name else "", raw)


def first(block: bytes, name: str) -> Field | None:
    """The first field called `name` (caseless), or None."""
    return next((field for _, field in find(block, name)), None)


def find(block: bytes, name: str) -> Iterator[tuple[int, Field]]:
    """The fields called `name` (caseless) with their offsets. Looks only at them, so it is cheap in large blocks."""
    low = name.lower()
    for start in _starts(block, low):
        field = _FIELD.match(block, start)
        assert field is not None
        yield start, Field(low, field[0])


def count(block: bytes, name: str) -> int:
    return sum(1 for _ in _starts(block, name.lower()))


def _starts(block: bytes, low: str) -> Iterator[int]:
    """Where fields called `low` begin: continuation lines begin with white space, so any line with the name is one."""
    # lower-casing a copy and looking for a literal takes a fifth of the time of a caseless search
    for line in _line_of(low).finditer(b"\n" + block.lower()):
        yield line.start()


@functools.lru_cache(64)
def _line_of(low: str) -> re.Pattern[bytes]:
    return re.compile(rb"\n" + re.escape(low.encode("ascii")) + rb"[ \t]*:")


def remove(block: bytes, names: Iterable[str]) -> bytes:
    """The block without any field of these names; every other octet stays as it is."""
    drop = {n.lower() for n in names}
    return b"".join(f.raw for f in iter_fields(block) if f.name not in drop)


def build_field(name: str, value: str, *, fold: bool = True) -> bytes:
    """`name: value` with CRLF, folded at white space before column 78 where that is possible.

    Raises HeaderError when the name is not a field name or the value holds CR, LF or NUL. Characters outside ASCII are
    written as UTF-8 (RFC 6532); callers that talk to a 7-bit world encode them first.
    """
    if not _NAME_OK.match(name):
        raise HeaderError(f"not a field name: {name!r}")
    if _FORBIDDEN.search(value):
        raise HeaderError(f"CR, LF or NUL in the value of {name}")
    line = f"{name}: {value}".rstrip(" \t")
    if fold and len(line) > 78:
        line = _fold(line)
    return line.encode("utf-8", "surrogateescape") + b"\r\n"


def _fold(line: str) -> str:
    """Break at spaces so that lines stay within 78 columns where words allow; never inside a word."""
    lines: list[str] = []
    current = ""
    for word in re.findall(r"[ \t]*[^ \t]+", line):
        # A continuation line must not be all white space, so only a word starts one.
        if current and len(current) + len(word) > 78:
            lines.append(current)
            current = "\t" + word.lstrip(" \t")
        else:
            current += word
    lines.append(current)
    return "\r\n".join(lines)


def split_head(data: bytes) -> tuple[bytes, bytes]:
    """A message as (header block, rest). The rest begins with the empty line, or is empty when there is none."""
    if data.startswith(b"\r\n"):
        return b"", data
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return data, b""
    return data[: end + 2], data[end + 2 :]
