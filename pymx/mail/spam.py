"""The fields by which a filter's judgement travels with a message.

`X-Pymx-Junk` says in words why a message belongs into Junk. It is what local delivery goes by, now or from the queue,
and what its reader can look at. `X-Spam-Flag`, `X-Spam-Score` and `X-Spam-Status` say the same as SpamAssassin and
rspamd do, for filters that know these.

Fields of these names that come from outside are a stranger's words: `without_judgement` takes them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymx.mail.header import build_field, count, iter_fields

JUNK_FIELD = "X-Pymx-Junk"
OPINION_FIELD = "X-Pymx-Filter"
_MAX_REASON = 500
_MAX_TESTS = 100


@dataclass(frozen=True, slots=True)
class SpamScore:
    """A score, the score from which mail is junk, and what it is made of."""

    score: float
    required: float
    tests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a mailbox's own filter thinks of a message: does it belong into Junk, and why, in words."""

    is_junk: bool
    reason: str


def is_junk(head: bytes) -> bool:
    """Does the header block say that the message belongs into Junk?"""
    return count(head, JUNK_FIELD) > 0


def junk_field(reason: str) -> bytes:
    """The field that sends a message to Junk, and says why."""
    return build_field(JUNK_FIELD, one_line(reason)[:_MAX_REASON] or "unwanted")


def opinion_fields(opinion: Opinion) -> bytes:
    """What a mailbox's own filter thinks, for its reader; and the field that sends it to Junk if it is to go there."""
    said = build_field(OPINION_FIELD, one_line(opinion.reason)[:_MAX_REASON])
    return junk_field(opinion.reason) + said if opinion.is_junk else said


def spam_fields(score: SpamScore, *, junk: bool) -> list[tuple[str, str]]:
    """X-Spam-Flag for junk only, X-Spam-Score, X-Spam-Status."""
    tests = ",".join(score.tests[:_MAX_TESTS]) or "none"
    status = f"{'Yes' if junk else 'No'}, score={score.score:.2f} required={score.required:.2f} tests={one_line(tests)}"
    # a list without spaces can't be folded: white space is allowed behind its commas
    fields = [("X-Spam-Score", f"{score.score:.2f}"), ("X-Spam-Status", status.replace(",", ", ").replace(",  ", ", "))]
    return [("X-Spam-Flag", "YES"), *fields] if junk else fields


def without_judgement(head: bytes) -> bytes:
    """The header block without X-Spam-… and X-Pymx-… fields; every other octet stays."""
    low = b"\n" + head.lower()
    if b"\nx-spam" not in low and b"\nx-pymx-" not in low:
        return head
    return b"".join(f.raw for f in iter_fields(head) if not f.name.startswith(("x-spam", "x-pymx-")))


def one_line(text: str) -> str:
    """`text` as a field's value may hold it: control characters become spaces, spaces in a row become one."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def join_reasons(reasons: Sequence[str]) -> str:
    return "; ".join(reason for reason in reasons if reason)
