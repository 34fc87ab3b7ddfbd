"""docs/settings.md and config/pymx.toml from the config model, so that a setting is described in one place.

    python -m pymx.config.document settings > docs/settings.md
    python -m pymx.config.document toml > config/pymx.toml

tests/test_docs.py fails when either file is not what this prints.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from pymx.config.model import Config, Provider, Route

# what an administrator has to look at; all else stands in pymx.toml as a comment with its default
_EXAMPLES: dict[str, object] = {
    "hostname": "mx.example.com",
    "database.url": "sqlite:////var/lib/pymx/pymx.sqlite",
    "mail.root": "/var/vmail",
    "accounts.postmaster": "postmaster@example.com",
    "acme.enabled": True,
    "web.listen": ["0.0.0.0:80", "[::]:80"],
    "web.listen_tls": ["0.0.0.0:443", "[::]:443"],
}
_ROUTE_EXAMPLE = (
    'route = [{ domain = "*", host = "smtp.example.net", port = 587, tls = "verified", username = "me", '
    'password_file = "/etc/pymx/smarthost.password" }]'
)
_PROVIDER_EXAMPLE = (
    'provider = [{ name = "hoster", mx = [".hoster.example"], max_connections = 3, messages_per_hour = 500 }]'
)
_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_octets": "octets", "_mb": "MiB"}
_OBVIOUS = {"text", "number from 0", "number from 1", "true or false", "list of texts", "list of tables", "table"}
_TOML_HEADER = """\
# pymx: all settings with their defaults. A key that is commented out has the value shown.
# Where:  /etc/pymx/pymx.toml, mode 0640, root:vmail        Check:  pymx check-config --config FILE
# Units:  _s seconds, _ms milliseconds, _octets, _mb MiB    After a change:  systemctl reload pymx

"""
_SETTINGS_HEADER = """\
# Settings

`/etc/pymx/pymx.toml`, in TOML. `pymx check-config --config FILE` says what is wrong with a file, and a server that is
given a wrong one does not start. `config/pymx.toml` has every key with its default, ready to be edited.

<!-- This page is generated: python -m pymx.config.document settings -->
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key as the model has it."""

    section: str  # "" = top of the file
    key: str
    default: object
    kind: str
    unit: str
    meaning: str

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}" if self.section else self.key


def settings(struct: type[msgspec.Struct], section: str = "") -> Iterator[Setting]:
    """The keys of a section, in the model's order; sections inside it are left out."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            continue
        yield Setting(section, field.encode_name, _default(field), _kind(hint), _unit(field.name), _description(hint))


def sections() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Name and model of each section, in the model's order."""
    hints = typing.get_type_hints(Config)
    for field in msgspec.structs.fields(Config):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield field.encode_name, hint


def toml() -> str:
    """The text of config/pymx.toml."""
    out = [_TOML_HEADER + "\n"]
    out += [_toml_lines(s) for s in settings(Config)]
    for name, struct in sections():
        out.append(f"\n# {_doc(struct)}\n[{name}]\n")
        out += [_toml_lines(s) for s in settings(struct, name)]
    return "\n".join(part.removesuffix("\n") for part in out) + "\n"


def settings_page() -> str:
    """The text of docs/settings.md."""
    out = [_SETTINGS_HEADER, "## Top of the file", _doc(Config), _table(settings(Config))]
    for name, struct in sections():
        out += [f"## [{name}]", _doc(struct), _table(settings(struct, name))]
        if name == "outbound":
            out += ["### Keys of a route", _doc(Route), f"    {_ROUTE_EXAMPLE}", _table(settings(Route, "route"))]
            out += ["### Keys of a provider", _doc(Provider), f"    {_PROVIDER_EXAMPLE}"]
            out += [_table(settings(Provider, "provider"))]
    return "\n\n".join(part.strip("\n") if i else part.strip() for i, part in enumerate(out)) + "\n"


def _toml_lines(setting: Setting) -> str:
    comment = f"# {setting.meaning}"
    note = _measure(setting)
    # the value shown tells a text from a list; what it can't tell stands behind the meaning
    lines = [comment if note in _OBVIOUS else f"{comment} ({note})"]
    example = _EXAMPLES.get(setting.path)
    if example is not None:
        lines.append(f"{setting.key} = {_toml_value(example)}")
    else:
        lines.append(f"#{setting.key} = {_toml_value(setting.default)}")
    if setting.path == "outbound.route":
        lines.append(f"# for example: {_ROUTE_EXAMPLE}")
    if setting.path == "outbound.provider":
        lines.append(f"# for example: {_PROVIDER_EXAMPLE}")
    return "\n".join(lines)


def _measure(setting: Setting) -> str:
    """Unit, type and bounds in a few words: "seconds from 1", "text"."""
    return setting.kind.replace("number", setting.unit) if setting.unit else setting.kind


def _table(rows: Iterator[Setting]) -> str:
    lines = ["| key | default | unit or type | meaning |", "|---|---|---|---|"]
    for s in rows:
        default = "(required)" if s.default is msgspec.NODEFAULT else f"`{_toml_value(s.default)}`"
        cells = [f"`{s.key}`", default, _measure(s), s.meaning]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def _doc(struct: type[msgspec.Struct]) -> str:
    return " ".join((struct.__doc__ or "").split())


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")


def _metas(hint: object) -> list[msgspec.Meta]:
    return [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)]


def _description(hint: object) -> str:
    for meta in reversed(_metas(hint)):
        if meta.description:
            return meta.description
    raise ValueError(f"a setting without a description: {hint}")


def _kind(hint: object) -> str:
    """What may stand there, in words."""
    if typing.get_origin(hint) is typing.Annotated:
        bounds = _bounds(_metas(hint))
        inner = _kind(typing.get_args(hint)[0])
        return f"{inner} {bounds}" if bounds else inner
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_kind(arg) for arg in typing.get_args(hint))
    return {str: "text", bool: "true or false", int: "number", list[str]: "list of texts"}.get(
        typing.cast("type", hint), "table" if typing.get_origin(hint) is dict else "list of tables"
    )


def _bounds(metas: list[msgspec.Meta]) -> str:
    low = next((m.ge for m in metas if m.ge is not None), None)
    high = next((m.le for m in metas if m.le is not None), None)
    if low is not None and high is not None:
        return f"from {low} to {high}"
    return f"from {low}" if low is not None else ""


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return str(value)


if __name__ == "__main__":
    sys.stdout.write({"settings": settings_page, "toml": toml}[sys.argv[1]]())
