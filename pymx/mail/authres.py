"""Authentication-Results (RFC 8601): the field we write, and those that claim to be ours but came from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.mail.header import Field, build_field, find
from pymx.mail.mime import strip_comments

_SPECIAL = re.compile(r'[\s()<>@,;:\\"/\[\]?=\x00-\x1f\x7f]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# authserv-id: a MIME token or a quoted string, perhaps with a version behind it (s. 2.2)
_AUTHSERV_ID = re.compile(rb'[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')

_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """One method's result: `properties` are (ptype.property, value) pairs, `reason` is for people."""

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def _value(text: str) -> str:
    """A pvalue: as it is, or as a quoted string. An address stays one (pvalue allows local-part "@" domain)."""
    text = _CONTROL.sub("", text)
    local, at, domain = text.rpartition("@")
    if text and not _SPECIAL.search(local if at else text) and not (at and _SPECIAL.search(domain)):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def authentication_results(authserv_id: str, results: Sequence[Result]) -> bytes:
    """The Authentication-Results field of this host; "none" when nothing was checked."""
    parts = [authserv_id]
    for result in results:
        words = [f"{result.method}={result.result}"]
        if result.reason:
            words.append(f"reason={_value(result.reason)}")
        words += [f"{name}={_value(value)}" for name, value in result.properties]
        parts.append(" ".join(words))
    return build_field("Authentication-Results", "; ".join(parts) + ("" if results else "; none"))


def _claims(field: Field, authserv_id: str) -> bool:
    match = _AUTHSERV_ID.match(strip_comments(field.value))
    if not match:
        return True  # nobody can tell whose it is, so nobody should take it for ours
    return (match[1] or match[2] or b"").decode("utf-8", "replace").lower() == authserv_id.lower()


def without_claims(block: bytes, authserv_id: str) -> bytes:
    """The header block without Authentication-Results that name this host (s. 5: a border MTA MUST remove them)."""
    kept: list[bytes] = []
    position = 0
    for start, field in find(block, "authentication-results"):
        if _claims(field, authserv_id):
            kept.append(block[position:start])
            position = start + len(field.raw)
    return b"".join(kept) + block[position:] if position else block


def stated(block: bytes, authserv_id: str, method: str) -> str:
    """The result of a method by the first field that is this host's, in lower case; "" when it says nothing of it.

    What stands in properties and reasons comes from the sender: only the word that begins a part counts.
    """
    for _, field in find(block, "authentication-results"):
        if not _claims(field, authserv_id):
            continue
        for part in _QUOTED.sub(b'""', strip_comments(field.value)).split(b";")[1:]:
            name, _, result = part.partition(b"=")
            if name.strip().lower() == method.encode():
                return b"".join(result.split()[:1]).decode("ascii", "replace").lower()
        return ""
    return ""
