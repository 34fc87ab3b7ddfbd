"""Reading Authentication-Results of others (RFC 8601 s. 2.2), as tolerantly as they are written. PURE.

Also from the text of a message: reflectors quote what they saw of ours in the body of their answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMENT = re.compile(r"\((?:[^()\\]|\\.)*\)")
_RESULT = re.compile(r"(?P<method>[a-z][a-z0-9-]*)(?:/\d+)?\s*=\s*(?P<result>[a-z]+)", re.IGNORECASE)
_PROPERTY = re.compile(r"(?P<name>[a-z-]+\.[a-z0-9-]+)\s*=\s*(?P<value>\"[^\"]*\"|[^\s;]+)", re.IGNORECASE)
_IN_TEXT = re.compile(r"(?im)^[ \t>]*Authentication-Results:(?P<value>.*(?:\r?\n[ \t>]*[ \t].*)*)")
_MAX_NESTING = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """One method's result: `dkim`, `pass`, {"header.d": "example.com"}."""

    method: str
    result: str
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class Judgements:
    """What one server says of a message. `server` is its authserv-id."""

    server: str
    results: tuple[Judgement, ...]

    def of(self, method: str) -> list[Judgement]:
        return [judgement for judgement in self.results if judgement.method == method]

    def passes(self, method: str) -> bool:
        """One signature that verifies is enough."""
        return any(judgement.result == "pass" for judgement in self.of(method))


def read(value: str) -> Judgements:
    """A field's value. What can't be understood is left out."""
    text = " ".join(value.split())
    for _ in range(_MAX_NESTING):
        text = _COMMENT.sub(" ", text)
    parts = text.split(";")
    server = ""
    if not _RESULT.match(parts[0].strip()):  # Outlook leaves the server's name out
        server = (parts.pop(0).split() or [""])[0].lower()
    results = []
    for part in parts:
        match = _RESULT.match(part.strip())
        if match:
            properties = {p["name"].lower(): p["value"].strip('"') for p in _PROPERTY.finditer(part)}
            results.append(Judgement(match["method"].lower(), match["result"].lower(), properties))
    return Judgements(server, tuple(results))


def find_in_text(text: str) -> Judgements | None:
    """The first field that stands in a text, quoted or not; or else loose words like `spf=pass`."""
    for match in _IN_TEXT.finditer(text):
        found = read(match["value"].replace(">", " "))
        if found.results:
            return found
    loose = [
        Judgement(m["method"].lower(), m["result"].lower(), {})
        for m in re.finditer(r"(?i)\b(?P<method>spf|dkim|dmarc|iprev)\s*[=:]\s*(?P<result>[a-z]+)", text)
    ]
    return Judgements("", tuple(loose)) if loose else None
