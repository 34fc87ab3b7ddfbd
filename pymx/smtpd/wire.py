"""Replies in wire form, remembered: the same dozen are said thousands of times."""

from __future__ import annotations

from functools import lru_cache

from pymx.proto.smtp.reply import Reply


@lru_cache(maxsize=256)
def wire(answer: Reply) -> bytes:
    return answer.wire()
