"""A configuration as TOML text: what is not at its default, in the model's order, with a comment above if there is one.

`parse(to_toml(config))` is `config`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import msgspec

from pymx.config.model import Config


def to_toml(config: Config, comments: Mapping[tuple[str, str], str] | None = None) -> str:
    """`comments`: by section ("" = the top) and key."""
    notes = comments or {}
    lines = list(_keys(config, "", notes))
    for field in msgspec.structs.fields(config):
        section = getattr(config, field.name)
        if isinstance(section, msgspec.Struct):
            keys = list(_keys(section, field.encode_name, notes))
            if keys:
                lines += ["", f"[{field.encode_name}]", *keys]
    return "\n".join(lines).lstrip("\n") + "\n"


def _keys(struct: msgspec.Struct, section: str, notes: Mapping[tuple[str, str], str]) -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if not isinstance(value, msgspec.Struct) and value != _default(field):
            note = notes.get((section, field.encode_name))
            if note is not None:
                yield f"# {''.join(c if c.isprintable() else '?' for c in note)}"
            yield f"{field.encode_name} = {value_text(value)}"


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def value_text(value: object) -> str:
    """One value. TypeError for what no setting holds."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return string(value)
        case list() | tuple():
            return "[" + ", ".join(map(value_text, value)) + "]"
        case Mapping():
            return _table({str(key): inner for key, inner in value.items()})
        case msgspec.Struct():
            pairs = ((f.encode_name, getattr(value, f.name), _default(f)) for f in msgspec.structs.fields(value))
            return _table({key: inner for key, inner, default in pairs if inner != default})
    raise TypeError(f"no setting is of type {type(value).__name__}")


def _table(pairs: Mapping[str, object]) -> str:
    inner = ", ".join(f"{_key(key)} = {value_text(value)}" for key, value in pairs.items())
    return f"{{ {inner} }}" if inner else "{}"


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("-", "").replace("_", "").isalnum() else string(key)


def string(text: str) -> str:
    """A basic string; JSON's escapes are TOML's, but for DEL, which TOML wants escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
