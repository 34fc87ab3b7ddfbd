"""What a check has to say, and what all of them together have to say.

Levels are ordered: accept < junk < defer < reject, and the worst one counts. A score alone never does more than junk:
several hints add up, one hint is a hint (`[checks] junk_score`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pymx.mail.authres import Result
from pymx.mail.spam import SpamScore, join_reasons
from pymx.proto.smtp.reply import Reply

_NO_FACTS = frozenset({"header.b", "header.i"})  # of use to other programs only


ALWAYS_OPEN = frozenset({"postmaster", "abuse"})  # RFC 5321 s. 4.5.1, RFC 2142 s. 2: never refused mail to them alone


class Level(enum.IntEnum):
    """What is to be done with the message."""

    ACCEPT = 0
    JUNK = 1
    DEFER = 2
    REJECT = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's. `reply` is what the peer hears if it is refused; `reason` is exact, for the log, and for the
    message's reader when it goes to Junk. `word` is the result for the log where `results` has none."""

    level: Level = Level.ACCEPT
    reply: Reply | None = None
    reason: str = ""
    word: str = ""
    score: float = 0.0
    results: tuple[Result, ...] = ()  # for Authentication-Results
    fields: tuple[tuple[str, str], ...] = ()  # to add
    removals: tuple[tuple[str, int], ...] = ()  # to take out: (name, which); 0 = all, 1 = the first, -1 = the last
    spam: SpamScore | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """All verdicts on one message, merged."""

    level: Level
    reply: Reply | None
    reason: str
    score: float
    verdicts: tuple[tuple[str, Verdict], ...]  # by check, in the order of the pipeline

    @property
    def summary(self) -> str:
        """`spf=pass dkim=pass dmarc=none dnsbl=listed` in one line, for the log."""
        words: list[str] = []
        for name, verdict in self.verdicts:
            words += [f"{r.method}={r.result}" for r in verdict.results] or [f"{name}={verdict.word or 'ok'}"]
        return " ".join(words)

    @property
    def facts(self) -> str:
        """What the results rest on: `spf smtp.mailfrom=x@a.example; dkim header.d=a.example header.s=k`."""
        found = []
        for _, verdict in self.verdicts:
            for result in verdict.results:
                words = [f"{name}={value}" for name, value in result.properties if name not in _NO_FACTS]
                if result.reason:
                    words.append(f"({result.reason})")
                if words:
                    found.append(f"{result.method} {' '.join(words)}")
        return "; ".join(found)


def merge(verdicts: Sequence[tuple[str, Verdict]], junk_score: float) -> Judgement:
    """The worst level, the reply of the first verdict that has it, the sum of the scores, and why."""
    score = round(sum(verdict.score for _, verdict in verdicts), 2)
    level = max((verdict.level for _, verdict in verdicts), default=Level.ACCEPT)
    decisive = [verdict for _, verdict in verdicts if verdict.level is level]
    reasons = [verdict.reason for verdict in decisive] if level else []
    if level <= Level.JUNK and score >= junk_score:
        level = Level.JUNK
        hints = join_reasons([f"{v.reason} ({v.score:+g})" for _, v in verdicts if v.score and v.reason])
        reasons.append(f"score {score:g} of {junk_score:g}: {hints}")
    elif level is Level.ACCEPT:
        # not decisive, but the log should have it
        reasons = [verdict.reason for _, verdict in verdicts]
    reply = next((verdict.reply for verdict in decisive if verdict.reply is not None), None)
    return Judgement(level, reply, join_reasons(reasons), score, tuple(verdicts))
