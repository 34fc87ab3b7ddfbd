"""Postfix's configuration as postconf reads it: main.cf, master.cf, MySQL maps and small tables, with line numbers.

postconf(5): a line that begins with whitespace continues the one before; comment and empty lines in between do not end
it; the last assignment of a name wins. Values may hold `$name`, `${name}`, `$(name)`, `${name?text}`, `${name:text}`
and `${name?{text}:{text}}`. Parameters that are not set have Postfix's default, of which only the few are known here
that others refer to. Nothing is executed; comparisons (`${a} == ${b}`) are left as they stand.

Errors: `Unreadable` for a file that can't be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_]+")
_MAX_DEPTH = 20
_DEFAULTS = {
    "myhostname": "",
    "mydomain": "",
    "mail_name": "Postfix",
    "config_directory": "/etc/postfix",
    "queue_directory": "/var/spool/postfix",
    "data_directory": "/var/lib/postfix",
    "default_database_type": "hash",
    "mynetworks": "",
    "mydestination": "",
    "smtpd_milters": "",
}


class Unreadable(Exception):
    """A file of the old configuration can't be read."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is set, and where."""

    text: str
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Service:
    """An entry of master.cf: the seven fields before the command, the command with its arguments, its `-o` options."""

    name: str
    kind: str
    fields: tuple[str, ...]  # private, unprivileged, chroot, wakeup, maxproc
    command: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class Postfix:
    """A whole configuration directory."""

    directory: Path
    parameters: dict[str, Value] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)

    def expanded(self, name: str) -> str:
        """A parameter's value with its variables replaced, runs of whitespace being one space; "" if it is not set."""
        found = self.parameters.get(name)
        return self.expand(found.text) if found else _DEFAULTS.get(name, "")

    def expand(self, text: str, depth: int = 0) -> str:
        return " ".join(self._expand(text, depth).split())

    def _expand(self, text: str, depth: int) -> str:
        if depth > _MAX_DEPTH:
            return text
        out, at = [], 0
        while (dollar := text.find("$", at)) >= 0:
            out.append(text[at:dollar])
            piece, at = self._variable(text, dollar, depth)
            out.append(piece)
        return "".join([*out, text[at:]])

    def _variable(self, text: str, dollar: int, depth: int) -> tuple[str, int]:
        """What stands for the variable at `dollar`, and where it ends."""
        opening = text[dollar + 1 : dollar + 2]
        if opening == "$":
            return "$", dollar + 2
        if opening in ("{", "("):
            end = _closing(text, dollar + 1)
            if end < 0:
                return text[dollar:], len(text)
            return self._conditional(text[dollar + 2 : end], text[dollar : end + 1], depth), end + 1
        match = _NAME.match(text, dollar + 1)
        if not match:
            return "$", dollar + 1
        return self._named(match[0], depth), match.end()

    def _named(self, name: str, depth: int) -> str:
        found = self.parameters.get(name)
        if found is not None:
            return self._expand(found.text, depth + 1)
        if name == "mydomain":
            return self.expanded("myhostname").partition(".")[2]
        return _DEFAULTS.get(name, "")

    def _conditional(self, inner: str, whole: str, depth: int) -> str:
        match = _NAME.match(inner.strip())
        if not match:
            return whole  # a comparison
        name, rest = match[0], inner.strip()[match.end() :].lstrip()
        value = self._named(name, depth)
        if not rest:
            return value
        positive, negative = "", ""
        if rest[0] == "?":
            positive, left = _branch(rest[1:])
            negative = _branch(left[1:])[0] if left.startswith(":") else ""
        elif rest[0] == ":":
            negative = _branch(rest[1:])[0]
        else:
            return whole
        return self._expand(positive if value else negative, depth + 1)


def _closing(text: str, at: int) -> int:
    opening, depth = text[at], 0
    closing = "}" if opening == "{" else ")"
    for position in range(at, len(text)):
        if text[position] == opening:
            depth += 1
        elif text[position] == closing:
            depth -= 1
            if not depth:
                return position
    return -1


def _branch(text: str) -> tuple[str, str]:
    """`{text}` or the rest, and what follows."""
    text = text.lstrip()
    if text.startswith("{"):
        end = _closing(text, 0)
        if end > 0:
            return text[1:end].strip(), text[end + 1 :].lstrip()
    return text, ""


def read_text(path: Path) -> str:
    """Raises Unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as e:
        raise Unreadable(f"{path}: {e.strerror}") from None


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number of its first line and the joined text."""
    number, parts = 0, list[str]()
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t":
            if parts:
                parts.append(line.strip())
            continue
        if parts:
            yield number, " ".join(parts)
        number, parts = at, [line.strip()]
    if parts:
        yield number, " ".join(parts)


def parse_main(text: str, file: str) -> dict[str, Value]:
    found = {}
    for number, line in logical_lines(text):
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = Value(value.strip(), file, number)
    return found


def parse_master(text: str, file: str) -> list[Service]:
    found = []
    for number, line in logical_lines(text):
        words = _words(line)
        if len(words) < 8:
            continue
        arguments, options = _options(words[8:])
        found.append(
            Service(words[0], words[1], tuple(words[2:7]), words[7], arguments, options, file, number)
        )  # fmt: skip
    return found


def _words(line: str) -> list[str]:
    """Split at whitespace; `{ … }` is one word without its braces (Postfix 3.0)."""
    words, at = [], 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        if line[at] == "{":
            end = _closing(line, at)
            if end > 0:
                words.append(line[at + 1 : end].strip())
                at = end + 1
                continue
        end = at
        while end < len(line) and not line[end].isspace():
            end += 1
        words.append(line[at:end])
        at = end
    return words


def _options(words: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    arguments, options = [], dict[str, str]()
    it = iter(words)
    for word in it:
        text = next(it, "") if word == "-o" else word[2:] if word.startswith("-o") else ""
        if not text:
            arguments.append(word)
            continue
        name, _, value = text.partition("=")
        options[name.strip()] = value.strip()
    return tuple(arguments), options


def read(directory: Path) -> Postfix:
    """main.cf and master.cf. Raises Unreadable."""
    main, master = directory / "main.cf", directory / "master.cf"
    postfix = Postfix(directory, parse_main(read_text(main), str(main)))
    if master.exists():
        postfix.services = parse_master(read_text(master), str(master))
    return postfix


def maps(text: str) -> list[tuple[str, str]]:
    """The tables of a map parameter: (type, name); `proxy:` is left out, `{ … }` of an inline table kept whole."""
    found = []
    for word in _map_words(text):
        kind, colon, name = word.partition(":")
        if kind == "proxy":
            kind, colon, name = name.partition(":")
        found.append((kind, name) if colon else ("", kind))
    return found


def _map_words(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] == ",":
            at += 1
            continue
        start = at
        while at < len(text) and not text[at].isspace() and text[at] != ",":
            if text[at] == "{":
                end = _closing(text, at)
                at = end if end > 0 else len(text) - 1
            at += 1
        yield text[start:at]


def table(kind: str, name: str) -> list[tuple[str, str, int]] | None:
    """Key, value and line of a table whose source is text; None for other kinds. Raises Unreadable."""
    if kind == "inline":
        inner = name.strip()[1:-1] if name.strip().startswith("{") else name
        pairs = (word.partition("=") for word in _words(inner.replace(",", " ")))
        return [(key.strip(), value.strip(), 0) for key, _, value in pairs]
    if kind not in ("hash", "btree", "lmdb", "dbm", "cdb", "texthash"):
        return None
    found = []
    for number, line in logical_lines(read_text(Path(name))):
        parts = line.split(None, 1)
        found.append((parts[0].rstrip(":"), parts[1] if len(parts) > 1 else "", number))
    return found


def patterns(name: str) -> list[tuple[str, str, int]]:
    """Pattern between its delimiters, action and line of a regexp: or pcre: table. Raises Unreadable."""
    found = []
    for number, line in logical_lines(read_text(Path(name))):
        if line[0].isalnum() or line[0] in "!":
            found.append((line, "", number))
            continue
        end = line.find(line[0], 1)
        while end > 0 and line[end - 1] == "\\":
            end = line.find(line[0], end + 1)
        if end < 0:
            found.append((line, "", number))
            continue
        rest = line[end + 1 :].split(None, 1)
        flags = bool(rest) and re.fullmatch(r"[a-zA-Z]{1,4}", rest[0]) is not None and rest[0].islower()
        action = (rest[1] if len(rest) > 1 else "") if flags else " ".join(rest)
        found.append((line[1:end], action, number))
    return found


def mysql(path: Path) -> dict[str, Value]:
    """A mysql: map's settings (mysql_table(5)). Raises Unreadable."""
    return parse_main(read_text(path), str(path))
