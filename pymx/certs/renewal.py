"""The runner's timer for certificates by ACME: starts `pymxctl cert renew` as a child process and says what came of it.

A child, because the protocol's library is heavy, blocks, and is needed for seconds a day. It is looked at every
`check_interval_s`, earlier when a failed certificate is to be tried again, and soon after `poke` (accounts changed:
there may be a new domain). The child tells the server by itself to reload. A child that neither ends nor answers is
killed after an hour, and one that runs when the server stops ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

import msgspec

from pymx import log
from pymx.certs.round import Outcome, Round
from pymx.config.model import Acme

_POKED_S = 60.0  # more changes may follow
_LEAST_S = 300.0  # between two looks because of changes
_LONGEST_CHILD_S = 3600.0
_SHORTEST_WAIT_S = 1.0
_MAX_ERROR = 500

_log = log.get("certs")


class Renewal:
    """`command` prints a `Round` as JSON, or {"ok": false, "error": …}."""

    def __init__(self, settings: Acme, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = command
        self._poked = asyncio.Event()
        self._left_out: dict[str, str] = {}

    def poke(self) -> None:
        """The domains may have changed."""
        self._poked.set()

    async def run(self) -> None:
        failures = 0
        while True:
            started = time.time()
            found = await self._look()
            failures = 0 if found is not None else failures + 1
            if found is None:
                wait_s = float(min(self._settings.retry_first_s * 4 ** min(failures - 1, 5), 86_400))
            else:
                wait_s = float(self._settings.check_interval_s)
                if found.retry_at:
                    wait_s = min(wait_s, found.retry_at - time.time())
            # not all servers of the world at the same time
            wait_s = max(wait_s, _SHORTEST_WAIT_S) * random.uniform(1.0, 1.1)  # noqa: S311
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._poked.wait()
                    await asyncio.sleep(max(_POKED_S, started + _LEAST_S - time.time()))
            self._poked.clear()

    async def _look(self) -> Round | None:
        """None when it could not even be looked."""
        status, out, err = await self._child()
        try:
            found = msgspec.json.decode(out, type=Round)
        except msgspec.DecodeError:
            lines = (_error(out) or err.decode(errors="replace")).strip().splitlines()
            reason = lines[-1][:_MAX_ERROR] if lines else f"ended with status {status}"
            _log.error("certificates_not_looked_at", reason=reason)
            return None
        for outcome in found.outcomes:
            _tell(outcome)
        for name, reason in found.left_out.items():
            if self._left_out.get(name) != reason:  # said when it changes: many never have such a name
                _log.info("certificate_name_skipped", host=name, reason=reason)
        self._left_out = found.left_out
        return found

    async def _child(self) -> tuple[int, bytes, bytes]:
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as e:
            return 1, b"", str(e).encode()
        try:
            async with asyncio.timeout(_LONGEST_CHILD_S):
                out, err = await child.communicate()
        except TimeoutError:
            return 1, b"", b"did not end within an hour"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return child.returncode or 0, out, err


def _error(out: bytes) -> str:
    with contextlib.suppress(msgspec.DecodeError):
        answer = msgspec.json.decode(out)
        if isinstance(answer, dict):
            return str(answer.get("error", ""))
    return ""


def _tell(outcome: Outcome) -> None:
    if outcome.result == "issued":
        _log.info("certificate_issued", host=outcome.name, names=",".join(outcome.names), reason=outcome.why)
        for name, reason in outcome.left_out.items():
            _log.warning("certificate_name_refused", host=name, reason=reason)
    elif outcome.result == "failed":
        # the old certificate stays
        _log.error(
            "certificate_not_issued", host=outcome.name, reason=outcome.reason,
            pause_s=round(outcome.retry_at - time.time()),
        )  # fmt: skip
