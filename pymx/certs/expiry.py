"""Says in the log when a certificate in use is about to expire: daily, from 14 days before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from pymx import log
from pymx.net.tls import Loaded

WARN_S = 14 * 86_400.0
_DAY_S = 86_400.0

_log = log.get("certs")


async def watch(in_use: Callable[[], Sequence[Loaded]]) -> None:
    """For ever; `in_use` gives the certificates as they are at that moment."""
    while True:
        look(in_use(), time.time())
        await asyncio.sleep(_DAY_S)


def look(certificates: Sequence[Loaded], now: float) -> None:
    """Write a line for each that needs somebody's attention."""
    for one in certificates:
        host = one.facts.names[0] if one.facts.names else ""
        left_s = one.facts.not_after - now
        if one.temporary:
            _log.warning(
                "certificate_temporary", host=host,
                reason="no real certificate yet: clients warn of a self-signed one, and other servers may refuse it",
            )  # fmt: skip
        elif left_s <= 0:
            _log.error("certificate_expired", host=host, path=one.certificate, reason="clients refuse it")
        elif left_s < WARN_S:
            reason = f"in {left_s / _DAY_S:.0f} days; renewal has not worked"
            _log.warning("certificate_expires", host=host, path=one.certificate, reason=reason)
