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
        key = step.record_name
        if step.happened is Happened.SEEN:
            _log.info("dkim_record_seen", key=key, reason="the new key signs when its record has settled")
        elif step.happened is Happened.USED:
            _log.info("dkim_key_used", key=key, reason="signs from now on")
        elif step.happened is Happened.RETIRED:
            _log.info("dkim_key_retired", key=key, reason="the key is deleted; its record may be removed from DNS")
        elif step.happened is Happened.GONE:
            _log.info("dkim_record_gone", key=key, reason="nothing is left of the retired key")
        elif self._is_new("dkim_record_missing", key):
            _log.warning("dkim_record_missing", key=key, reason="mail is signed with a key that is not in DNS")

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
