"""TOML file → Config. Errors name the key, the value's type and what was expected.

Raises `ConfigError` (unreadable file, bad TOML, unknown key, wrong type); nothing is started on a doubtful config.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from pymx.config.model import Config

_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`(?: - at `\$\.?([^`]*)`)?")
_AT = re.compile(r"^(.*?) - at `\$\.?([^`]*)`$")


class ConfigError(Exception):
    """The configuration can't be used; the text says which key and why."""


def load(path: Path) -> Config:
    """The configuration in `path`. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8 at octet {e.start}") from None
    return parse(text, str(path))


def parse(text: str, source: str = "config") -> Config:
    """The configuration in TOML `text`; `source` names it in errors. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{source}: not TOML: {e}") from None
    try:
        return msgspec.convert(data, Config, strict=True)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{source}: {_explain(str(e), data)}") from None


def _explain(message: str, data: dict[str, Any]) -> str:
    """msgspec's error with the key in the config's own notation."""
    unknown = _UNKNOWN.search(message)
    if unknown:
        import difflib  # not needed for a good config

        section, key = unknown[2] or "", unknown[1]
        where = f"[{section}] {key}" if section else key
        close = difflib.get_close_matches(key, _known_keys(section), n=1)
        return f"{where}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    at = _AT.match(message)
    if not at:
        return message
    return f"{at[2]} = {_value_at(data, at[2])!r}: {at[1][0].lower()}{at[1][1:]}"


def _known_keys(section: str) -> list[str]:
    struct: Any = Config
    for name in filter(None, re.sub(r"\[.*?\]", "", section).split(".")):
        field = next((f for f in msgspec.structs.fields(struct) if f.encode_name == name), None)
        if field is None:
            return []
        struct = field.type
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            continue
        return []
    return [f.encode_name for f in msgspec.structs.fields(struct)]


def _value_at(data: Any, path: str) -> Any:
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(index)] if index else data[name]
        except (KeyError, IndexError, TypeError):
            return None
    return data
