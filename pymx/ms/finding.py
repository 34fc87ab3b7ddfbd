"""What looking at an account found: a sentence about what is, and one about what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind` is one word for scripts; `wrong` is False for what is only good to know."""

    mailbox: str  # as clients see it; "" = the account as a whole
    kind: str
    text: str
    remedy: str = ""
    wrong: bool = True


def some(names: list[str], limit: int = 3) -> str:
    """The first few of many, for a sentence."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
