"""Whose mail: a domain and a local part, and where their directory is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pymx.ms.errors import InvalidName


@dataclass(frozen=True, slots=True)
class Owner:
    """An account as the store sees it; limits of 0 are none."""

    domain: str
    local_part: str
    quota_octets: int = 0
    quota_messages: int = 0

    @property
    def is_limited(self) -> bool:
        return bool(self.quota_octets or self.quota_messages)

    @property
    def email(self) -> str:
        return f"{self.local_part}@{self.domain}".lower()

    def path(self, root: bytes) -> bytes:
        """`<root>/<domain>/<local-part>`, lower case. Raises InvalidName for what would leave the root."""
        parts = (self.domain.lower(), self.local_part.lower())
        for part in parts:
            if not part or part.startswith(".") or "/" in part or any(ord(c) < 32 or ord(c) == 127 for c in part):
                raise InvalidName("Not a possible account name")
        return os.path.join(root, *(part.encode() for part in parts))
