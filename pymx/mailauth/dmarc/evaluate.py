"""DMARC evaluation (RFC 7489 s. 6.6, RFC 9989): is the message aligned with the domain in From, and what if not?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pymx.mailauth.dkim.verify import DkimResult
from pymx.mailauth.questions import Questions
from pymx.mailauth.spf.check import SpfResult

Policy = Literal["none", "quarantine", "reject"]


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """`policy` is what the domain asks for mail that fails, `disposition` what is left of it after pct= or t=y ("none"
    unless the result is fail). `domain` is where the record is. `aligned` holds those of "spf" and "dkim" that passed
    and are aligned. `record` has the tags as published, for reports."""

    result: str
    policy: Policy = "none"
    disposition: Policy = "none"
    domain: str = ""
    header_from: str = ""
    aligned: tuple[str, ...] = ()
    reason: str = ""
    sampled_out: bool = False
    record: dict[str, str] = field(default_factory=dict)


def by_chance(percent: int) -> bool:
    """Whether a message is among the `percent` that the policy is for."""
    return random.randrange(100) < percent  # noqa: S311  # nothing secret about it


async def evaluate(
    resolver: Questions,
    *,
    header_from_domain: str,
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
    sampled: Callable[[int], bool] = by_chance,
) -> DmarcResult:
    """The result for the domain of the one address in From."""
    del resolver, spf, dkim, sampled
    return DmarcResult("none", header_from=header_from_domain.lower())
