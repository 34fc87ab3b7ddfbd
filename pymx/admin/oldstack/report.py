"""What became of each line of the old configuration.

TAKEN: a setting of pymx.toml says the same. SAME: pymx does so without being told, or has no need of it. DIFFERENT:
pymx does it another way, and the sentence says what that means. LOST: what it did is not done any more. BLOCKED: pymx
can't take over before this is changed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from pymx.admin.oldstack.postfix import Value


class Fate(enum.Enum):
    TAKEN = "taken over"
    SAME = "needs no setting"
    DIFFERENT = "is done another way"
    LOST = "is lost"
    BLOCKED = "is in the way"


@dataclass(frozen=True, slots=True)
class Line:
    """One setting: where it stands, what it says, what became of it and what that means."""

    where: str
    said: str
    fate: Fate
    meaning: str


@dataclass(slots=True)
class Report:
    """Lines in the order in which they were looked at, and settings of pymx with the place each comes from."""

    lines: list[Line] = field(default_factory=list)
    settings: dict[str, dict[str, object]] = field(default_factory=dict)  # section → key → value
    sources: dict[tuple[str, str], str] = field(default_factory=dict)
    keys: list[tuple[str, str, str]] = field(default_factory=list)  # DKIM: domain, selector, path
    passwords: dict[str, str] = field(default_factory=dict)  # file to write → its text

    def say(self, value: Value, name: str, fate: Fate, meaning: str) -> None:
        self.lines.append(Line(value.where, f"{name} = {hidden(name, value.text)}", fate, meaning))

    def take(self, value: Value, name: str, section: str, key: str, setting: object, *, note: str = "") -> None:
        """A setting of ours. The first who sets a key is right, others must say the same."""
        keys = self.settings.setdefault(section, {})
        shown = f"[{section}] {key}" if section else key
        if key in keys and keys[key] != setting:
            earlier = self.sources[section, key]
            self.say(value, name, Fate.DIFFERENT, f"{shown} is {keys[key]!r} already, by {earlier}")
            return
        keys[key] = setting
        self.sources.setdefault((section, key), value.where)
        self.say(value, name, Fate.TAKEN, shown + (f": {note}" if note else ""))

    def add(self, value: Value, name: str, section: str, key: str, entries: list[object], *, note: str = "") -> None:
        """Entries for a list of ours."""
        listed = self.settings.setdefault(section, {}).setdefault(key, [])
        assert isinstance(listed, list)
        listed += [entry for entry in entries if entry not in listed]
        self.sources.setdefault((section, key), value.where)
        self.say(value, name, Fate.TAKEN, f"[{section}] {key}" + (f": {note}" if note else ""))


def hidden(name: str, text: str) -> str:
    """Never a password on the screen."""
    text = " ".join(text.split())
    if "password" in name and "query" not in name:
        return "…"
    words = [word.partition("=")[0] + "=…" if word.startswith("password=") else word for word in text.split()]
    return " ".join(words)
