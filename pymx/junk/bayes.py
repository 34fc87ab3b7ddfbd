"""How sure it is that a message is junk, from how often its tokens were seen in junk and in other mail.

The rules are those of the well-known filters (SpamBayes, Bogofilter, SpamAssassin), after Gary Robinson: a token's
probability leans to 0.5 when it was seen seldom; the telling ones are combined by Fisher's method in both directions,
so that what speaks for both sides, or for none, comes out in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

UNKNOWN_STRENGTH = 0.45
UNKNOWN_PROBABILITY = 0.5
MIN_STRENGTH = 0.1  # tokens nearer to 0.5 say nothing
MAX_TELLING = 150
_NEAR_0, _NEAR_1 = 1e-6, 1 - 1e-6
_LARGEST_EXPONENT = 500.0


def telling(rows: Iterable[tuple[int, int, int]], all_spam: int, all_ham: int) -> list[tuple[float, int]]:
    """(probability, token) of those that say something, the most telling first.

    `rows` are (token, messages of junk it was in, other messages it was in); the totals are of all messages learned.
    """
    all_spam, all_ham = max(1, all_spam), max(1, all_ham)
    least, prior = MIN_STRENGTH, UNKNOWN_STRENGTH * UNKNOWN_PROBABILITY
    strong = []
    for token, spam, ham in rows:
        share = spam / all_spam
        both = share + ham / all_ham
        if both > 0:
            seen = spam + ham
            p = (prior + seen * share / both) / (UNKNOWN_STRENGTH + seen)
            strength = p - 0.5 if p > 0.5 else 0.5 - p
            if strength >= least:
                strong.append((strength, p, token))
    strong.sort(reverse=True)
    return [(p, token) for _, p, token in strong[:MAX_TELLING]]


def combined(probabilities: Sequence[float]) -> float:
    """Fisher's method: 0 = certainly wanted, 1 = certainly junk, 0.5 = nothing is known."""
    if not probabilities:
        return 0.5
    log = math.log
    ln_p = ln_q = 0.0
    for p in probabilities:
        p = min(max(p, _NEAR_0), _NEAR_1)
        ln_p += log(p)
        ln_q += log(1 - p)
    degrees = 2 * len(probabilities)
    spam = 1.0 - chi2q(-2.0 * ln_q, degrees)
    ham = 1.0 - chi2q(-2.0 * ln_p, degrees)
    return (spam - ham + 1.0) / 2.0


def chi2q(x: float, degrees: int) -> float:
    """The probability that chi-square with `degrees` (even) degrees of freedom is above `x`."""
    half = x / 2.0
    # The sum of half^i e^-half / i!; far out e^-half is 0 and so is the sum, unless there are as many degrees.
    scale = max(0.0, half - _LARGEST_EXPONENT)
    term = total = math.exp(scale - half)
    for i in range(1, degrees // 2):
        term *= half / i
        total += term
    return min(total * math.exp(-scale), 1.0)
