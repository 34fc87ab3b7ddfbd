"""Where an existing Dovecot has its files: `mail_location = maildir:~/Maildir:LAYOUT=fs:CONTROL=…:INDEX=…`.

With CONTROL= the uidlist, keywords, subscriptions and UIDVALIDITY are in a tree of their own, in which INBOX has a
directory like the others (`.INBOX`, with LAYOUT=fs `INBOX`); with INDEX= so are `dovecot.index*`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pymx.ms.layout import INBOX, Levels
from pymx.ms.owner import Owner


@dataclass(frozen=True, slots=True)
class Location:
    """A mail_location with its variables still in it."""

    kind: str
    path: str
    layout: str = "maildir++"
    control: str = ""
    index: str = ""
    inbox: str = ""

    @classmethod
    def parse(cls, text: str) -> Location:
        kind, _, rest = text.partition(":")
        path, *words = rest.split(":")
        options = {key.upper(): value for key, _, value in (word.partition("=") for word in words)}
        return cls(
            kind,
            path,
            options.get("LAYOUT", "maildir++").lower(),
            options.get("CONTROL", ""),
            options.get("INDEX", ""),
            options.get("INBOX", ""),
        )


def expand(template: str, owner: Owner, home: str = "") -> str:
    """Dovecot's variables for the account: `%u`, `%n`, `%d`, `%{user}`, `~`."""
    local_part, domain = owner.local_part.lower(), owner.domain.lower()
    user = f"{local_part}@{domain}"
    for name, value in (("user|username", local_part), ("user|domain", domain), ("user", user)):
        pattern = r"%\{\s*" + name.replace("|", r"\s*\|\s*") + r"\s*\}"
        template = re.sub(pattern, value.replace("\\", r"\\"), template)
    for name, value in (("username", local_part), ("domain", domain), ("home", home)):
        template = template.replace("%{" + name + "}", value)
    for letter, value in (("u", user), ("n", local_part), ("d", domain), ("h", home)):
        template = template.replace(f"%{letter}", value).replace(f"%L{letter}", value.lower())
    return home + template[1:] if template.startswith("~/") or template == "~" else template


@dataclass(frozen=True, slots=True)
class Place:
    """One account's directories."""

    root: bytes
    fs: bool = False
    control: bytes = b""  # b"" = in the mailboxes' own directories
    index: bytes = b""

    def control_of(self, path: bytes, levels: Levels) -> bytes:
        """The directory with the uidlist of the mailbox in `path`."""
        return _apart(self.control, levels, fs=self.fs) if self.control else path

    def index_of(self, path: bytes, levels: Levels) -> bytes:
        return _apart(self.index, levels, fs=self.fs) if self.index else path

    @property
    def account_files(self) -> bytes:
        """The directory with `subscriptions` and `dovecot-uidvalidity`."""
        return self.control or self.root


def control_root(template: str, owner: Owner) -> bytes:
    """An account's CONTROL= directory by the setting `control_dir`; b"" if it is empty."""
    return os.fsencode(expand(template, owner)) if template else b""


def _apart(tree: bytes, levels: Levels, *, fs: bool) -> bytes:
    if fs:
        return os.path.join(tree, *(level.encode() for level in levels))
    return os.path.join(tree, b"." + ".".join(levels or INBOX).encode())
