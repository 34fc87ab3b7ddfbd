"""rspamd's DKIM keys: what `dkim_signing` says in local.d and override.d, with its selector and path maps.

As much of UCL as people write there: `key = value;`, `key { … }`, comments, strings, numbers. A domain's key is in its
own block, or where `path` leads with `$domain` and `$selector`; `selector_map` and `path_map` are files of `domain
value`.

Errors: Unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pymx.admin.oldstack.postfix import Unreadable, read_text

_DEFAULT_PATH = "/var/lib/rspamd/dkim/$domain.$selector.key"
_DEFAULT_SELECTOR = "dkim"
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|/\*.*?\*/|(?P<string>"(?:[^"\\]|\\.)*"|'[^']*')|(?P<mark>[{}\[\];,=:])|(?P<word>[^\s{}\[\];,="']+)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Key:
    """A private key that rspamd signs with. `where` is the file and line that names it."""

    domain: str
    selector: str
    path: str
    where: str


@dataclass(slots=True)
class Table:
    """A UCL object: values are texts or tables."""

    items: dict[str, str | Table] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def parse(text: str, file: str) -> Table:
    """Raises Unreadable."""
    tokens = list(_tokens(text, file))
    tokens.append(("mark", "}", 0))
    table, at = _object(tokens, 0)
    if at > len(tokens):
        raise Unreadable(f"{file}: a table is not closed")
    if at != len(tokens):
        raise Unreadable(f"{file}: a closing brace too many")
    return table


def _tokens(text: str, file: str) -> Iterator[tuple[str, str, int]]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"{file}:{line}: not understood")
        if match.lastgroup:
            value = match[0][1:-1] if match.lastgroup == "string" else match[0]
            yield match.lastgroup, value, line
        line += match[0].count("\n")
        at = match.end()


def _object(tokens: list[tuple[str, str, int]], at: int) -> tuple[Table, int]:
    table = Table()
    while at < len(tokens):
        kind, text, line = tokens[at]
        at += 1
        if (kind, text) == ("mark", "}"):
            return table, at
        if kind == "mark":
            continue
        value, at = _value(tokens, at)
        table.items[text.rstrip(":")] = value
        table.lines[text.rstrip(":")] = line
    return table, len(tokens) + 1  # the file ended first


def _value(tokens: list[tuple[str, str, int]], at: int) -> tuple[str | Table, int]:
    """After a key: a table, a list (its first element), or a value."""
    while at < len(tokens) and tokens[at][:2] in (("mark", "="), ("mark", ":"), ("mark", "[")):
        at += 1
    if at >= len(tokens):
        return "", at
    kind, text, _ = tokens[at]
    if (kind, text) == ("mark", "{"):
        return _object(tokens, at + 1)
    if kind == "mark":
        return "", at
    at += 1
    if at < len(tokens) and tokens[at][:2] == ("mark", "{"):  # key name { … }
        inner, at = _object(tokens, at + 1)
        return Table({text: inner}), at
    while at < len(tokens) and tokens[at][:2] not in (("mark", ";"), ("mark", "}")) and tokens[at][0] != "string":
        if tokens[at][1] == "]" or tokens[at][2] != tokens[at - 1][2]:
            break
        at += 1
    return text, at


def read_keys(directory: Path, domains: list[str]) -> tuple[list[Key], list[str]]:
    """The keys of rspamd in `directory`, and what is not understood. `domains`: ours, for a path with $domain."""
    keys, trouble = dict[tuple[str, str], Key](), list[str]()
    for name in ("local.d/dkim_signing.conf", "override.d/dkim_signing.conf"):
        path = directory / name
        if not path.exists():
            continue
        try:
            table = parse(read_text(path), str(path))
            for key in _keys(table, path, domains):
                keys[key.domain, key.selector] = key
        except Unreadable as e:
            trouble.append(str(e))
    return list(keys.values()), trouble


def _keys(table: Table, file: Path, domains: list[str]) -> Iterator[Key]:
    default_path, default_selector = _text(table, "path"), _text(table, "selector") or _DEFAULT_SELECTOR
    blocks = table.items.get("domain")
    named = blocks.items if isinstance(blocks, Table) else {}
    for domain, inner in named.items():
        if not isinstance(inner, Table):
            continue
        line = blocks.lines.get(domain, 0) if isinstance(blocks, Table) else 0
        several = inner.items.get("selectors")
        for one in [several] if isinstance(several, Table) else [inner]:
            selector = _text(one, "selector") or default_selector
            path = _text(one, "path") or default_path or _DEFAULT_PATH
            yield Key(domain.lower(), selector, _filled(path, domain, selector), f"{file}:{line}")
    selectors, paths = (_map(_text(table, name)) for name in ("selector_map", "path_map"))
    for domain in dict.fromkeys([*selectors, *paths]):
        if domain in named:
            continue
        selector = selectors.get(domain, default_selector)
        path = paths.get(domain, default_path or _DEFAULT_PATH)
        line = table.lines.get("selector_map") or table.lines.get("path_map") or 0
        yield Key(domain.lower(), selector, _filled(path, domain, selector), f"{file}:{line}")
    for domain in domains:
        path = _filled(default_path or _DEFAULT_PATH, domain, default_selector)
        if domain not in named and domain not in selectors and domain not in paths and Path(path).exists():
            yield Key(domain, default_selector, path, f"{file}:{table.lines.get('path', 0)}")


def _text(table: Table, name: str) -> str:
    value = table.items.get(name, "")
    return value if isinstance(value, str) else ""


def _filled(path: str, domain: str, selector: str) -> str:
    return path.replace("$domain", domain).replace("$selector", selector)


def _map(name: str) -> dict[str, str]:
    """A map file; of other kinds (http, redis) nothing is known here. Raises Unreadable."""
    path = name.removeprefix("file://")
    if not path.startswith("/"):
        return {}
    found = {}
    for line in read_text(Path(path)).splitlines():
        words = line.partition("#")[0].split(None, 1)
        if len(words) == 2:
            found[words[0].strip('"').lower()] = words[1].strip().strip('"')
    return found
