"""The job that watches the DNS records of signing keys, and replaces keys that `pymxctl dkim rotate` has put in line.

Runs where the queue runs, every `[dkim] check_interval_s`. What it does is `mailauth.dkim.rotation.advance`; here it is
said: each step once, and once a day what is wrong. An error of one domain keeps nothing from the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from pymx import log
from pymx.config.model import Dkim
from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.keys import KeyUnusable
from pymx.mailauth.dkim.rotation import Happened, Step, advance
from pymx.mailauth.questions import Questions

_DAY_S = 86400
_EVENTS = {
    Happened.SEEN: ("dkim_record_seen", "the new key's record is in DNS; it signs when that has settled"),
    Happened.USED: ("dkim_key_used", "signs from now on"),
    Happened.RETIRED: ("dkim_key_retired", "the key is deleted; its record may be removed from DNS"),
    Happened.GONE: ("dkim_record_gone", "the retired key's record is gone from DNS, or forgotten"),
}

_log = log.get("mta")


class Rotation:
    """Looks after the keys under `directory`."""

    def __init__(
        self, resolver: Questions, directory: Path, settings: Dkim, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._resolver = resolver
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.check_interval_s)

    async def look(self) -> None:
        """Every domain once."""
        for domain in await asyncio.to_thread(_domains, self._directory):
            try:
                steps = await advance(
                    self._resolver, self._directory, domain,
                    now=self._clock(), overlap_s=self._settings.overlap_s, settle_s=self._settings.settle_s,
                )  # fmt: skip
                readable = await asyncio.to_thread(_readable_by_others, self._directory, domain)
            except (KeyUnusable, ValueError, OSError) as e:
                if self._is_new("dkim_key_unusable", domain):
                    _log.error("dkim_key_unusable", path=self._directory / domain, reason=str(e))
                continue
            for step in steps:
                self._say(step)
            for path in readable:
                if self._is_new("dkim_key_readable", str(path)):
                    _log.warning("dkim_key_readable", path=path, reason="others may read this key: chmod 600")

    def _say(self, step: Step) -> None:
        if step.happened is Happened.MISSING:
            if self._is_new("dkim_record_missing", step.record_name):
                _log.warning(
                    "dkim_record_missing", key=step.record_name, reason="mail is signed with a key that is not in DNS"
                )
            return
        event, reason = _EVENTS[step.happened]
        _log.info(event, key=step.record_name, reason=reason)

    def _is_new(self, event: str, what: str) -> bool:
        """Was it not said today?"""
        now = self._clock()
        if now - self._said.get((event, what), -_DAY_S) < _DAY_S:
            return False
        self._said[event, what] = now
        return True


def _domains(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _readable_by_others(directory: Path, domain: str) -> list[Path]:
    found = keys.load_all(directory, domain)
    return [directory / domain / f"{key.selector}.pem" for key in found if not keys.is_private(directory, key)]
