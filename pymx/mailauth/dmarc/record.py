"""DMARC policy records (RFC 7489 s. 6.3, RFC 9989 s. 4.7), read as generously as the RFCs ask for.

Nothing is raised: what is no record of ours is left out, "syntax errors in the remainder of the record … discarded in
favor of default values" (s. 6.3), and a record that has no policy to follow says so (`usable`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

Policy = Literal["none", "quarantine", "reject"]
MAX_RECORD_OCTETS = 4096
_VERSION = re.compile(rb"v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_POLICIES = ("none", "quarantine", "reject")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+\Z")


@dataclass(frozen=True, slots=True)
class Record:
    """`tags` as published, names in lower case; the rest is what they mean."""

    tags: Mapping[str, str]
    usable: bool  # a policy can be told from it
    policy: Policy
    subdomain_policy: Policy
    nonexistent_policy: Policy
    strict_dkim: bool
    strict_spf: bool
    percent: int
    testing: bool
    psd: str  # "y", "n", or "u" for not said


def find_record(texts: Sequence[bytes]) -> Record | None:
    """The DMARC record among the TXT records of a name; None when there is none, or more than one (s. 6.6.3)."""
    found = [text for text in texts if _VERSION.match(text)]
    return parse_record(found[0]) if len(found) == 1 else None


def parse_record(text: bytes) -> Record:
    """A TXT record that begins with v=DMARC1."""
    tags: dict[str, str] = {}
    for part in text[:MAX_RECORD_OCTETS].decode("utf-8", "replace").split(";"):
        name, equals, value = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    words = {name: value.lower() for name, value in tags.items()}
    sound = words.get("p") in _POLICIES and all(words.get(t, "none") in _POLICIES for t in ("sp", "np"))
    # RFC 7489 s. 6.6.3 step 6: without a valid policy the record counts as p=none if somebody wants reports
    policy = _policy(words["p"]) if sound else "none"
    subdomains = _policy(words["sp"]) if sound and "sp" in words else policy
    return Record(
        tags=tags,
        usable=sound or _wants_reports(tags.get("rua", "")),
        policy=policy,
        subdomain_policy=subdomains,
        nonexistent_policy=_policy(words["np"]) if sound and "np" in words else subdomains,
        strict_dkim=words.get("adkim") == "s",
        strict_spf=words.get("aspf") == "s",
        percent=_percent(words.get("pct", "")),
        testing=words.get("t") == "y",
        psd=words["psd"] if words.get("psd") in ("y", "n") else "u",
    )


def _policy(word: str) -> Policy:
    return cast(Policy, word)


def _wants_reports(rua: str) -> bool:
    return any(_URI.match(uri.strip()) for uri in rua.split(","))


def _percent(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100:
        return int(text)
    return 100
