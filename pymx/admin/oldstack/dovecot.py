"""Dovecot's configuration files as doveconf reads them: blocks, includes, variables, with line numbers.

`key = value`, `block name { … }`, `!include` and `!include_try` with patterns, `#` comments, a backslash at the end of
a line, quotes, and `$key` for the value that a key had before (`mail_plugins = $mail_plugins sieve`). `<file` stays as
it stands. Versions 2.3 and 2.4 have the same syntax and other names.

Errors: `Unreadable` for a file that can't be read, or is not of this syntax.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pymx.admin.oldstack.postfix import Unreadable, Value, read_text

_MAX_DEPTH = 10
_VARIABLE = re.compile(r"\$(?:SET:)?([A-Za-z_][A-Za-z0-9_]*)")
_SETTING = re.compile(r"([A-Za-z0-9_/.:@+*\-\\]+)\s*=\s*(.*)\Z")


@dataclass(slots=True)
class Block:
    """`kind name { … }`; the whole configuration is the block without a kind."""

    kind: str = ""
    name: str = ""
    file: str = ""
    line: int = 0
    values: dict[str, Value] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    def text(self, *names: str) -> str:
        """The first of these that is set."""
        return next((self.values[name].text for name in names if name in self.values), "")

    def all(self, kind: str, name: str | None = None) -> Iterator[Block]:
        return (b for b in self.blocks if b.kind == kind and (name is None or b.name == name))

    def block(self, kind: str, name: str) -> Block:
        """The block of that name; made if there is none yet. passdb and userdb without a name are always new."""
        found = next(self.all(kind, name), None) if name or kind not in ("passdb", "userdb") else None
        if found is None:
            found = Block(kind, name)
            self.blocks.append(found)
        return found

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def read(path: Path) -> Block:
    """A configuration; a directory stands for the dovecot.conf in it. Raises Unreadable."""
    path = path / "dovecot.conf" if path.is_dir() else path
    top = Block(file=str(path))
    _Reader(top).read(path, 0)
    return top


class _Reader:
    def __init__(self, top: Block) -> None:
        self._top = top

    def read(self, path: Path, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Unreadable(f"{path}: includes go too deep")
        stack = [self._top]
        for number, line in _lines(read_text(path)):
            if line == "}":
                if len(stack) == 1:
                    raise Unreadable(f"{path}:{number}: a closing brace too many")
                stack.pop()
            elif line.startswith("!include"):
                self._include(line, path, depth)
            elif line.endswith("{"):
                stack.append(self._open(stack[-1], line[:-1].strip(), path, number))
            else:
                self._set(stack, line, path, number)
        if len(stack) > 1:
            raise Unreadable(f"{path}: {stack[-1].kind} {stack[-1].name} is not closed")

    def _include(self, line: str, path: Path, depth: int) -> None:
        word, _, pattern = line.partition(" ")
        pattern = os.path.join(path.parent, pattern.strip().strip('"'))
        found = sorted(glob.glob(pattern))
        if not found and word == "!include":
            raise Unreadable(f"{path}: {pattern} is not there")
        for name in found:
            self.read(Path(name), depth + 1)

    def _open(self, parent: Block, head: str, path: Path, number: int) -> Block:
        words = head.split(None, 1)
        block = parent.block(words[0] if words else "", _unquoted(words[1]) if len(words) > 1 else "")
        if not block.line:
            block.file, block.line = str(path), number
        return block

    def _set(self, stack: list[Block], line: str, path: Path, number: int) -> None:
        match = _SETTING.match(line)
        if not match:
            raise Unreadable(f"{path}:{number}: {line!r} is neither a setting nor a block")
        value = match[2].strip()
        if not value.startswith("<"):
            value = _VARIABLE.sub(lambda m: _known(stack, m[1], m[0]), value) if '"' not in value[:1] else value
            value = _unquoted(value)
        stack[-1].values[match[1]] = Value(value, str(path), number)


def _known(stack: list[Block], name: str, otherwise: str) -> str:
    for block in reversed(stack):
        if name in block.values:
            return block.values[name].text
    return "" if name in ("mail_plugins", "protocols") else otherwise


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Statements: without comments, joined where a backslash says so; `{` and `}` end one."""
    number, joined = 0, ""
    for at, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw).strip()
        number = number or at
        if line.endswith("\\"):
            joined += line[:-1].rstrip() + " "
            continue
        yield from ((number, part) for part in _statements((joined + line).strip()))
        number, joined = 0, ""


def _statements(line: str) -> Iterator[str]:
    """`kind name {`, `}` and settings; a block may stand on one line."""
    if not line:
        return
    if "=" in line.partition("{")[0] or line.startswith("!") or line == "}":
        if line.endswith("}") and line != "}" and line.count("{") < line.count("}") and "=" in line:
            yield line[:-1].strip()
            yield "}"
            return
        yield line
        return
    head, brace, rest = line.partition("{")
    if not brace:
        yield line
        return
    yield f"{head.strip()} {{"
    yield from _statements(rest.strip())


def _without_comment(line: str) -> str:
    """A `#` begins one at the start or after whitespace, outside of quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote and line[at - 1] != "\\" else quote
        elif character in "\"'" and line[:at].rstrip().endswith("="):
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def sql(path: Path) -> dict[str, Value]:
    """dovecot-sql.conf.ext (2.3): key = value. Raises Unreadable."""
    found = {}
    for number, line in _lines(read_text(path)):
        key, equals, value = line.partition("=")
        if equals:
            found[key.strip()] = Value(_unquoted(value), str(path), number)
    return found
