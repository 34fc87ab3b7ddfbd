"""MTA-STS: what a domain says about TLS to its mail servers (RFC 8461 s. 3). PURE.

`policy_id` reads the TXT records of `_mta-sts.<domain>`, `parse_policy` the text fetched over HTTPS, `matches` compares
a mail server's name with an `mx` pattern. Anything that the grammar does not allow is PolicyError: a policy that can't
be read must not be taken for a weaker one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POLICY_OCTETS = 65_536  # RFC 8461 s. 3.3
MAX_AGE_S = 31_557_600  # s. 3.2: about a year
_MAX_PATTERNS = 500

_VERSION = "STSv1"
# no two neighbours that match the same: the server chooses how long a line is
_FIELD = re.compile(r"[ \t]*([A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
_TXT_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})=([!-:<>-~]+)\Z")
_ID = re.compile(r"[A-Za-z0-9]{1,32}\Z")
_LABEL = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)"
_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\Z")


class PolicyError(ValueError):
    """The text is no policy."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. `lines` are its lines as they were, for reports; `mx` are patterns in lower case."""

    mode: str  # "enforce", "testing" or "none"
    mx: tuple[str, ...]
    max_age_s: int
    lines: tuple[str, ...]

    @property
    def enforced(self) -> bool:
        return self.mode == "enforce"

    def allows(self, host: str) -> bool:
        """Whether a mail server's name fits one of the patterns."""
        return any(matches(pattern, host) for pattern in self.mx)


def policy_id(records: Sequence[bytes]) -> str:
    """The id in the TXT records of `_mta-sts.<domain>`; "" when the domain has no policy (RFC 8461 s. 3.1)."""
    # "records that do not begin with "v=STSv1;" are discarded", and what is left must be one
    candidates = [record for record in records if re.match(rb"v=STSv1[ \t]*;", record)]
    if len(candidates) != 1:
        return ""
    try:
        text = candidates[0].decode("ascii")
    except UnicodeDecodeError:
        return ""
    fields = [field.strip(" \t") for field in text.split(";")[1:]]
    if fields and not fields[-1]:
        fields.pop()  # a delimiter at the end
    found = ""
    for field in fields:
        parsed = _TXT_FIELD.match(field)
        if parsed is None:
            return ""
        if parsed[1] == "id" and not found:
            found = parsed[2]
    return found if _ID.match(found) else ""


def parse_policy(text: bytes) -> Policy:
    """The policy in a response's body (RFC 8461 s. 3.2). Raises PolicyError."""
    if len(text) > MAX_POLICY_OCTETS:
        raise PolicyError("the policy is longer than 64 KB")
    try:
        lines = text.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise PolicyError("the policy is not UTF-8") from None
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        parsed = _FIELD.match(line)
        if parsed is None:
            raise PolicyError(f"a line is no field: {line[:80]!r}")
        name, value = parsed[1], parsed[2].strip(" \t")
        if name == "mx":
            patterns.append(_pattern(value))
        else:
            fields.setdefault(name, value)  # "all entries except for the first SHALL be ignored"
    if fields.get("version") != _VERSION:
        raise PolicyError(f"version is not {_VERSION}")
    mode = fields.get("mode", "")
    if mode not in ("enforce", "testing", "none"):
        raise PolicyError(f"mode {mode[:40]!r} is unknown")
    if not patterns and mode != "none":
        raise PolicyError("there is no mx")
    if len(patterns) > _MAX_PATTERNS:
        raise PolicyError(f"there are more than {_MAX_PATTERNS} mx")
    return Policy(mode, tuple(patterns), _max_age(fields.get("max_age", "")), tuple(lines))


def _pattern(value: str) -> str:
    if len(value) > 255 or not _PATTERN.match(value):
        raise PolicyError(f"mx {value[:80]!r} is no host name or pattern")
    return value.lower()


def _max_age(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10):
        raise PolicyError(f"max_age {value[:40]!r} is no number of seconds")
    return min(int(value), MAX_AGE_S)


def matches(pattern: str, host: str) -> bool:
    """RFC 8461 s. 4.1: a wildcard stands for exactly one label, the leftmost."""
    host = host.lower().rstrip(".")
    if pattern.startswith("*."):
        first, dot, rest = host.partition(".")
        return bool(first and dot) and rest == pattern[2:]
    return host == pattern
